package alloc

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func ipip(s *api.IPPoolSpec)  { s.IPIPMode = api.IPIPAlways }
func vxlan(s *api.IPPoolSpec) { s.VXLANMode = api.VXLANCrossSubnet }

// fit is TunnelsFit by what is stored.
func (w world) fit(current map[Tunnel]netip.Addr) bool {
	pools, err := list[*api.IPPool](w.t.Context(), w.ds, kindPool, "")
	require.NoError(w.t, err)
	labels, err := w.nodeLabels(w.t.Context(), "n")
	require.NoError(w.t, err)
	return TunnelsFit(pools, "n", labels, current, func(cidr netip.Prefix) *api.IPAMBlock {
		b, err := get[*api.IPAMBlock](w.t.Context(), w.ds, api.Key{Kind: kindBlock, Name: api.BlockName(cidr)})
		if err != nil {
			return nil
		}
		return b
	})
}

func (w world) ensure(current map[Tunnel]netip.Addr) map[Tunnel]netip.Addr {
	w.t.Helper()
	fit := w.fit(current)
	got, err := w.EnsureTunnels(w.t.Context(), "n", current)
	require.NoError(w.t, err)
	if fit {
		require.Equal(w.t, current, got, "they were said to be right")
	}
	require.True(w.t, w.fit(got), "now they are right")
	require.NoError(w.t, w.f.broken())
	require.Empty(w.t, w.f.surplus())
	return got
}

func TestTunnelAddresses(t *testing.T) {
	none := netip.Addr{}
	w := newWorld(t, aNode("n", "rack=a"),
		aPool("a-workloads", "10.0.0.0/24", 30, ipip, func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseWorkload} }),
		aPool("b-elsewhere", "10.1.0.0/24", 30, ipip, func(s *api.IPPoolSpec) { s.NodeSelector = "rack == 'b'" }),
		aPool("c-manual", "10.2.0.0/24", 30, ipip, func(s *api.IPPoolSpec) { m := api.AssignManual; s.AssignmentMode = &m }),
		aPool("d-six", "fd00::/120", 122, vxlan))
	got := w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: none, TunnelVXLAN: none, TunnelVXLAN6: none})
	first := got[TunnelIPIP]
	assert.True(t, prefix("10.2.0.0/24").Contains(first), "pools are named, so Manual does not matter; uses and nodeSelector do: %s", first)
	assert.True(t, prefix("fd00::/120").Contains(got[TunnelVXLAN6]))
	assert.Equal(t, none, got[TunnelVXLAN], "no pool needs it")
	has, err := w.Address(t.Context(), first)
	require.NoError(t, err)
	assert.Equal(t, "ipip-tunnel-addr-n", has.Handle)
	assert.Equal(t, map[string]string{"node": "n", "type": "ipipTunnelAddress"}, has.Owner)
	assert.Contains(t, w.handles(), "vxlan-v6-tunnel-addr-n")

	assert.Equal(t, got, w.ensure(got), "kept")
	assert.NotEqual(t, none, w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: none})[TunnelIPIP])
	assert.Len(t, w.handles(), 2, "what the Node had forgotten was released")

	// The pool goes: a new address from another one, the old one released. Then none is needed any more.
	now := w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: none})
	w.f.put(aPool("c-manual", "10.2.0.0/24", 30, ipip, func(s *api.IPPoolSpec) { s.Disabled = true }))
	w.f.put(aPool("e-new", "10.3.0.0/24", 30, ipip))
	moved := w.ensure(now)
	assert.True(t, prefix("10.3.0.0/24").Contains(moved[TunnelIPIP]))
	_, err = w.Address(t.Context(), now[TunnelIPIP])
	require.ErrorIs(t, err, ErrNotAssigned)
	w.f.put(aPool("e-new", "10.3.0.0/24", 30, vxlan))
	assert.Equal(t, map[Tunnel]netip.Addr{TunnelIPIP: none}, w.ensure(moved))
	assert.Equal(t, []string{"vxlan-v6-tunnel-addr-n"}, keys(w.handles()))

	both := w.ensure(map[Tunnel]netip.Addr{TunnelVXLAN: none, TunnelWireGuard: none})
	assert.NotEqual(t, both[TunnelVXLAN], both[TunnelWireGuard])
	require.NoError(t, w.ReleaseTunnels(t.Context(), "n"))
	assert.Empty(t, w.handles())
	require.NoError(t, w.ReleaseTunnels(t.Context(), "n"))
}

func keys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}

func TestTunnelAddressThatIsNotTheNodes(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/24", 30, ipip))
	// Held by a pod: a new one, and the pod keeps its own.
	require.NoError(t, w.specific("10.0.0.1", "o"))
	mine := w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: addr("10.0.0.1")})[TunnelIPIP]
	assert.NotEqual(t, addr("10.0.0.1"), mine)
	has, err := w.Address(t.Context(), addr("10.0.0.1"))
	require.NoError(t, err)
	assert.Equal(t, "s-o", has.Handle)

	// A pod of old without attributes has a handle all the same.
	require.NoError(t, w.specific("10.0.0.2", "o", func(r *Specific) { r.Attributes = nil }))
	assert.NotEqual(t, addr("10.0.0.2"), w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: addr("10.0.0.2")})[TunnelIPIP])

	// Not assigned at all: by handle released, then a new one.
	assert.NotEqual(t, addr("10.0.0.200"), w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: addr("10.0.0.200")})[TunnelIPIP])

	// Neither handle nor attributes: an old tunnel address, registered anew; or released when not needed.
	require.NoError(t, w.ReleaseTunnels(t.Context(), "n"))
	bare := func(r *Specific) { r.Handle, r.Attributes, r.Use = "", nil, "" }
	require.NoError(t, w.specific("10.0.0.77", "n", bare))
	assert.Equal(t, addr("10.0.0.77"), w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: addr("10.0.0.77")})[TunnelIPIP])
	has, err = w.Address(t.Context(), addr("10.0.0.77"))
	require.NoError(t, err)
	assert.Equal(t, "ipip-tunnel-addr-n", has.Handle)
	require.NoError(t, w.specific("10.0.0.78", "n", bare))
	assert.Equal(t, netip.Addr{}, w.ensure(map[Tunnel]netip.Addr{TunnelVXLAN: addr("10.0.0.78")})[TunnelVXLAN])
	_, err = w.Address(t.Context(), addr("10.0.0.78"))
	require.ErrorIs(t, err, ErrNotAssigned)
	w.ensure(map[Tunnel]netip.Addr{TunnelVXLAN: addr("10.0.0.1")})
	_, err = w.Address(t.Context(), addr("10.0.0.1"))
	require.NoError(t, err, "a pod's address is never released")
}

func TestTunnelsAreAllOrNothing(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30, ipip), aPool("six", "fd00::/126", 126, vxlan), aReservation("fd00::/126"))
	_, err := w.EnsureTunnels(t.Context(), "n", map[Tunnel]netip.Addr{TunnelIPIP: {}, TunnelVXLAN6: {}})
	require.EqualError(t, err, "address of tunnel vxlanV6TunnelAddress on node n: Assigned 0 out of 1 requested IPv6 addresses; No IPs available in pools: [fd00::/126]; "+
		"Pools tried: six (fd00::/126): 0 of 4 addresses free, 0 in use, 4 reserved")
	assert.Empty(t, w.handles())

	w.f.before = func(_ context.Context, c call) error {
		if c.key.Kind == kindNode {
			return errBroken
		}
		return nil
	}
	_, err = w.EnsureTunnels(t.Context(), "n", nil)
	require.ErrorIs(t, err, errBroken)
}

// While a pool's mode changes, the tunnels of the old and the new one are needed; and an address that a Node has lost
// comes back.
func TestTunnelsOfAPoolThatChangesItsMode(t *testing.T) {
	changing := func(ways ...api.Encapsulation) *api.IPPool {
		p := aPool("p", "10.0.0.0/24", 30, vxlan)
		p.Status = &api.IPPoolStatus{Transport: &api.PoolTransport{Send: ways[0], Receive: ways}}
		return p
	}
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30, ipip))
	before := w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: {}, TunnelVXLAN: {}})
	assert.False(t, before[TunnelVXLAN].IsValid())
	w.f.put(changing(api.EncapsulationIPIP))
	during := w.ensure(before)
	assert.Equal(t, before[TunnelIPIP], during[TunnelIPIP])
	assert.True(t, during[TunnelVXLAN].IsValid())
	assert.Equal(t, during, w.ensure(map[Tunnel]netip.Addr{TunnelIPIP: addr("192.0.2.1"), TunnelVXLAN: {}}), "by their handles")
	w.f.put(changing(api.EncapsulationVXLAN))
	after := w.ensure(during)
	assert.Equal(t, map[Tunnel]netip.Addr{TunnelIPIP: {}, TunnelVXLAN: during[TunnelVXLAN]}, after)
	assert.Equal(t, []string{"vxlan-tunnel-addr-n"}, keys(w.handles()))

	needs := TunnelNeeds([]*api.IPPool{changing(api.EncapsulationNone, api.EncapsulationIPIP)})
	assert.True(t, needs(TunnelIPIP, nil))
	assert.True(t, needs(TunnelVXLAN, nil))
	assert.False(t, needs(TunnelVXLAN6, nil))
}
