package render

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

// Problem is a pool whose packets this node cannot carry. Routes to its blocks are not programmed, and pods with its
// addresses are refused.
type Problem struct {
	Pool       string
	Capability string // what the kernel lacks: api.FeatureIPIP or api.FeatureVXLAN
	Message    string // names node, pool, what is missing and the choices
}

// Problems are the pools that ask for what this node's kernel lacks, in the order of their names. A tunnel that the
// configuration turns off is not missing.
func Problems(s *state.State) []Problem {
	var out []Problem
	for _, name := range slices.Sorted(maps.Keys(s.Pools)) {
		if p, ok := problem(s, s.Pools[name]); ok {
			out = append(out, p)
		}
	}
	return out
}

// Refusal tells why a pod with an address would have no network on this node; empty if it would have.
func Refusal(s *state.State, a netip.Addr) string {
	for _, p := range s.Pools {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil && cidr.Contains(a) {
			if problem, ok := problem(s, p); ok {
				return problem.Message
			}
		}
	}
	return ""
}

func problem(s *state.State, p *api.IPPool) (Problem, bool) {
	tunnel := tunnelOf(p)
	cidr, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil || s.Lacks(tunnel) == "" || loadBalancerOnly(p) {
		return Problem{}, false
	}
	capability, enabled := api.FeatureIPIP, value(s.Config.Spec.IPIPEnabled, true)
	wants, instead := fmt.Sprintf("ipipMode %s", p.Spec.IPIPMode), "vxlanMode"
	if tunnel == view.TunnelVXLAN {
		capability, enabled = api.FeatureVXLAN, value(s.Config.Spec.VXLANEnabled, true)
		wants, instead = fmt.Sprintf("vxlanMode %s", p.Spec.VXLANMode), "ipipMode"
		if cidr.Addr().Is6() {
			instead = "vxlanMode to Never" // there is no other tunnel for IPv6
		}
	}
	return Problem{
		Pool: p.Name, Capability: capability,
		Message: fmt.Sprintf("node %s: kernel has no %s; pool %s wants %s; load module %s, or set %s", s.Node, capability, p.Name, wants, capability, instead),
	}, enabled
}
