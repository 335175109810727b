package render

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// listsOf are the policy lists of a host endpoint by pass.
func listsOf(e view.HostEndpoint) [4]string {
	return [...]string{desired.Untracked: e.Untracked, desired.PreDNAT: e.PreDNAT, desired.Forward: e.Forward, desired.Normal: e.Normal}
}

// hosts finds the interfaces of the host endpoints: an endpoint with a name has that interface, also before it exists, one
// with expected addresses each interface that bears one of them. The first by name wins where several fit (spec §4.10).
// lacks tells what is missing of a list.
func hosts(s *state.State, lacks func(list string) []string) map[string]desired.Host {
	out := map[string]desired.Host{}
	take := func(iface string, e view.HostEndpoint) {
		if _, taken := out[iface]; !taken {
			out[iface] = host(s, e, lacks)
		}
	}
	for _, e := range byName(s) {
		if e.Interface != "" {
			take(e.Interface, e)
			continue
		}
		for _, name := range bearers(s, e) {
			take(name, e)
		}
	}
	if all, there := out[desired.AnyInterface]; there {
		for name, h := range out {
			if h.PreDNAT != (desired.Ways{}) {
				continue
			}
			h.PreDNAT = all.PreDNAT // an endpoint of its own replaces it in this pass only if it has policies of it
			if own := &h.Counted[desired.PreDNAT]; *own == (desired.Ways{}) {
				*own = all.Counted[desired.PreDNAT]
			}
			out[name] = h
		}
	}
	return out
}

// bearers are the interfaces with an address that a host endpoint expects. While there is none, it is those that had one
// before felix was started: after a reboot interfaces are protected before they have addresses.
func bearers(s *state.State, e view.HostEndpoint) (out []string) {
	for name, i := range s.Host.Interfaces {
		if !excluded(s, name) && slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return slices.Contains(e.ExpectedIPs, p.Addr()) }) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return s.Bearers[e.Name]
	}
	slices.Sort(out)
	return out
}

// excluded tells whether an interface is a workload's, or to be left alone (InterfaceExclude): kube-ipvs0 bears the addresses
// of all services.
func excluded(s *state.State, name string) bool {
	if slices.ContainsFunc(workloadPrefixes(s), func(p string) bool { return strings.HasPrefix(name, p) }) {
		return true
	}
	return slices.ContainsFunc(listed(s.Config.Spec.InterfaceExclude), func(part string) bool {
		pattern, is := strings.CutPrefix(part, "/")
		if !is {
			return part == name
		}
		expression, err := regexp.Compile(strings.TrimSuffix(pattern, "/"))
		return err == nil && expression.MatchString(name)
	})
}

// Bearers are the interfaces of the host endpoints that are found by their addresses, by the endpoint's name: what the next
// felix should begin with (state.SetBearers).
func Bearers(s *state.State) map[string][]string {
	out := map[string][]string{}
	for name, e := range s.HostEPs {
		if found := bearers(s, e); e.Interface == "" && len(found) > 0 {
			out[name] = found
		}
	}
	return out
}

func host(s *state.State, e view.HostEndpoint, lacks func(list string) []string) desired.Host {
	h := desired.Host{Endpoint: e.Name}
	for pass, ways := range map[desired.HostPass]*desired.Ways{desired.PreDNAT: &h.PreDNAT, desired.Forward: &h.Forward, desired.Untracked: &h.Untracked} {
		if pass == desired.Untracked && e.Interface == desired.AnyInterface {
			continue
		}
		*ways, h.Counted[pass] = waysOf(s, listsOf(e)[pass], pass), countedOf(s, listsOf(e)[pass], pass)
	}
	why := e.Incomplete
	if len(why) == 0 {
		why = lacks(e.Normal)
	}
	if len(why) > 0 {
		h.ClosedBecause = why[0]
		return h
	}
	h.Normal = waysOf(s, e.Normal, desired.Normal)
	return h
}

// waysOf are the chains of a list in a pass. Those of a list that is not known are named nevertheless: chains that are not
// there are closed.
func waysOf(s *state.State, list string, pass desired.HostPass) (w desired.Ways) {
	if list == "" {
		return w
	}
	l, known := s.Lists[list]
	if !known || desired.Judges(l, pass, desired.Ingress) {
		w.Ingress = desired.PassChain(list, pass, desired.Ingress)
	}
	if pass != desired.PreDNAT && (!known || desired.Judges(l, pass, desired.Egress)) {
		w.Egress = desired.PassChain(list, pass, desired.Egress)
	}
	return w
}

// countedOf are the chains of a list in a pass that only count.
func countedOf(s *state.State, list string, pass desired.HostPass) (w desired.Ways) {
	l := s.Lists[list]
	if desired.Counts(l, pass, desired.Ingress) {
		w.Ingress = desired.PassChain(list, pass, desired.Ingress)
	}
	if desired.Counts(l, pass, desired.Egress) {
		w.Egress = desired.PassChain(list, pass, desired.Egress)
	}
	return w
}

// Judging are the interfaces at which host endpoints judge, sorted, by the endpoint's name.
func Judging(s *state.State) map[string][]string {
	out := map[string][]string{}
	for iface, h := range hosts(s, s.ListLacks) {
		out[h.Endpoint] = append(out[h.Endpoint], iface)
	}
	for _, interfaces := range out {
		slices.Sort(interfaces)
	}
	return out
}

// Failsafes are the ports that host endpoints never lose.
func Failsafes(s *state.State) (in, out []desired.Failsafe) {
	c := s.Config.Spec
	return failsafePorts(value(c.FailsafeInboundHostPorts, api.DefaultFailsafeInbound())),
		failsafePorts(value(c.FailsafeOutboundHostPorts, api.DefaultFailsafeOutbound()))
}

// failsafes are the chains of the failsafe ports.
func failsafes(s *state.State, needed bool) []desired.Chain {
	if !needed {
		return nil
	}
	return desired.FailsafeChains(Failsafes(s))
}

func failsafePorts(ports []api.ProtoPort) (out []desired.Failsafe) {
	for _, p := range ports {
		protocol := api.Protocol(p.Protocol)
		if protocol == "" {
			protocol = "TCP"
		}
		number, ok := protocol.Number()
		if !ok {
			continue
		}
		f := desired.Failsafe{Protocol: view.Protocol(number), Port: p.Port}
		if p.Net != "" {
			cidr, err := parseNet(p.Net)
			if err != nil {
				continue
			}
			f.Nets = []netip.Prefix{cidr}
		}
		out = append(out, f)
	}
	return out
}
