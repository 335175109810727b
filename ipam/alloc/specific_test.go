package alloc

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

func (w world) specific(a, node string, change ...func(*Specific)) error {
	r := Specific{Addr: addr(a), Node: node, Handle: "s-" + node, Attributes: map[string]string{api.OwnerNode: node}, Use: api.UseWorkload}
	for _, c := range change {
		c(&r)
	}
	err := w.AssignIP(w.t.Context(), r)
	require.NoError(w.t, w.f.broken())
	return err
}

func TestAssignIP(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aReservation("10.0.0.0/8"),
		aPool("p", "10.0.0.0/24", 30, func(s *api.IPPoolSpec) { m := api.AssignManual; s.AssignmentMode = &m; s.NodeSelector = "!all()" }),
		aPool("tunnels", "10.1.0.0/24", 30, func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseTunnel} }),
		aPool("off", "10.2.0.0/24", 30, func(s *api.IPPoolSpec) { s.Disabled = true }))
	require.NoError(t, w.specific("10.0.0.9", "n"), "whatever reservations, selectors and mode say")
	assert.Equal(t, map[string]string{"host/n/10.0.0.8/30": "confirmed"}, w.affinities())
	assert.Equal(t, map[string]map[string]int{"s-n": {"10.0.0.8/30": 1}}, w.handles())

	require.NoError(t, w.specific("10.0.0.10", "o"), "another's block: borrowed")
	assert.Len(t, w.affinities(), 1)
	require.NoError(t, w.specific("::ffff:10.0.0.11", "o"), "the same family in disguise")

	err := w.specific("10.0.0.9", "o")
	var taken *block.TakenError
	require.ErrorAs(t, err, &taken)
	require.ErrorContains(t, err, "10.0.0.9 is already assigned in block 10.0.0.8/30, under handle s-n")
	assert.Empty(t, w.f.surplus(), "the handle is not counted up for nothing")

	require.EqualError(t, w.specific("10.9.0.1", "n"), "cannot find a qualified ippool: the provided IP address 10.9.0.1 is not in a configured pool; "+
		"the IPv4 pools are: off (10.2.0.0/24), p (10.0.0.0/24), tunnels (10.1.0.0/24)")
	require.ErrorContains(t, w.specific("fd00::1", "n"), "the provided IP address fd00::1 is not in a configured pool; the IPv6 pools are: none")
	require.ErrorContains(t, w.specific("10.2.0.1", "n"), "the provided IP address 10.2.0.1 is in pool off, which is not enabled: it is disabled")
	require.EqualError(t, w.specific("10.1.0.1", "n"),
		`cannot find a qualified ippool: IP address 10.1.0.1 is in IP pool "tunnels", which is not allowed for use "Workload" (allowedUses: [Tunnel])`)
	require.NoError(t, w.specific("10.1.0.1", "n", func(r *Specific) { r.Use = "" }), "no use, no check")
	require.ErrorContains(t, w.specific("10.0.0.1", ""), "must specify the node")
}

func TestAssignIPWithStrictAffinity(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/24", 30), aConfig(strict))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	require.NoError(t, w.specific("10.0.0.2", "n"))
	require.ErrorIs(t, w.specific("10.0.0.3", "o"), ErrStrictAffinity)
	require.NoError(t, w.ReleaseNode(t.Context(), "n", false))
	require.ErrorIs(t, w.specific("10.0.0.3", "n"), ErrStrictAffinity, "nobody's block")
	assert.Empty(t, w.f.surplus())
}

func TestAssignIPDuringCooldown(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30), aConfig(func(s *api.IPAMConfigurationSpec) { s.IPCooldownSeconds = 30 }))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	_, err := w.Release(t.Context(), block.Release{Addr: addr("10.0.0.1")})
	require.NoError(t, err)
	require.ErrorContains(t, w.specific("10.0.0.1", "n"), "10.0.0.1 is already assigned in block 10.0.0.0/30, cooling down")
	_, err = w.Address(t.Context(), addr("10.0.0.1"))
	require.ErrorIs(t, err, ErrCooling)
	require.EqualError(t, err, "10.0.0.1 is in cooldown until 10:00:30 UTC")
	w.Advance(30 * time.Second)
	_, err = w.Address(t.Context(), addr("10.0.0.1"))
	require.ErrorIs(t, err, ErrNotAssigned)
	require.NoError(t, w.specific("10.0.0.1", "n"))
}

func TestAssignIPInBlocksOfAnotherSize(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 28))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	w.f.put(aPool("p", "10.0.0.0/24", 30))
	require.NoError(t, w.specific("10.0.0.6", "n"))
	assert.Len(t, w.blocks(), 1)

	w = newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	w.f.put(aPool("p", "10.0.0.0/24", 28))
	require.ErrorContains(t, w.specific("10.0.0.6", "n"), "block 10.0.0.0/28 cannot be made: a block of another size, or a damaged one, is in its place")
	require.NoError(t, w.specific("10.0.0.2", "n"))
}

func TestReassign(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/24", 30), aConfig(strict))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	require.NoError(t, w.specific("10.0.0.2", "n"))
	require.NoError(t, w.ReleaseNode(t.Context(), "n", false)) // nobody's block now, and strictAffinity: no matter
	to := block.Owner{Handle: "pod\r\neth0", Attributes: map[string]string{api.OwnerPod: "p"}}
	for range 2 { // the second time nothing is left to do
		require.NoError(t, w.Reassign(t.Context(), addr("10.0.0.1"), "s-n", to))
		assert.Equal(t, map[string]map[string]int{"s-n": {"10.0.0.0/30": 1}, "pod": {"10.0.0.0/30": 1}}, w.handles())
	}
	require.NoError(t, w.f.broken())
	has, err := w.Address(t.Context(), addr("10.0.0.1"))
	require.NoError(t, err)
	assert.Equal(t, "p", has.Owner[api.OwnerPod])

	var conflict *block.ConflictError
	require.ErrorAs(t, w.Reassign(t.Context(), addr("10.0.0.1"), "s-n", block.Owner{Handle: "third"}), &conflict)
	require.ErrorIs(t, w.Reassign(t.Context(), addr("10.0.0.3"), "s-n", to), ErrNotAssigned)
	require.ErrorIs(t, w.Reassign(t.Context(), addr("10.0.0.99"), "s-n", to), ErrNotAssigned)
	assert.Empty(t, w.f.surplus())
}

// TestContention lets somebody else always be faster: the allocator gives up with an error that says so.
func TestContention(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	w.assign("n", 1)
	updates := 0
	w.f.before = func(_ context.Context, c call) error {
		if c.op == "update" && c.key.Kind == kindBlock {
			updates++
			w.f.put(w.f.objects[c.key])
		}
		return nil
	}
	err := w.specific("10.0.0.1", "n")
	for name := range w.blocks() {
		err = w.specific(prefix(name).Addr().Next().String(), "n")
	}
	require.ErrorIs(t, err, ErrContention)
	assert.ErrorContains(t, err, "excessive concurrent IPAM requests: others changed the data each of 100 times while trying to assign addresses from block 10.0.0.")
	assert.GreaterOrEqual(t, updates, 100)
	w.f.before = nil
	assert.Empty(t, w.f.surplus())
}

// TestWhoHasARequestedAddress: the error tells by whom it is taken.
func TestWhoHasARequestedAddress(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 28))
	for i, tc := range []struct {
		handle     string
		attributes map[string]string
		want       string
	}{
		{"net.1", map[string]string{"node": "n", "pod": "web-0", "namespace": "shop"}, "under handle net.1 (pod shop/web-0 on node n)"},
		{"net.2", map[string]string{"node": "n"}, "under handle net.2 (a workload on node n)"},
		{"warm-n-7", map[string]string{"node": "n", "type": "warmPool"}, "under handle warm-n-7 (no pod yet: node n holds it ready (warm pool))"},
		{"ipip-tunnel-addr-n", map[string]string{"node": "n", "type": string(TunnelIPIP)}, "under handle ipip-tunnel-addr-n (the IP-in-IP tunnel on node n)"},
		{"vxlan-tunnel-addr-n", map[string]string{"node": "n", "type": string(TunnelVXLAN)}, "(the VXLAN tunnel on node n)"},
		{"vxlan-v6-tunnel-addr-n", map[string]string{"node": "n", "type": string(TunnelVXLAN6)}, "(the VXLAN tunnel (IPv6) on node n)"},
		{"wireguard-tunnel-addr-n", map[string]string{"node": "n", "type": string(TunnelWireGuard)}, "(the WireGuard tunnel on node n)"},
		{"wireguard-v6-tunnel-addr-n", map[string]string{"node": "n", "type": string(TunnelWireGuard6)}, "(the WireGuard tunnel (IPv6) on node n)"},
		{"net.vmi.shop.vm", map[string]string{"node": "n", "vmi-name": "vm", "namespace": "shop"}, "(virtual machine shop/vm)"},
		{"lb-x", map[string]string{"service": "web", "namespace": "shop"}, "(service shop/web)"},
		{"windows-reserved-ipam-handle", nil, "(the Windows host of the block)"},
		{"", nil, "without a handle; choose another one"},
	} {
		a := addr("10.0.0.1")
		for range i {
			a = a.Next()
		}
		take := Specific{Addr: a, Node: "n", Handle: tc.handle, Attributes: tc.attributes}
		require.NoError(t, w.AssignIP(t.Context(), take))
		require.ErrorContains(t, w.AssignIP(t.Context(), take), fmt.Sprintf("address %s is already assigned in block 10.0.0.0/28, ", a))
		require.ErrorContains(t, w.AssignIP(t.Context(), take), tc.want)
	}
}
