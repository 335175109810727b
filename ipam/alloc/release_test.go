package alloc

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

func TestRelease(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30), aPool("old", "10.1.0.0/24", 30))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	require.NoError(t, w.specific("10.0.0.2", "n", func(r *Specific) { r.Handle = "other" }))
	require.NoError(t, w.specific("10.0.0.5", "n"))
	require.NoError(t, w.specific("10.1.0.1", "n"))
	require.NoError(t, w.specific("10.1.0.5", "n", func(r *Specific) { r.Handle = "" }))
	w.f.put(aPool("old", "10.1.0.0/24", 30, func(s *api.IPPoolSpec) { s.Disabled = true }))
	delete(w.f.objects, api.Key{Kind: kindPool, Name: "p"})

	unknown, err := w.Release(t.Context(),
		block.Release{Addr: addr("10.0.0.1"), Handle: "s-n"}, block.Release{Addr: addr("10.0.0.3")}, // outside every pool now
		block.Release{Addr: addr("10.1.0.1")}, block.Release{Addr: addr("10.1.0.5")}, // of a disabled pool
		block.Release{Addr: addr("10.1.0.9")}, block.Release{Addr: addr("10.9.0.9")}, // without a block
	)
	require.NoError(t, err)
	assert.Equal(t, []netip.Addr{addr("10.0.0.3"), addr("10.1.0.9"), addr("10.9.0.9")}, unknown)
	assert.Equal(t, map[string]map[string]int{"s-n": {"10.0.0.4/30": 1}, "other": {"10.0.0.0/30": 1}}, w.handles())
	require.NoError(t, w.f.broken())

	unknown, err = w.Release(t.Context())
	require.NoError(t, err)
	assert.Empty(t, unknown)
}

func TestReleaseFromBlocksOfAnotherSize(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	require.NoError(t, w.specific("10.0.0.1", "n"))
	require.NoError(t, w.specific("10.0.0.5", "n"))
	w.f.put(aPool("p", "10.0.0.0/24", 28))
	unknown, err := w.Release(t.Context(), block.Release{Addr: addr("10.0.0.1")}, block.Release{Addr: addr("10.0.0.5")}, block.Release{Addr: addr("10.0.0.9")})
	require.NoError(t, err)
	assert.Equal(t, []netip.Addr{addr("10.0.0.9")}, unknown)
	assert.Empty(t, w.handles())
}

func TestReleaseConflictStopsItsBlockOnly(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.5"} {
		require.NoError(t, w.specific(a, "n"))
	}
	has, err := w.Address(t.Context(), addr("10.0.0.2"))
	require.NoError(t, err)
	stale := has.Sequence - 1
	_, err = w.Release(t.Context(), block.Release{Addr: addr("10.0.0.1")}, block.Release{Addr: addr("10.0.0.2"), Sequence: &stale}, block.Release{Addr: addr("10.0.0.5")})
	var conflict *block.ConflictError
	require.ErrorAs(t, err, &conflict)
	assert.Equal(t, map[string]map[string]int{"s-n": {"10.0.0.0/30": 2}}, w.handles())
	_, err = w.Release(t.Context(), block.Release{Addr: addr("10.0.0.2"), Sequence: &has.Sequence, Handle: "s-n\r\neth0"})
	require.NoError(t, err)
}

func TestReleaseByHandle(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	_, err := w.ReleaseByHandle(t.Context(), "ghost")
	require.ErrorIs(t, err, datastore.ErrNotFound)
	w.assign("n", 6)
	released, err := w.ReleaseByHandle(t.Context(), "h-n\r")
	require.NoError(t, err)
	assert.Len(t, released, 6)
	assert.Empty(t, w.handles())
	none, err := w.ByHandle(t.Context(), "h-n")
	require.NoError(t, err)
	assert.Empty(t, none)

	// A handle that counts too much, or names blocks that are gone, is no obstacle.
	h := api.NewIPAMHandle("big")
	h.Spec.Block = map[string]int{"10.0.0.0/30": 7, "10.5.0.0/30": 1, "nonsense": 1}
	w.f.put(h)
	none, err = w.ByHandle(t.Context(), "big")
	require.NoError(t, err)
	assert.Empty(t, none)
	released, err = w.ReleaseByHandle(t.Context(), "big")
	require.NoError(t, err)
	assert.Empty(t, released)
}

// A request is given up while its last write is on the way. When what it may have got has been released, that write must not
// take effect any more.
func TestAWriteThatComesAfterTheReleaseIsRefused(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	w.assign("n", 1)
	h := api.NewIPAMHandle("late")
	h.Spec.Block = map[string]int{}
	for name, b := range w.blocks() {
		h.Spec.Block[b.Spec.CIDR] = 1
		w.f.put(h)
		for _, release := range []func() ([]netip.Addr, error){
			func() ([]netip.Addr, error) { return w.ReleaseByHandle(t.Context(), "late") },
			func() ([]netip.Addr, error) {
				return w.ReleaseHandles(t.Context(), func(block.Allocation, string) error { return nil }, "late", "unknown")
			},
		} {
			underWay, err := w.f.Get(t.Context(), api.Key{Kind: kindBlock, Name: name})
			require.NoError(t, err)
			released, err := release()
			require.NoError(t, err)
			require.Empty(t, released)
			_, err = w.f.Update(t.Context(), underWay)
			require.ErrorIs(t, err, datastore.ErrConflict)
		}
	}
}

func TestUnownedBlockGoesWithItsLastAddress(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	w.assign("n", 2)
	require.NoError(t, w.ReleaseNode(t.Context(), "n", false))
	require.Len(t, w.blocks(), 1)
	assert.Empty(t, w.affinities())
	a, err := w.ByHandle(t.Context(), "h-n")
	require.NoError(t, err)
	_, err = w.Release(t.Context(), block.Release{Addr: a[0].Addr()})
	require.NoError(t, err)
	require.Len(t, w.blocks(), 1)
	_, err = w.ReleaseByHandle(t.Context(), "h-n")
	require.NoError(t, err)
	assert.Empty(t, w.blocks())
}

func TestReleaseAffinity(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/24", 30), aPool("six", "fd00::/120", 122))
	w.assign("n", 1)
	w.assign("n", 1, func(r *Request) { r.Family = 6; r.Handle = "" })
	var four netip.Prefix
	for name := range w.blocks() {
		if p := prefix(name); p.Addr().Is4() {
			four = p
		}
	}
	require.ErrorIs(t, w.ReleaseAffinity(t.Context(), "n", four, true), ErrNotEmpty)
	require.NoError(t, w.ReleaseAffinity(t.Context(), "o", four, true), "not the node's: nothing to do")
	require.Len(t, w.affinities(), 2)
	require.ErrorIs(t, w.ReleaseNode(t.Context(), "n", true), ErrNotEmpty)
	require.Len(t, w.affinities(), 2)
	require.NoError(t, w.ReleasePool(t.Context(), prefix("fd00::/120")))
	require.Len(t, w.affinities(), 1)
	require.NoError(t, w.ReleaseNode(t.Context(), "n", false))
	assert.Empty(t, w.affinities())
	assert.Len(t, w.blocks(), 2, "addresses survive")
	require.NoError(t, w.f.broken())

	// What a process that died has left: an affinity without a block, a block without an affinity, both ways round.
	w.f.put(api.NewBlockAffinity(api.AffinityHost, "n", prefix("10.0.0.128/30"), api.AffinityPending))
	w.f.put(block.New(prefix("10.0.0.132/30"), "host:n", w.Now()).IPAMBlock)
	w.f.put(api.NewBlockAffinity(api.AffinityHost, "n", prefix("10.0.0.136/30"), api.AffinityPending))
	w.f.put(block.New(prefix("10.0.0.136/30"), "host:o", w.Now()).IPAMBlock)
	require.NoError(t, w.ReleaseNode(t.Context(), "n", true))
	assert.Empty(t, w.affinities())
	assert.Len(t, w.blocks(), 3)
}

// TestReleaseThatMustNotBe lets an address be assigned between the first and the second write of a release: the block
// stays the node's, and the claim is made whole again.
func TestReleaseThatMustNotBe(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/30", 30))
	w.assign("n", 1)
	_, err := w.ReleaseByHandle(t.Context(), "h-n")
	require.NoError(t, err)
	once := false
	w.f.before = func(_ context.Context, c call) error {
		if c.op == "delete" && c.key.Kind == kindBlock && !once {
			once = true
			assert.Equal(t, "pendingDeletion", w.affinities()["host/n/10.0.0.0/30"])
			other := New(w.f, Options{Now: w.Now})
			require.NoError(t, other.AssignIP(context.Background(), Specific{Addr: addr("10.0.0.1"), Node: "n"}))
		}
		return nil
	}
	require.ErrorIs(t, w.ReleaseAffinity(t.Context(), "n", prefix("10.0.0.0/30"), true), ErrNotEmpty)
	assert.True(t, once)
	assert.Equal(t, map[string]string{"host/n/10.0.0.0/30": "confirmed"}, w.affinities())
}

func TestCollect(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30), aConfig(func(s *api.IPAMConfigurationSpec) { s.IPCooldownSeconds = 60 }))
	w.assign("n", 5)
	require.NoError(t, w.specific("10.0.0.1", "n"))
	require.NoError(t, w.ReleaseAffinity(t.Context(), "n", prefix("10.0.0.0/30"), false))
	_, err := w.ReleaseByHandle(t.Context(), "h-n")
	require.NoError(t, err)
	_, err = w.ReleaseByHandle(t.Context(), "s-n")
	require.NoError(t, err)
	assert.Len(t, w.blocks(), 3, "cooling slots count as occupied")
	assert.Empty(t, w.handles())
	n, err := w.Collect(t.Context())
	require.NoError(t, err)
	assert.Zero(t, n)
	w.Advance(time.Minute)
	n, err = w.Collect(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 3, n)
	assert.Len(t, w.blocks(), 2, "the one without an owner is gone")
	for _, b := range w.blocks() {
		assert.Empty(t, b.Spec.Attributes)
		assert.Len(t, b.Spec.Unallocated, 4)
	}
}
