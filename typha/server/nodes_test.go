package server_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
)

func pool(name, cidr string, change ...func(*api.IPPoolSpec)) *api.IPPool {
	p := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.IPPoolSpec{CIDR: cidr}}
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func vxlan(s *api.IPPoolSpec) { s.VXLANMode = api.VXLANAlways }
func ipip(s *api.IPPoolSpec)  { s.IPIPMode = api.IPIPAlways }

func (w *world) create(o api.Object) {
	w.t.Helper()
	_, err := w.store.Create(w.t.Context(), o)
	require.NoError(w.t, err)
}

func get[T api.Object](w *world, kind, name string) T {
	w.t.Helper()
	o, err := w.store.Get(w.t.Context(), api.Key{Kind: kind, Name: name})
	require.NoError(w.t, err)
	return o.(T)
}

func register(t testing.TB, c *client.Client, r client.Registration) client.Registered {
	t.Helper()
	got, err := c.Register(t.Context(), r)
	require.NoError(t, err)
	return got
}

func TestRegister(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	n1 := w.node("n1", r.address)
	_, err := n1.Register(t.Context(), client.Registration{ReadOnly: true})
	require.ErrorIs(t, err, client.ErrNotFound)

	got := register(t, n1, client.Registration{
		IPv4: netip.MustParsePrefix("10.30.0.206/24"), ASNumber: 64600,
		Interfaces: []client.Interface{{Name: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.206")}}},
		Pools:      []*api.IPPool{pool("default-ipv4-ippool", "192.168.0.0/16", vxlan)},
		OrchRefs:   []api.OrchRef{{Orchestrator: "k8s", NodeName: "n1"}},
	})
	assert.Equal(t, []string{"default-ipv4-ippool"}, got.PoolsCreated)
	stored := get[*api.Node](w, "Node", "n1")
	assert.Equal(t, stored.Spec, got.Node.Spec)
	assert.Equal(t, "10.30.0.206/24", stored.Spec.BGP.IPv4Address)
	assert.Equal(t, api.ASNumber(64600), *stored.Spec.BGP.ASNumber)
	assert.Equal(t, []api.NodeInterface{{Name: "eth0", Addresses: []string{"10.30.0.206"}}}, stored.Spec.Interfaces)
	assert.Equal(t, []api.NodeAddress{{Address: "10.30.0.206/24", Type: api.AddressCalicoNode}}, stored.Spec.Addresses)
	assert.NotEmpty(t, stored.Spec.IPv4VXLANTunnelAddr, "the pool wants a tunnel")
	assert.Equal(t, "66:40:b3:ea:b6:3f", macOf("n1"), "the rule itself")
	assert.Equal(t, macOf("n1"), stored.Spec.VXLANTunnelMACAddr)
	assert.Empty(t, stored.Spec.BGP.IPv4IPIPTunnelAddr)

	again := register(t, n1, client.Registration{
		IPv4: netip.MustParsePrefix("10.30.0.206/24"), Interfaces: []client.Interface{{Name: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.206")}}},
		Pools: []*api.IPPool{pool("other", "10.77.0.0/16")},
	})
	assert.Empty(t, again.PoolsCreated, "there is a pool of the family")
	assert.Equal(t, stored.ResourceVersion, again.Node.ResourceVersion, "what changes nothing is not written")
	assert.Equal(t, api.ASNumber(64600), *again.Node.Spec.BGP.ASNumber, "what is not said stays")

	cleared := register(t, n1, client.Registration{ClearIPv4: true, IPv6: netip.MustParsePrefix("fd00:30::206/64")})
	assert.Empty(t, cleared.Node.Spec.BGP.IPv4Address)
	assert.Equal(t, "fd00:30::206/64", cleared.Node.Spec.BGP.IPv6Address)
	read := register(t, n1, client.Registration{ReadOnly: true})
	assert.Equal(t, cleared.Node.Spec, read.Node.Spec)
}

func TestAddressOfAnotherNodeIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	register(t, w.node("n1", r.address), client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24"), IPv6: netip.MustParsePrefix("fd00::1/64")})
	n2 := w.node("n2", r.address)
	for _, reg := range []client.Registration{
		{IPv4: netip.MustParsePrefix("10.0.0.1/16")}, {IPv6: netip.MustParsePrefix("fd00::1/128")},
	} {
		_, err := n2.Register(t.Context(), reg)
		require.ErrorIs(t, err, client.ErrExists)
		assert.Contains(t, err.Error(), "node n1")
		reg.SkipAddressCheck = true
		register(t, n2, reg)
	}
}

func TestRegisterRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	n1 := w.node("n1", r.address)
	for name, reg := range map[string]client.Registration{
		"IPv6 as IPv4": {IPv4: netip.MustParsePrefix("fd00::1/64")},
		"bad pool":     {Pools: []*api.IPPool{pool("p", "192.168.0.1/16")}},
	} {
		_, err := n1.Register(t.Context(), reg)
		require.ErrorIs(t, err, client.ErrInvalid, name)
	}
}

func TestTunnelAddressesFollowThePools(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	stored := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: api.NodeSpec{VXLANTunnelMACAddr: "66:01:02:03:04:05"}}
	w.create(stored)
	got := register(t, w.node("n1", r.address), client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	assert.Empty(t, got.Node.Spec.IPv4VXLANTunnelAddr)
	w.follow("n1", []string{r.address}).next()

	w.create(pool("a", "192.168.0.0/24", vxlan))
	eventually(t, "a VXLAN address", func() bool { return get[*api.Node](w, "Node", "n1").Spec.IPv4VXLANTunnelAddr != "" })
	n := get[*api.Node](w, "Node", "n1")
	assert.Equal(t, "66:01:02:03:04:05", n.Spec.VXLANTunnelMACAddr, "a stored one wins")
	block := get[*api.IPAMHandle](w, "IPAMHandle", "vxlan-tunnel-addr-n1")
	assert.Len(t, block.Spec.Block, 1)

	w.create(pool("b", "192.168.1.0/24", ipip))
	eventually(t, "an IPIP address", func() bool { return get[*api.Node](w, "Node", "n1").Spec.BGP.IPv4IPIPTunnelAddr != "" })

	w.setMode("a", api.IPIPNever, api.VXLANNever)
	eventually(t, "no VXLAN address", func() bool { return get[*api.Node](w, "Node", "n1").Spec.IPv4VXLANTunnelAddr == "" })
	_, err := w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: "vxlan-tunnel-addr-n1"})
	require.ErrorIs(t, err, datastore.ErrNotFound)
	assert.Equal(t, "66:01:02:03:04:05", get[*api.Node](w, "Node", "n1").Spec.VXLANTunnelMACAddr)
}

func TestStatusIsStoredOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	n1 := w.node("n1", r.address)
	require.ErrorIs(t, n1.ReportStatus(t.Context(), nil, nil), client.ErrNotFound)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	say := func() string {
		require.NoError(t, n1.ReportStatus(t.Context(),
			[]client.Condition{{Type: "DataplaneReady", Status: true, Reason: "InSync"}}, map[string]string{"nftables": "1.0"}))
		return get[*api.Node](w, "Node", "n1").ResourceVersion
	}
	first := say()
	n := get[*api.Node](w, "Node", "n1")
	require.Len(t, n.Status.Conditions, 1)
	assert.Equal(t, "DataplaneReady True InSync", shown(n.Status.Conditions[0]))
	assert.Equal(t, map[string]string{"nftables": "1.0"}, n.Status.Kernel.Features)
	assert.Equal(t, first, say())

	conditions := func() []string {
		n := get[*api.Node](w, "Node", "n1")
		assert.Equal(t, map[string]string{"nftables": "1.0"}, n.Status.Kernel.Features)
		var out []string
		for _, c := range n.Status.Conditions {
			out = append(out, shown(c))
		}
		return out
	}
	peers := client.Condition{Type: api.ConditionBGPPeersReady, Reason: api.ReasonPeersDown, Message: "1 of 2"}
	require.NoError(t, n1.ReportPeers(t.Context(), peers))
	say()
	assert.Equal(t, []string{"BGPPeersReady False PeersDown 1 of 2", "DataplaneReady True InSync"}, conditions(), "each has its own")
	require.ErrorIs(t, n1.ReportPeers(t.Context(), client.Condition{Type: "DataplaneReady", Reason: "NotYours"}), client.ErrDenied)
	assert.Equal(t, []string{"BGPPeersReady False PeersDown 1 of 2", "DataplaneReady True InSync"}, conditions())
	require.NoError(t, n1.ReportPeers(t.Context(), peers))
	require.NoError(t, n1.ReportPeers(t.Context()))
	assert.Equal(t, []string{"DataplaneReady True InSync"}, conditions(), "it has no sessions any more")
}

func TestEveryNodeLearnsOfTheOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	f := w.follow("n1", []string{r.address})
	f.next()
	register(t, w.node("n2", r.address), client.Registration{IPv4: netip.MustParsePrefix("10.0.0.2/24")})
	for {
		for _, it := range f.next().Updates {
			if n, ok := it.(view.Node); ok && n.Name == "n2" {
				assert.Equal(t, "10.0.0.2/24", n.IPv4.String())
				return
			}
		}
	}
}

func TestChangeOfModeWaitsForAllNodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	reserve(t, n1, "c1") // makes a block, and with it a route
	quick := w.follow("n1", []string{r.address})
	slow := w.follow("n2", []string{r.address}, func(_ *client.Config, f *follower) { f.hold = true })
	// route is the next word on the block's route, and the batch that it came with.
	route := func(f *follower) (view.Route, client.Batch) {
		for {
			b := f.next()
			for _, it := range b.Updates {
				if x, ok := it.(view.Route); ok && x.Type == view.RouteBlock && x.Node == "n1" && x.Pool == "default" {
					return x, b
				}
			}
			b.Applied()
		}
	}
	begin, b := route(slow)
	b.Applied()
	route(quick)
	require.Equal(t, view.TunnelNone, begin.Send)

	w.setMode("default", api.IPIPNever, api.VXLANAlways)
	both := []view.Tunnel{view.TunnelNone, view.TunnelVXLAN}
	first, b := route(slow)
	assert.Equal(t, view.TunnelNone, first.Send, "receivers first")
	assert.Equal(t, both, first.Receive)
	got, _ := route(quick)
	assert.Equal(t, first, got)
	for quiet := time.After(300 * time.Millisecond); quiet != nil; {
		select {
		case early := <-quick.batches:
			for _, it := range early.Updates { // tunnel addresses come meanwhile
				assert.NotEqual(t, first.Key(), it.Key(), "it went on before all had applied")
			}
		case <-quiet:
			quiet = nil
		}
	}
	applied := time.Now()
	b.Applied()
	second, b := route(slow)
	took := time.Since(applied)
	assert.Equal(t, view.TunnelVXLAN, second.Send)
	assert.Equal(t, both, second.Receive)
	applied = time.Now()
	b.Applied()
	third, b := route(slow)
	took = min(took, time.Since(applied)) // the machine may rest in one of them
	assert.Equal(t, []view.Tunnel{view.TunnelVXLAN}, third.Receive)
	b.Applied()
	assert.Less(t, took, 4*time.Second, "not by the clock, which takes 5 s for each step")
}
