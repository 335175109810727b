package render

import (
	"github.com/muslin-net/muslin/api/view"
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
		if w, ok := s.View(e); ok {
			link.AllowSpoofing = maySpoof(s) && len(w.AllowSpoofedPrefixes) > 0
			link.Ingress, link.Egress = shapes(w.QoS)
			gateways(&link, w.Peering)
		}
		if link.Egress != (desired.Shape{}) {
			link.Netns = e.Netns
		}
		out[e.Interface] = link
	}
	return out
}

// gateways gives the link the node's addresses for a pod that speaks BGP, of the families that it has.
func gateways(link *desired.WorkloadLink, p *view.Peering) {
	if p == nil {
		return
	}
	for _, a := range p.Gateways {
		switch {
		case a.Is4() && link.IPv4:
			link.Gateway4 = a
		case a.Is6() && link.IPv6:
			link.Gateway6 = a
		}
	}
}

// shapes are the limits of bandwidth in both directions.
func shapes(q *view.QoS) (in, out desired.Shape) {
	if q == nil {
		return
	}
	if q.IngressBandwidth != 0 {
		in = desired.Shape{Rate: q.IngressBandwidth, Burst: q.IngressBurst, Peakrate: q.IngressPeakrate, Minburst: q.IngressMinburst}
	}
	if q.EgressBandwidth != 0 {
		out = desired.Shape{Rate: q.EgressBandwidth, Burst: q.EgressBurst, Peakrate: q.EgressPeakrate, Minburst: q.EgressMinburst}
	}
	return in, out
}

// Sysctls are the parameters of the whole node.
func Sysctls(s *state.State) []desired.Sysctl {
	return desired.HostSysctls(!is(s.Config.Spec.IPForwarding, "Disabled"))
}

// maySpoof tells whether endpoints may ask for further source addresses.
func maySpoof(s *state.State) bool { return is(s.Config.Spec.WorkloadSourceSpoofing, "Any") }
