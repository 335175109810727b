// Package audit compares what address management has stored with what uses the addresses: which address was given out for
// what, whether something has it, and which handles, affinities and blocks contradict each other. It is pure: it is given
// all objects and returns what it found.
//
// It refuses to mend anything, and it looks at one moment only: an address that nothing has yet may belong to a pod that is
// just being made. Whoever releases addresses by what it says must first rule that out (kube-controllers by waiting and
// asking the node, people by comparing two reports).
package audit

import (
	"net/netip"

	"github.com/muslin-net/muslin/api"
)

// EndpointAddrs are the addresses of a workload endpoint; what cannot be read is left out.
func EndpointAddrs(ep *api.WorkloadEndpoint) []netip.Addr {
	var out []netip.Addr
	for _, text := range ep.Spec.IPNetworks {
		if a, ok := readAddr(text); ok {
			out = append(out, a)
		}
	}
	return out
}

// TunnelAddrs are the addresses of a node's tunnels, by what they are for.
func TunnelAddrs(n *api.Node) map[netip.Addr]string {
	texts := map[string]string{
		"VXLAN tunnel": n.Spec.IPv4VXLANTunnelAddr, "VXLAN tunnel (IPv6)": n.Spec.IPv6VXLANTunnelAddr,
	}
	if n.Spec.BGP != nil {
		texts["IP-in-IP tunnel"] = n.Spec.BGP.IPv4IPIPTunnelAddr
	}
	if w := n.Spec.Wireguard; w != nil {
		texts["WireGuard tunnel"], texts["WireGuard tunnel (IPv6)"] = w.InterfaceIPv4Address, w.InterfaceIPv6Address
	}
	out := map[netip.Addr]string{}
	for what, text := range texts {
		if a, ok := readAddr(text); ok {
			out[a] = what
		}
	}
	return out
}

// readAddr reads an address, with or without a prefix length.
func readAddr(text string) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr().Unmap(), true
	}
	a, err := netip.ParseAddr(text)
	return a.Unmap().WithZone(""), err == nil
}
