package server

import (
	"maps"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/typha/cache"
)

// drift finds the nodes whose tunnel addresses may have come apart from IPAM or from the pools: somebody edited the Node,
// or a block with its address went or changed hands. It belongs to the goroutine of the state's flow.
type drift struct {
	nodes  map[string]*tunnelled
	holder map[netip.Addr]map[string]alloc.Tunnel // nodes that say to have a tunnel address, and for what
}

// tunnelled is what tunnel addresses of a node depend on.
type tunnelled struct {
	tunnels    map[alloc.Tunnel]netip.Addr
	mac4, mac6 string
	labels     map[string]string
}

func newDrift() *drift {
	return &drift{nodes: map[string]*tunnelled{}, holder: map[netip.Addr]map[string]alloc.Tunnel{}}
}

// look returns the nodes to be looked at, with true for those that are gone; or that all are to be.
func (d *drift) look(changes []cache.Change) (suspects map[string]bool, all bool) {
	suspects = map[string]bool{}
	for _, c := range changes {
		switch c.Key.Kind {
		case "IPPool":
			all = true
		case "Node":
			n, _ := c.Object.(*api.Node)
			if d.set(c.Key.Name, n) {
				suspects[c.Key.Name] = n == nil
			}
		case "IPAMBlock":
			if cidr, err := netip.ParsePrefix(c.Key.Name); err == nil {
				b, _ := c.Object.(*api.IPAMBlock)
				d.lost(cidr, b, suspects)
			}
		}
	}
	return suspects, all
}

// set notes what a node says, and tells whether that is new.
func (d *drift) set(name string, n *api.Node) bool {
	was := d.nodes[name]
	var now *tunnelled
	if n != nil {
		now = &tunnelled{tunnelsOf(n), n.Spec.VXLANTunnelMACAddr, n.Spec.VXLANTunnelMACAddrV6, n.Labels}
	}
	if was == nil && now == nil || was != nil && now != nil && was.mac4 == now.mac4 && was.mac6 == now.mac6 &&
		maps.Equal(was.tunnels, now.tunnels) && maps.Equal(was.labels, now.labels) {
		return false
	}
	if was != nil {
		for _, a := range was.tunnels {
			if delete(d.holder[a], name); len(d.holder[a]) == 0 {
				delete(d.holder, a)
			}
		}
	}
	delete(d.nodes, name)
	if now == nil {
		return true
	}
	d.nodes[name] = now
	for t, a := range now.tunnels {
		if !a.IsValid() {
			continue
		}
		if d.holder[a] == nil {
			d.holder[a] = map[string]alloc.Tunnel{}
		}
		d.holder[a][name] = t
	}
	return true
}

// lost adds the nodes with a tunnel address in a block that does not say so.
func (d *drift) lost(cidr netip.Prefix, o *api.IPAMBlock, suspects map[string]bool) {
	var content block.Block
	known := false
	for a, nodes := range d.holder {
		if !cidr.Contains(a) {
			continue
		}
		if !known && o != nil {
			var err error
			if content, err = block.Of(o); err != nil {
				return // damaged; nobody knows
			}
		}
		known = true
		var has block.Allocation
		if o != nil {
			has, _ = content.Lookup(a)
		}
		for node, t := range nodes {
			if has.Owner[api.OwnerNode] != node || has.Owner[api.OwnerType] != string(t) {
				suspects[node] = false
			}
		}
	}
}
