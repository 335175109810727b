package render

import (
	"maps"
	"slices"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Tunnels is what the tunnel devices should be, and what they should know of the other nodes.
type Tunnels struct {
	VXLAN     map[string]desired.VXLAN
	Neighbors map[desired.NeighborKey]desired.Neighbor
	FDB       map[desired.FDBKey]desired.FDB
}

// TunnelState computes the tunnel devices. A device exists while a pool needs it and the node has an address for it.
func TunnelState(s *state.State) Tunnels {
	out := Tunnels{
		VXLAN:     map[string]desired.VXLAN{},
		Neighbors: map[desired.NeighborKey]desired.Neighbor{},
		FDB:       map[desired.FDBKey]desired.FDB{},
	}
	for _, f := range families(s) {
		addr, mac, ok := f.vtep(s.Nodes[s.Node])
		if !ok || f.parent == "" || !f.vxlan {
			continue
		}
		out.VXLAN[f.device] = desired.VXLAN{
			Name: f.device, VNI: value(s.Config.Spec.VXLANVNI, desired.DefaultVXLANVNI),
			Port:  uint16(value(s.Config.Spec.VXLANPort, desired.DefaultVXLANPort)),
			Local: f.address.Addr(), Parent: f.parent, MAC: mac, MTU: f.mtu, Address: addr,
		}
		for _, name := range slices.Sorted(maps.Keys(s.Nodes)) { // two nodes may claim one tunnel end: always the same wins
			n := s.Nodes[name]
			vtep, mac, ok := f.vtep(n)
			if n.Name == s.Node || !ok || !f.of(n).IsValid() {
				continue
			}
			neigh := desired.Neighbor{Link: f.device, Addr: vtep, MAC: mac}
			entry := desired.FDB{Link: f.device, MAC: mac, Remote: f.of(n)}
			out.Neighbors[neigh.Key()], out.FDB[entry.Key()] = neigh, entry
		}
	}
	return out
}
