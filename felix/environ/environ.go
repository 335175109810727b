// Package environ is the highest layer of felix's configuration: variables FELIX_<parameter> of its own environment, which
// win over every FelixConfiguration (spec §4.11). It is pure; the caller brings the environment.
package environ

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// prefix begins the names of the variables. Names are taken in any case.
const prefix = "FELIX_"

// former are the names of parameters that go by another name in environments than in FelixConfiguration. Of those that name
// their unit, the values are numbers in it.
var former = map[string]struct{ parameter, unit string }{
	"ipinipenabled":                      {"ipipEnabled", ""},
	"ipinipmtu":                          {"ipipMTU", ""},
	"externalnodescidrlist":              {"externalNodesList", ""},
	"wireguardpersistentkeepalive":       {"wireguardKeepAlive", ""},
	"bpfconntrackcleanupmode":            {"bpfConntrackMode", ""},
	"endpointreportingdelaysecs":         {"endpointReportingDelay", "s"},
	"iptableslockprobeintervalmillis":    {"iptablesLockProbeInterval", "ms"},
	"iptableslocktimeoutsecs":            {"iptablesLockTimeout", "s"},
	"iptablespostwritecheckintervalsecs": {"iptablesPostWriteCheckInterval", "s"},
	"netlinktimeoutsecs":                 {"netlinkTimeout", "s"},
	"reportingintervalsecs":              {"reportingInterval", "s"},
	"reportingttlsecs":                   {"reportingTTL", "s"},
	"usagereportinginitialdelaysecs":     {"usageReportingInitialDelay", "s"},
	"usagereportingintervalsecs":         {"usageReportingInterval", "s"},
}

// Settings are the parameters that the environment sets. The zero value sets none.
type Settings struct {
	values map[string]string // text by name of the parameter; every one can be set
}

// Parse reads an environment as os.Environ has it; taken are variables with a meaning of their own. A value that cannot be
// used is left out, so that the layer below counts, and told in problems; so is a variable that no parameter goes by.
func Parse(environment []string, taken ...string) (s Settings, problems []error) {
	s.values = map[string]string{}
	from := map[string]string{} // variable by parameter
	names := map[string]string{}
	for _, p := range api.FelixParameters() {
		names[strings.ToLower(p.Name)] = p.Name
	}
	for _, entry := range slices.Sorted(slices.Values(environment)) {
		variable, value, _ := strings.Cut(entry, "=")
		if len(variable) <= len(prefix) || !strings.EqualFold(variable[:len(prefix)], prefix) ||
			slices.ContainsFunc(taken, func(t string) bool { return strings.EqualFold(t, variable) }) {
			continue
		}
		name, ok := strings.ToLower(variable[len(prefix):]), false
		if old, is := former[name]; is {
			name = strings.ToLower(old.parameter)
			if !strings.EqualFold(value, "none") {
				value += old.unit
			}
		}
		if name, ok = names[name]; !ok || name == "nodeSelector" {
			problems = append(problems, fmt.Errorf("environment variable %s has no effect: felix has no such parameter; remove it, or see the fields of FelixConfiguration", variable))
			continue
		}
		if err := api.SetFelixParameter(&api.FelixConfigurationSpec{}, name, value); err != nil {
			problems = append(problems, fmt.Errorf("environment variable %s is ignored: %w", variable, err))
			continue
		}
		if other, twice := from[name]; twice {
			problems = append(problems, fmt.Errorf("environment variable %s is ignored: %s sets %s already; remove one of them", variable, other, name))
			continue
		}
		s.values[name], from[name] = value, variable
	}
	return s, problems
}

// Names are the parameters that are set, in order.
func (s Settings) Names() []string { return slices.Sorted(maps.Keys(s.values)) }

// Over lays the settings over what typha resolved for this node. Nothing of the batch is changed; if it has to be, the
// outcome is another one.
func (s Settings) Over(b view.Batch) view.Batch {
	isConfig := func(item view.Item) bool {
		r, ok := item.(view.Resource)
		if !ok {
			return false
		}
		_, ok = r.Object.(*api.FelixConfiguration)
		return ok
	}
	if len(s.values) == 0 || !slices.ContainsFunc(b.Updates, isConfig) {
		return b
	}
	b.Updates = slices.Clone(b.Updates)
	for i, item := range b.Updates {
		if !isConfig(item) {
			continue
		}
		c, _ := item.(view.Resource).Object.DeepCopyObject().(*api.FelixConfiguration)
		for _, name := range s.Names() {
			if err := api.SetFelixParameter(&c.Spec, name, s.values[name]); err != nil {
				panic(fmt.Sprintf("environ: %s was found valid: %v", name, err))
			}
		}
		b.Updates[i] = view.Resource{Object: c}
	}
	return b
}
