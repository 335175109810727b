package compute

import (
	"maps"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// node is a node that the datastore knows.
type node struct {
	name   string
	labels map[string]string
	felix  *views.Entry // its resolved configuration
}

// setNode takes in a node, or with nil its end.
func (e *Engine) setNode(name string, o *api.Node) {
	e.originations.setNode(name, o)
	e.secrets.setNode(name, o)
	was := e.nodes[name]
	if o == nil {
		if was == nil {
			return
		}
		delete(e.nodes, name)
		e.out.allDrop(views.NodeView, view.Node{Name: name}.Key())
		e.out.allDrop(views.BGPView, resourceKey("Node", name))
		e.routes.setTunnels(name, nil)
		e.dirtyFelix[name] = struct{}{}
		if was.felix != nil {
			e.out.drop(nodeView(name), was.felix.Key)
		}
		e.repin = true
		return
	}
	now := was
	if was == nil {
		now = &node{name: name}
		e.nodes[name] = now
		e.repin = true
	}
	if was == nil || !maps.Equal(was.labels, o.Labels) {
		e.dirtyFelix[name] = struct{}{}
	}
	now.labels = o.Labels
	v := nodeItem(o)
	e.out.all(views.NodeView, views.NewEntry(v))
	e.out.all(views.BGPView, resource(bgpNode(o)))
	e.routes.setTunnels(name, []netip.Addr{v.IPIPAddr, v.VXLANAddr4, v.VXLANAddr6})
}

// nodeItem is what other nodes must know of a node to reach it.
func nodeItem(o *api.Node) view.Node {
	v := view.Node{
		Name:       o.Name,
		VXLANAddr4: address(o.Spec.IPv4VXLANTunnelAddr),
		VXLANAddr6: address(o.Spec.IPv6VXLANTunnelAddr),
	}
	if bgp := o.Spec.BGP; bgp != nil {
		v.IPv4 = subnet(bgp.IPv4Address)
		v.IPv6 = subnet(bgp.IPv6Address)
		v.IPIPAddr = address(bgp.IPv4IPIPTunnelAddr)
	}
	for _, text := range o.Status.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			v.PodCIDRs = append(v.PodCIDRs, p.Masked())
		}
	}
	if v.VXLANAddr4.IsValid() {
		v.VXLANMAC4 = o.VXLANMAC(false)
	}
	if v.VXLANAddr6.IsValid() {
		v.VXLANMAC6 = o.VXLANMAC(true)
	}
	return v
}

// address reads an address, with or without a mask; the zero value if there is none.
func address(text string) netip.Addr {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr()
	}
	a, _ := netip.ParseAddr(text)
	return a
}

// subnet reads an address with the length of its subnet, keeping the address itself. Without a length it stands alone.
func subnet(text string) netip.Prefix {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.Prefix{}
}
