package render

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Tunnels is what the tunnel devices should be, and what they should know of the other nodes.
type Tunnels struct {
	VXLAN     map[string]desired.VXLAN
	IPIP      map[string]desired.IPIP
	Decaps    map[netip.Addr]desired.Decap // nodes whose IP-in-IP packets are taken
	Neighbors map[desired.NeighborKey]desired.MAC
	FDB       map[desired.FDBKey]netip.Addr
}

// TunnelState computes the tunnel devices. A device exists while a pool needs it and the node has an address for it.
func TunnelState(s *state.State) Tunnels {
	out := Tunnels{
		VXLAN:     map[string]desired.VXLAN{},
		IPIP:      map[string]desired.IPIP{},
		Decaps:    map[netip.Addr]desired.Decap{},
		Neighbors: map[desired.NeighborKey]desired.MAC{},
		FDB:       map[desired.FDBKey]netip.Addr{},
	}
	for _, f := range families(s) {
		if f.ipip && f.parent != "" {
			out.ipip(s, f)
		}
		addr, mac, ok := f.vtep(s.Nodes[s.Node])
		if !ok || f.parent == "" || !f.vxlan {
			continue
		}
		out.VXLAN[f.device] = desired.VXLAN{
			Name: f.device, VNI: value(s.Config.Spec.VXLANVNI, desired.DefaultVXLANVNI),
			Port:  uint16(value(s.Config.Spec.VXLANPort, desired.DefaultVXLANPort)),
			Local: f.address.Addr(), Parent: f.parent, MAC: mac, MTU: f.mtu, Address: addr, Offload: offload(s),
		}
		for _, name := range slices.Sorted(maps.Keys(s.Nodes)) { // two nodes may claim one tunnel end: always the same wins
			n := s.Nodes[name]
			vtep, mac, ok := f.vtep(n)
			if n.Name == s.Node || !ok || !f.of(n).IsValid() {
				continue
			}
			out.Neighbors[desired.NeighborKey{Link: f.device, Addr: vtep}] = mac
			out.FDB[desired.FDBKey{Link: f.device, MAC: mac}] = f.of(n)
		}
	}
	return out
}

// checksumOffloadBroken is the feature of featureDetectOverride that says that a device must not leave checksums to others.
const checksumOffloadBroken = "ChecksumOffloadBroken"

// offload is what the user says about checksum offload of tunnels: "ChecksumOffloadBroken=true" among others.
func offload(s *state.State) desired.Offload {
	for setting := range strings.SplitSeq(s.Config.Spec.FeatureDetectOverride, ",") {
		switch name, value, _ := strings.Cut(setting, "="); {
		case name != checksumOffloadBroken:
		case value == "true":
			return desired.OffloadOff
		case value == "false":
			return desired.OffloadOn
		}
	}
	return desired.OffloadAuto
}

// ipip adds the IP-in-IP device. It carries packets of pods before the node has an address for it, which is needed by
// packets of the host alone.
func (t Tunnels) ipip(s *state.State, f family) {
	t.IPIP[desired.IPIPDevice] = desired.IPIP{
		Name: desired.IPIPDevice, Local: f.address.Addr(), Parent: f.parent, Uplinks: strings.Join(s.Host.Uplinks, " "),
		MTU: f.ipipMTU, Address: s.Nodes[s.Node].IPIPAddr,
	}
	for name, n := range s.Nodes {
		if a := f.of(n); name != s.Node && a.IsValid() && a != f.address.Addr() {
			t.Decaps[a] = f.decap(s, a)
		}
	}
	for _, p := range externalNodes(s) { // a peer has an address; networks of peers are for the kernel's own tunl0
		if p.IsSingleIP() && f.has(p) {
			t.Decaps[p.Addr()] = desired.Decap{}
		}
	}
}

// decap is what IP-in-IP needs to know of another node.
func (f family) decap(s *state.State, node netip.Addr) desired.Decap {
	by := s.Host.Ways[node]
	if len(s.Host.Uplinks) == 1 {
		by = s.Host.Uplinks[0]
	}
	if by == f.parent {
		return desired.Decap{}
	}
	return desired.Decap{Out: s.Host.Interfaces[by].Index}
}

// encapOf is the outer destination of a route through the IP-in-IP device: what its driver needs if it does not learn it
// from the route.
func encapOf(r desired.Route) (desired.Encap, bool) {
	if len(r.NextHops) != 1 || r.NextHops[0].Link != desired.IPIPDevice {
		return desired.Encap{}, false
	}
	return desired.Encap{Remote: r.NextHops[0].Via}, true
}
