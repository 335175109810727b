package server_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
)

// seen is what a follower has been told of nodes and of one pool's blocks.
type seen struct {
	*follower
	nodes map[string]view.Node
	route view.Route
}

func (w *world) see(node, typha string, hold bool) *seen {
	return &seen{
		follower: w.follow(node, []string{typha}, func(_ *client.Config, f *follower) { f.hold = hold }), nodes: map[string]view.Node{},
	}
}

// until takes batches until something holds, and returns the last one, which is not acknowledged if batches are held.
func (s *seen) until(holds func() bool) client.Batch {
	s.t.Helper()
	for {
		b := s.next()
		for _, it := range b.Updates {
			switch x := it.(type) {
			case view.Node:
				s.nodes[x.Name] = x
			case view.Route:
				if x.Type == view.RouteBlock && x.Node == "n1" {
					s.route = x
				}
			}
		}
		if holds() {
			return b
		}
		b.Applied()
	}
}

// TestTunnelsAreThereBeforeTheyAreUsed changes a pool from IP-in-IP to VXLAN. Nobody is told to use VXLAN before all nodes
// have its addresses, and nobody's address of tunl0 goes before all have stopped using it.
func TestTunnelsAreThereBeforeTheyAreUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	w.setMode("default", api.IPIPAlways, api.VXLANNever)
	reserve(t, n1, "c1")
	slow, quick := w.see("n2", r.address, true), w.see("n1", r.address, false)
	carried := func(send view.Tunnel, receive ...view.Tunnel) func() bool {
		return func() bool {
			return slow.route.Send == send && assert.ObjectsAreEqual(receive, slow.route.Receive)
		}
	}
	slow.until(func() bool {
		return carried(view.TunnelIPIP, view.TunnelIPIP)() && slow.nodes["n1"].IPIPAddr.IsValid() && slow.nodes["n2"].IPIPAddr.IsValid()
	}).Applied()
	quick.until(func() bool { return quick.route.Send == view.TunnelIPIP && len(quick.route.Receive) == 1 })

	w.setMode("default", api.IPIPNever, api.VXLANCrossSubnet)
	all := []view.Tunnel{view.TunnelNone, view.TunnelIPIP, view.TunnelVXLAN}
	slow.until(carried(view.TunnelIPIP, all...)).Applied()
	b := slow.until(carried(view.TunnelVXLAN, all...))
	for _, name := range []string{"n1", "n2"} {
		n := slow.nodes[name]
		assert.True(t, n.VXLANAddr4.IsValid(), "%s: used before its address is known", name)
		assert.NotEmpty(t, n.VXLANMAC4, name)
		assert.True(t, n.IPIPAddr.IsValid(), "%s: its address is gone while packets may come", name)
	}
	p := get[*api.IPPool](w, "IPPool", "default")
	assert.Equal(t, &api.PoolTransport{Send: "IPIP", Receive: []api.Encapsulation{"None", "IPIP", "VXLAN"}}, p.Status.Transport)
	assert.Equal(t, "ipip-tunnel-addr-n1", w.holder(slow.nodes["n1"].IPIPAddr.String()), "nobody else may get it yet")
	was := slow.nodes["n1"].IPIPAddr.String()
	b.Applied()
	slow.until(carried(view.TunnelVXLAN, view.TunnelNone, view.TunnelVXLAN)).Applied()
	gone := func() bool { return !slow.nodes["n1"].IPIPAddr.IsValid() && !slow.nodes["n2"].IPIPAddr.IsValid() }
	if !gone() {
		slow.until(gone).Applied()
	}
	_, err := w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: "ipip-tunnel-addr-n1"})
	require.ErrorIs(t, err, datastore.ErrNotFound)
	assert.Contains(t, w.holder(was), "is not assigned")
	p = get[*api.IPPool](w, "IPPool", "default")
	assert.Equal(t, &api.PoolTransport{Send: "VXLAN", CrossSubnet: true, Receive: []api.Encapsulation{"None", "VXLAN"}}, p.Status.Transport)
}

// transport is what stands on record of a pool, nil if nothing does.
func (w *world) transport(name string) *api.PoolTransport {
	if status := get[*api.IPPool](w, "IPPool", name).Status; status != nil {
		return status.Transport
	}
	return nil
}

// TestTyphaStartsInTheMiddleOfAChange has one typha die with a change half done, and another one find a pool that was
// changed while none was there. Nodes are never told at once to send what the others may not accept yet.
func TestTyphaStartsInTheMiddleOfAChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	w.setMode("default", api.IPIPAlways, api.VXLANNever)
	reserve(t, n1, "c1")
	slow := w.see("n2", r.address, true)
	w.see("n1", r.address, false)
	slow.until(func() bool { return slow.route.Send == view.TunnelIPIP && len(slow.route.Receive) == 1 }).Applied()
	eventually(t, "a record", func() bool {
		tr := w.transport("default")
		return tr != nil && tr.Send == "IPIP" && len(tr.Receive) == 1
	})
	w.setMode("default", api.IPIPNever, api.VXLANAlways)
	both := []view.Tunnel{view.TunnelIPIP, view.TunnelVXLAN}
	slow.until(func() bool { return assert.ObjectsAreEqual(both, slow.route.Receive) }) // and does not say that it has applied it
	slow.stop()
	r.stop()

	r = w.typha()
	a, b := w.see("n1", r.address, true), w.see("n2", r.address, true)
	begin := func(s *seen) client.Batch {
		batch := s.until(func() bool { return s.route.Node != "" })
		require.Equal(t, view.TunnelIPIP, s.route.Send, "the first word")
		require.Equal(t, both, s.route.Receive)
		return batch
	}
	begin(a).Applied()
	begin(b).Applied()
	for _, s := range []*seen{a, b} {
		s.until(func() bool { return s.route.Send == view.TunnelVXLAN && len(s.route.Receive) == 2 }).Applied()
	}
	for _, s := range []*seen{a, b} {
		s.until(func() bool { return len(s.route.Receive) == 1 }).Applied()
	}
	r.stop()

	// Changed while nobody looked.
	w.setMode("default", api.IPIPNever, api.VXLANNever)
	r = w.typha()
	c := w.see("n1", r.address, false)
	c.until(func() bool { return c.route.Node != "" })
	require.Equal(t, view.TunnelVXLAN, c.route.Send)
	require.Equal(t, []view.Tunnel{view.TunnelNone, view.TunnelVXLAN}, c.route.Receive)
}

// TestSeveralPoolsChangeAtOnce has an IPv4 and an IPv6 pool on their way at the same time, one of them back again.
func TestSeveralPoolsChangeAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	w.create(pool("six", "fd00:77::/112"))
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24"), IPv6: netip.MustParsePrefix("fd00::1/64")})
	_, err := n1.Reserve(t.Context(), client.Reserve{Count4: 1, Count6: 1, Owner: &client.Owner{Handle: "net.c1"}})
	require.NoError(t, err)
	w.see("n2", r.address, false)
	quick := w.see("n1", r.address, false)
	routes := map[string]view.Route{}
	take := func(holds func() bool) {
		t.Helper()
		for !holds() {
			for _, it := range quick.next().Updates {
				if x, ok := it.(view.Route); ok && x.Type == view.RouteBlock {
					now, was := x, routes[x.Pool]
					routes[x.Pool] = x
					if was.Pool != "" {
						assert.Contains(t, was.Receive, now.Send, "%s: %v to %v", x.Pool, was, now)
						assert.Contains(t, now.Receive, was.Send, "%s: %v to %v", x.Pool, was, now)
					}
				}
			}
		}
	}
	at := func(name string, send view.Tunnel, cross bool) bool {
		x := routes[name]
		return x.Send == send && x.CrossSubnet == cross && len(x.Receive) == map[bool]int{false: 1, true: 2}[cross && send != view.TunnelNone]
	}
	take(func() bool { return at("default", view.TunnelNone, false) && at("six", view.TunnelNone, false) })
	w.setMode("default", api.IPIPAlways, api.VXLANNever)
	w.setMode("six", "", api.VXLANAlways)
	w.setMode("default", api.IPIPNever, api.VXLANCrossSubnet)
	w.setMode("six", "", api.VXLANNever)
	w.setMode("six", "", api.VXLANCrossSubnet)
	take(func() bool { return at("default", view.TunnelVXLAN, true) && at("six", view.TunnelVXLAN, true) })
	eventually(t, "an IPv6 tunnel address", func() bool { _, _, six := w.tunnels("n1"); return six != "" })
	eventually(t, "no address for IP-in-IP", func() bool { ipip, _, _ := w.tunnels("n1"); return ipip == "" })
}
