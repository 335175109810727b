package render

import (
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Links are the host sides of the node's pods.
func Links(s *state.State) map[string]desired.WorkloadLink {
	out := make(map[string]desired.WorkloadLink, len(s.Local))
	mtu := PodMTU(s)
	for _, e := range s.Local {
		link := desired.WorkloadLink{Name: e.Interface, MTU: e.MTU}
		if e.AutoMTU {
			link.MTU, link.Netns = mtu, e.Netns
		}
		for _, a := range e.Addresses {
			link.IPv4 = link.IPv4 || a.Is4()
			link.IPv6 = link.IPv6 || a.Is6()
		}
		if w, ok := s.View(e); ok && maySpoof(s) {
			link.AllowSpoofing = len(w.AllowSpoofedPrefixes) > 0
		}
		out[e.Interface] = link
	}
	return out
}

// Sysctls are the parameters of the whole node.
func Sysctls(s *state.State) []desired.Sysctl {
	return desired.HostSysctls(!is(s.Config.Spec.IPForwarding, "Disabled"))
}

// maySpoof tells whether endpoints may ask for further source addresses.
func maySpoof(s *state.State) bool { return is(s.Config.Spec.WorkloadSourceSpoofing, "Any") }
