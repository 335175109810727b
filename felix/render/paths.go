package render

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

// Path is the way of pods' packets to another node, outside of any tunnel.
type Path struct {
	Node          string
	Local, Remote netip.Addr // the nodes' addresses
	By            view.Tunnel
	Size          int // bytes, with the IP header, of the largest packet that this node sends that way
}

// Paths are the ways to all other nodes, in the order of their names, for each family that has pools. Where pools have
// several modes, the one that makes the largest packets counts.
func Paths(s *state.State) []Path {
	var out []Path
	pods := PodMTU(s)
	for _, f := range families(s) {
		for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
			n := s.Nodes[name]
			if name == s.Node || !f.of(n).IsValid() {
				continue
			}
			best, found := Path{Node: name, Local: f.address.Addr(), Remote: f.of(n)}, false
			for _, p := range s.Pools {
				cidr, err := netip.ParsePrefix(p.Spec.CIDR)
				if err != nil || !f.has(cidr) {
					continue
				}
				by := f.carries(p, n)
				if size := pods + f.adds(by); !found || size > best.Size {
					best.By, best.Size, found = by, size, true
				}
			}
			if found {
				out = append(out, best)
			}
		}
	}
	return out
}

// carries is how packets of a pool get to another node.
func (f family) carries(p *api.IPPool, n view.Node) view.Tunnel {
	crossSubnet := p.Spec.VXLANMode == api.VXLANCrossSubnet || p.Spec.IPIPMode == api.IPIPCrossSubnet
	if crossSubnet && f.sameSubnet(n) {
		return view.TunnelNone
	}
	return tunnelOf(p)
}

// adds is the overhead of a tunnel over this family, in bytes.
func (f family) adds(t view.Tunnel) int {
	switch t {
	case view.TunnelVXLAN:
		return f.overhead
	case view.TunnelIPIP:
		return overheadIPIP
	}
	return 0
}

// TunnelPools names, for each tunnel that a pool wants, such a pool: the first by name.
func TunnelPools(s *state.State) map[view.Tunnel]string {
	out := map[view.Tunnel]string{}
	for _, name := range slices.Sorted(maps.Keys(s.Pools)) {
		if t := tunnelOf(s.Pools[name]); t != view.TunnelNone && out[t] == "" {
			out[t] = name
		}
	}
	return out
}
