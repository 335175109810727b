package server_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/typha/client"
)

// tunnels is what a Node says of its tunnels.
func (w *world) tunnels(node string) (ipip, vxlan4, vxlan6 string) {
	n := get[*api.Node](w, "Node", node)
	if n.Spec.BGP != nil {
		ipip = n.Spec.BGP.IPv4IPIPTunnelAddr
	}
	return ipip, n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr
}

// holder is the handle that an address is allocated to.
func (w *world) holder(addr string) string {
	w.t.Helper()
	has, err := alloc.New(w.store, alloc.Options{}).Address(w.t.Context(), netip.MustParseAddr(addr))
	if err != nil {
		return err.Error()
	}
	return has.Handle
}

// TestTunnelAddressesAreRepaired takes tunnel addresses away in every way there is.
func TestTunnelAddressesAreRepaired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	w.create(pool("a", "10.77.0.0/24", ipip))
	w.create(pool("six", "fd00:77::/112", vxlan))
	for _, name := range []string{"n1", "n2"} {
		address := map[string]string{"n1": "10.0.0.1/24", "n2": "10.0.0.2/24"}[name]
		register(t, w.node(name, r.address), client.Registration{
			IPv4: netip.MustParsePrefix(address), IPv6: netip.MustParsePrefix("fd00::" + name[1:] + "/64"),
		})
		w.follow(name, []string{r.address}).next()
	}
	mine, _, six := w.tunnels("n1")
	other, _, _ := w.tunnels("n2")
	require.NotEmpty(t, mine)
	require.NotEmpty(t, six)
	require.Equal(t, "ipip-tunnel-addr-n1", w.holder(mine))
	require.Equal(t, "vxlan-v6-tunnel-addr-n1", w.holder(six))
	mac := get[*api.Node](w, "Node", "n1").Spec.VXLANTunnelMACAddrV6
	require.Equal(t, (&api.Node{ObjectMeta: get[*api.Node](w, "Node", "n1").ObjectMeta}).VXLANMAC(true), mac)

	// right waits until the node has an address that is allocated to it.
	right := func(what string) string {
		t.Helper()
		var now string
		eventually(t, what, func() bool {
			if now, _, _ = w.tunnels("n1"); now == "" || now == other {
				return false
			}
			return w.holder(now) == "ipip-tunnel-addr-n1"
		})
		return now
	}
	edit := func(address string) {
		modify(w, "Node", "n1", func(n *api.Node) { n.Spec.BGP.IPv4IPIPTunnelAddr = address })
	}
	back := func(what string) {
		t.Helper()
		eventually(t, what, func() bool { now, _, _ := w.tunnels("n1"); return now == mine })
	}
	edit("")
	back("the address that a user removed")
	edit("10.77.0.200")
	back("the address that a user replaced")
	edit("203.0.113.9")
	back("the address that a user moved out of all pools")
	edit(other)
	back("the address that a user took from another node")
	assert.Equal(t, "ipip-tunnel-addr-n2", w.holder(other))
	modify(w, "Node", "n1", func(n *api.Node) { n.Spec.VXLANTunnelMACAddrV6 = "" })
	eventually(t, "its Ethernet address", func() bool { return get[*api.Node](w, "Node", "n1").Spec.VXLANTunnelMACAddrV6 == mac })

	// IPAM forgets it.
	a := alloc.New(w.store, alloc.Options{})
	_, err := a.Release(t.Context(), block.Release{Addr: netip.MustParseAddr(mine)})
	require.NoError(t, err)
	mine = right("an address after the allocation was deleted")
	for _, b := range w.blocks() {
		if b.Contains(netip.MustParseAddr(mine)) && !b.Contains(netip.MustParseAddr(other)) {
			_, err := w.store.Delete(t.Context(), api.Key{Kind: "IPAMBlock", Name: b.String()}, datastore.Precondition{})
			require.NoError(t, err)
		}
	}
	right("an address after the block was lost")

	// The pool does not serve it any more, then another one does, then none.
	modify(w, "IPPool", "a", func(p *api.IPPool) { p.Spec.AllowedUses = []api.IPPoolUse{api.UseWorkload} })
	eventually(t, "no address", func() bool { now, _, _ := w.tunnels("n1"); return now == "" })
	assert.Contains(t, w.holder(mine), "is not assigned")
	w.create(pool("b", "10.78.0.0/24", ipip))
	now := right("an address of the new pool")
	assert.True(t, netip.MustParsePrefix("10.78.0.0/24").Contains(netip.MustParseAddr(now)))
	modify(w, "IPPool", "b", func(p *api.IPPool) { p.Spec.NodeSelector = "rack == 'b'" })
	eventually(t, "no address", func() bool { now, _, _ := w.tunnels("n1"); return now == "" })
	modify(w, "Node", "n1", func(n *api.Node) { n.Labels = map[string]string{"rack": "b"} })
	right("an address after the node was labelled")

	// Its end.
	last, _, six := w.tunnels("n1")
	_, err = w.store.Delete(t.Context(), api.Key{Kind: "Node", Name: "n1"}, datastore.Precondition{})
	require.NoError(t, err)
	eventually(t, "nothing left", func() bool {
		return w.holder(last) != "ipip-tunnel-addr-n1" && w.holder(six) != "vxlan-v6-tunnel-addr-n1"
	})
}

// blocks lists the blocks there are.
func (w *world) blocks() (out []netip.Prefix) {
	w.t.Helper()
	l, err := w.store.List(w.t.Context(), "IPAMBlock", datastore.ListOptions{})
	require.NoError(w.t, err)
	for _, o := range l.Items {
		out = append(out, netip.MustParsePrefix(o.(*api.IPAMBlock).Spec.CIDR))
	}
	return out
}

// TestReaddressedNode gives a running node another address: the views of the others, felix's and confd's, follow.
func TestReaddressedNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	reserve(t, n1, "c1")
	felix := w.follow("n2", []string{r.address})
	confd := w.follow("n2", []string{r.address}, func(c *client.Config, _ *follower) { c.View = client.BGPView })
	routes := map[view.Key]bool{} // that felix knows; one to what was reserved just now may come late
	for _, it := range felix.next().Updates {
		routes[it.Key()] = true
	}
	confd.next()
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.9.0.1/16")})
	for {
		b := felix.next()
		for _, it := range b.Updates {
			if k := it.Key(); k.Kind == view.KindRoute {
				require.False(t, routes[k], "%v comes again; routes name nodes, not addresses", k)
				routes[k] = true
			}
			if n, ok := it.(view.Node); ok && n.Name == "n1" && n.IPv4.String() == "10.9.0.1/16" {
				goto bgp
			}
		}
	}
bgp:
	for {
		for _, it := range confd.next().Updates {
			if res, ok := it.(view.Resource); ok {
				if n, ok := res.Object.(*api.Node); ok && n.Name == "n1" && n.Spec.BGP.IPv4Address == "10.9.0.1/16" {
					return
				}
			}
		}
	}
}
