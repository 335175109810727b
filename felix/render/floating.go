package render

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// floatingAddress is a floating address with the interface of its workload.
type floatingAddress struct {
	desired.Floating
	link string
}

// floats tells whether floating addresses are programmed.
func floats(s *state.State) bool { return is(value(s.Config.Spec.FloatingIPs, "Disabled"), "Enabled") }

// Floats tells whether a floating address can lead to a workload: typha routes those of pools only, as nobody may draw other
// addresses to himself.
func Floats(s *state.State, a netip.Addr) bool {
	for _, p := range s.Pools {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil && cidr.Contains(a) {
			return true
		}
	}
	return false
}

// floating are the outside addresses that lead to workloads of this node: those that typha routes here, so that all nodes agree on
// who of several has one. Of the workloads of this node the one with the lower address has it, as text, like everything here is in
// the order of texts (spec §4.5). Nobody is given an address that a workload of this node has.
func floating(s *state.State) []floatingAddress {
	if !floats(s) {
		return nil
	}
	var out []floatingAddress
	for _, e := range s.Local {
		v, known := s.View(e)
		if !known || e.Leaving {
			continue
		}
		for _, n := range v.NATs {
			here := view.Route{Dst: netip.PrefixFrom(n.External, n.External.BitLen()), Node: s.Node}.Key().ID
			if s.Remote[here].Type == view.RouteWorkload && n.External.Is4() == n.Internal.Is4() && slices.Contains(e.Addresses, n.Internal) {
				out = append(out, floatingAddress{desired.Floating{External: n.External, Internal: n.Internal}, e.Interface})
			}
		}
	}
	taken := map[netip.Addr]bool{}
	for _, e := range s.Local {
		for _, a := range e.Addresses {
			taken[a] = true
		}
	}
	slices.SortFunc(out, func(a, b floatingAddress) int {
		return cmp.Or(cmp.Compare(a.External.String(), b.External.String()), cmp.Compare(a.Internal.String(), b.Internal.String()))
	})
	return slices.DeleteFunc(out, func(f floatingAddress) bool {
		was := taken[f.External]
		taken[f.External] = true
		return was
	})
}
