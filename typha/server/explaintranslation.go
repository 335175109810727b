package server

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
)

// translated is the source under which a packet is seen beyond the node of its sender, where that translates it (natOutgoing);
// otherwise not valid. The node's address is that by which other nodes know it.
func (s *Server) translated(now *cache.Snapshot, from, to end, src, dst netip.Addr) netip.Addr {
	node := now.Node(from.scope.Node)
	if from.endpoint == nil || node == nil || from.scope.Node == to.scope.Node {
		return netip.Addr{}
	}
	from4 := src.Is4()
	masquerade := false
	for pool := range now.Pools() {
		cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
		if err != nil || len(pool.Spec.AllowedUses) == 1 && pool.Spec.AllowedUses[0] == api.UseLoadBalancer {
			continue
		}
		if cidr.Contains(dst) {
			return netip.Addr{}
		}
		masquerade = masquerade || pool.Spec.NATOutgoing && cidr.Contains(src)
	}
	c := s.configOf(from.scope)
	if exclusions := c.Spec.NATOutgoingExclusions; to.host && exclusions != nil && strings.EqualFold(*exclusions, "IPPoolsAndHostIPs") {
		return netip.Addr{}
	}
	if !masquerade {
		return netip.Addr{}
	}
	if a, err := netip.ParseAddr(c.Spec.NATOutgoingAddress); err == nil && a.Is4() == from4 {
		return a
	}
	if node.Spec.BGP == nil {
		return netip.Addr{}
	}
	if from4 {
		return prefixOf(node.Spec.BGP.IPv4Address).Addr()
	}
	return prefixOf(node.Spec.BGP.IPv6Address).Addr()
}

// notes say what an operator must know of an answer about a packet that is translated, or may be.
func (s *Server) notes(from, to end, as, dst netip.Addr) (out []string) {
	if as.IsValid() {
		note := fmt.Sprintf("Beyond node %s it comes from %s (natOutgoing)", from.scope.Node, as)
		if by := s.configOf(from.scope).Spec.IptablesNATOutgoingInterfaceFilter; by != "" {
			note += ", if it leaves by " + by
		}
		out = append(out, note+".")
	}
	if to.scope.Node == "" {
		out = append(out, dst.String()+" is the address of no endpoint and no node. If it is a service's, ask about an endpoint of the service: policy sees the address that it is translated to.")
	}
	return out
}
