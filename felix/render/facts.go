// Package render decides: from what felix knows (package state) it computes what the kernel should hold (package
// desired). It is pure, so the same knowledge gives the same kernel whatever the order in which it arrived.
package render

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// family is one of the two IP families as the node takes part in it.
type family struct {
	v6       bool
	address  netip.Prefix // node's address and subnet; invalid: the node has none
	parent   string       // interface that bears it, which may be the loopback; empty: none does
	device   string       // VXLAN device
	overhead int          // of VXLAN over this family
	asked    int          // MTU that the user wants the VXLAN device to have; 0: what fits
	mtu      int          // of the VXLAN device
	ipipMTU  int          // of tunl0
	vxlan    bool         // VXLAN is in use over this family, and the kernel has it
	ipip     bool         // the same of IP-in-IP, which there is for IPv4 only
}

// families are the families in which the node has an address.
func families(s *state.State) []family {
	self, c := s.Nodes[s.Node], s.Config.Spec
	all := []family{
		{address: self.IPv4, device: desired.VXLANDevice4, overhead: overheadVXLAN4, asked: value(c.VXLANMTU, 0)},
		{v6: true, address: self.IPv6, device: desired.VXLANDevice6, overhead: overheadVXLAN6, asked: value(c.VXLANMTUV6, 0)},
	}
	all = slices.DeleteFunc(all, func(f family) bool { return !f.address.IsValid() || f.v6 && !value(c.IPv6Support, true) })
	host := HostMTU(s)
	for i := range all {
		f := &all[i]
		f.parent = bearer(s.Host.Interfaces, f.address.Addr())
		if f.parent == "" && slices.Contains(s.Host.Loopback, f.address.Addr()) {
			f.parent = desired.Loopback
		}
		f.mtu = f.deviceMTU(s, f.asked, f.overhead, host)
		f.ipipMTU = f.deviceMTU(s, value(c.IPIPMTU, 0), overheadIPIP, host)
		f.vxlan = value(c.VXLANEnabled, f.uses(s, view.TunnelVXLAN)) && s.Lacks(view.TunnelVXLAN) == "" && f.parent != desired.Loopback
		f.ipip = !f.v6 && value(c.IPIPEnabled, f.uses(s, view.TunnelIPIP)) && s.Lacks(view.TunnelIPIP) == ""
	}
	return all
}

// bearer is the interface that has an address, the first by name if several do, empty if none does.
func bearer(interfaces map[string]state.Interface, a netip.Addr) string {
	for _, name := range slices.Sorted(maps.Keys(interfaces)) {
		if slices.ContainsFunc(interfaces[name].Addresses, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return name
		}
	}
	return ""
}

// of picks the node's address of this family.
func (f family) of(n view.Node) netip.Addr {
	if f.v6 {
		return n.IPv6.Addr()
	}
	return n.IPv4.Addr()
}

// vtep is the node's VXLAN tunnel end of this family; ok is false while the node has none.
func (f family) vtep(n view.Node) (addr netip.Addr, mac desired.MAC, ok bool) {
	addr, text := n.VXLANAddr4, n.VXLANMAC4
	if f.v6 {
		addr, text = n.VXLANAddr6, n.VXLANMAC6
	}
	mac, err := desired.ParseMAC(text)
	return addr, mac, err == nil && !mac.IsZero() && addr.IsValid()
}

// sameSubnet is the cross-subnet rule: my own subnet contains its address (spec §4.2). Unknown is not the same.
func (f family) sameSubnet(n view.Node) bool {
	a := f.of(n)
	return a.IsValid() && f.address.IsValid() && f.address.Masked().Contains(a)
}

func (f family) has(p netip.Prefix) bool { return p.Addr().Is6() == f.v6 }

// uses tells whether a tunnel of this family must work on this node: a pool asks for it (a disabled one still has
// endpoints), or packets may still come in by it while a pool changes its mode.
func (f family) uses(s *state.State, t view.Tunnel) bool {
	for _, p := range s.Pools {
		cidr, err := netip.ParsePrefix(p.Spec.CIDR)
		if err == nil && f.has(cidr) && tunnelOf(p) == t {
			return true
		}
	}
	return s.Receives(f.v6, t)
}

// tunnelOf is how a pool wants packets carried.
func tunnelOf(p *api.IPPool) view.Tunnel {
	switch {
	case p.Spec.VXLANMode != "" && p.Spec.VXLANMode != api.VXLANNever:
		return view.TunnelVXLAN
	case p.Spec.IPIPMode != "" && p.Spec.IPIPMode != api.IPIPNever:
		return view.TunnelIPIP
	}
	return view.TunnelNone
}

// is tells whether a setting has a value; users may write values in any case.
func is(setting, value string) bool { return strings.EqualFold(setting, value) }

// value is what p points to, or def.
func value[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}
