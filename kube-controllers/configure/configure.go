// Package configure works out the configuration in effect from what is stored and from the environment, which beats it. It is
// pure.
package configure

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// Environment is what environment variables say, each checked already.
type Environment struct {
	// Set are the variables that are set, with their values.
	Set map[string]string

	changes []func(*api.KubeControllersConfigurationSpec)
}

// The variables, with Calico's names.
const (
	EnvLogLevel     = "LOG_LEVEL"
	EnvHealth       = "HEALTH_ENABLED"
	EnvCompaction   = "COMPACTION_PERIOD"
	EnvReconciler   = "RECONCILER_PERIOD"
	EnvControllers  = "ENABLED_CONTROLLERS"
	EnvSyncLabels   = "SYNC_NODE_LABELS"
	EnvAutoEndpoint = "AUTO_HOST_ENDPOINTS"
)

// levels are the values of logSeverityScreen.
var levels = []string{"None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic"}

// ReadEnvironment reads the variables; pass os.LookupEnv. One that is empty counts as not set.
func ReadEnvironment(lookup func(string) (string, bool)) (Environment, error) {
	e := Environment{Set: map[string]string{}}
	var errs []error
	// ENABLED_CONTROLLERS comes first: what others say of a controller counts for those that are enabled.
	for _, v := range []struct {
		name string
		read func(text string) (change func(*api.KubeControllersConfigurationSpec), fix string)
	}{
		{EnvControllers, readControllers},
		{EnvLogLevel, readLevel},
		{EnvHealth, readSwitch("true or false", strconv.ParseBool, func(s *api.KubeControllersConfigurationSpec, on api.Switch) { s.HealthChecks = on })},
		{EnvCompaction, readDuration(func(s *api.KubeControllersConfigurationSpec, d metav1.Duration) { s.EtcdV3CompactionPeriod = &d })},
		{EnvReconciler, readDuration(setPeriods)},
		{EnvSyncLabels, readSwitch("true or false", strconv.ParseBool, func(s *api.KubeControllersConfigurationSpec, on api.Switch) {
			if n := s.Controllers.Node; n != nil {
				n.SyncLabels = on
			}
		})},
		{EnvAutoEndpoint, readSwitch("enabled or disabled", parseEnabled, func(s *api.KubeControllersConfigurationSpec, on api.Switch) {
			if n := s.Controllers.Node; n != nil {
				if n.HostEndpoint == nil {
					n.HostEndpoint = &api.AutoHostEndpointConfig{CreateDefaultHostEndpoint: api.Enabled}
				}
				n.HostEndpoint.AutoCreate = on
			}
		})},
	} {
		text, set := lookup(v.name)
		if text = strings.TrimSpace(text); !set || text == "" {
			continue
		}
		change, fix := v.read(text)
		if change == nil {
			errs = append(errs, fmt.Errorf("environment variable %s: %q is not valid; write %s", v.name, text, fix))
			continue
		}
		e.Set[v.name] = text
		e.changes = append(e.changes, change)
	}
	return e, errors.Join(errs...)
}

type change = func(*api.KubeControllersConfigurationSpec)

func readLevel(text string) (change, string) {
	i := slices.IndexFunc(levels, func(l string) bool {
		return strings.EqualFold(l, text) || strings.EqualFold(text, "warn") && l == "Warning"
	})
	if i < 0 {
		return nil, "one of " + strings.ToLower(strings.Join(levels, ", "))
	}
	return func(s *api.KubeControllersConfigurationSpec) { s.LogSeverityScreen = levels[i] }, ""
}

func readDuration(set func(*api.KubeControllersConfigurationSpec, metav1.Duration)) func(string) (change, string) {
	return func(text string) (change, string) {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, "a duration such as 5m"
		}
		return func(s *api.KubeControllersConfigurationSpec) { set(s, metav1.Duration{Duration: d}) }, ""
	}
}

func readSwitch(fix string, parse func(string) (bool, error), set func(*api.KubeControllersConfigurationSpec, api.Switch)) func(string) (change, string) {
	return func(text string) (change, string) {
		on, err := parse(text)
		if err != nil {
			return nil, fix
		}
		position := api.Disabled
		if on {
			position = api.Enabled
		}
		return func(s *api.KubeControllersConfigurationSpec) { set(s, position) }, ""
	}
}

func parseEnabled(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "enabled", "true":
		return true, nil
	case "disabled", "false":
		return false, nil
	}
	return false, errors.New("neither")
}

// setPeriods sets the period of all controllers that have one.
func setPeriods(s *api.KubeControllersConfigurationSpec, d metav1.Duration) {
	c := &s.Controllers
	if c.Node != nil {
		c.Node.ReconcilerPeriod = &d
	}
	for _, r := range []*api.ReconcilerConfig{c.Policy, c.Namespace, c.ServiceAccount, c.WorkloadEndpoint} {
		if r != nil {
			r.ReconcilerPeriod = &d
		}
	}
}

// readControllers reads the list of controllers: those that are not in it do not run.
func readControllers(text string) (change, string) {
	var listed []string
	for name := range strings.SplitSeq(text, ",") {
		if name = strings.ToLower(strings.TrimSpace(name)); name == "" {
			continue
		}
		if name == "profile" { // the namespace's name of old
			name = "namespace"
		}
		if !slices.Contains([]string{"node", "policy", "namespace", "serviceaccount", "workloadendpoint", "loadbalancer"}, name) {
			return nil, "names out of node, policy, namespace, serviceaccount, workloadendpoint, loadbalancer, separated by commas"
		}
		listed = append(listed, name)
	}
	return func(s *api.KubeControllersConfigurationSpec) {
		all, c := &api.NewKubeControllersConfiguration().Spec.Controllers, &s.Controllers
		choose(&c.Node, all.Node, slices.Contains(listed, "node"))
		choose(&c.Policy, all.Policy, slices.Contains(listed, "policy"))
		choose(&c.Namespace, all.Namespace, slices.Contains(listed, "namespace"))
		choose(&c.ServiceAccount, all.ServiceAccount, slices.Contains(listed, "serviceaccount"))
		choose(&c.WorkloadEndpoint, all.WorkloadEndpoint, slices.Contains(listed, "workloadendpoint"))
		choose(&c.LoadBalancer, all.LoadBalancer, slices.Contains(listed, "loadbalancer"))
	}, ""
}

// choose has an entry be there or not.
func choose[T any](entry **T, fresh *T, on bool) {
	switch {
	case !on:
		*entry = nil
	case *entry == nil:
		*entry = fresh
	}
}

// Cluster is what of the cluster decides which controllers can run.
type Cluster struct {
	Etcd       bool // the datastore is etcd, else it is Kubernetes
	Kubernetes bool // there is an API of Kubernetes
}

// Effective is the configuration in effect. stored is nil if there is none. An entry for a controller that cannot run in this
// cluster is left out.
func Effective(stored *api.KubeControllersConfiguration, env Environment, in Cluster) *api.KubeControllersConfigurationSpec {
	if stored == nil {
		stored = api.NewKubeControllersConfiguration()
	}
	stored = stored.DeepCopy()
	stored.Default()
	for _, change := range env.changes {
		change(&stored.Spec)
	}
	c := &stored.Spec.Controllers
	if !in.Etcd || !in.Kubernetes {
		c.Policy, c.Namespace, c.ServiceAccount, c.WorkloadEndpoint = nil, nil, nil, nil
	}
	if !in.Kubernetes {
		c.LoadBalancer = nil
	}
	if !in.Etcd {
		stored.Spec.EtcdV3CompactionPeriod = nil
	}
	c.Migration = nil // names of old policies are read as they are, and nobody rewrites them
	return &stored.Spec
}
