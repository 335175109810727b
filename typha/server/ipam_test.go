package server_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

func TestReserveAndRelease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	w.create(pool("six", "fd00:77::/64"))
	owner := &client.Owner{Handle: "net.c1", Attributes: map[string]string{"pod": "p", "namespace": "default", "node": "liar"}}
	got, err := n1.Reserve(t.Context(), client.Reserve{Count4: 2, Count6: 1, Owner: owner})
	require.NoError(t, err)
	require.Len(t, got, 3)
	for i, r := range got {
		assert.Equal(t, i < 2, r.Address.Is4())
		assert.True(t, r.Block.Contains(r.Address))
		assert.NotZero(t, r.Sequence)
		assert.Equal(t, map[bool]string{true: "default", false: "six"}[r.Address.Is4()], r.Pool)
	}
	b := get[*api.IPAMBlock](w, "IPAMBlock", got[0].Block.String())
	attrs := b.Spec.Attributes[*b.Spec.Allocations[0]].Owner
	assert.Equal(t, "n1", attrs["node"], "the certificate says which node it is")
	assert.Regexp(t, `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC$`, attrs["timestamp"])

	_, err = n2.ReleaseHandle(t.Context(), "net.c1")
	require.ErrorIs(t, err, client.ErrDenied, "another node's")
	_, err = n2.Release(t.Context(), got[:1])
	require.ErrorIs(t, err, client.ErrDenied)

	freed, err := n1.Release(t.Context(), got[:1])
	require.NoError(t, err)
	assert.Equal(t, []netip.Addr{got[0].Address}, freed)
	freed, err = n1.Release(t.Context(), got[:1])
	require.NoError(t, err)
	assert.Empty(t, freed, "free already")
	freed, err = n1.ReleaseHandle(t.Context(), "net.c1")
	require.NoError(t, err)
	assert.ElementsMatch(t, []netip.Addr{got[1].Address, got[2].Address}, freed)
	freed, err = n1.ReleaseHandle(t.Context(), "net.c1")
	require.NoError(t, err)
	assert.Empty(t, freed)
	_, err = w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: "net.c1"})
	require.ErrorIs(t, err, datastore.ErrNotFound)
}

// Whoever takes an address of a pool that typha's cache does not have yet is told of which pool and block it is.
func TestReserveOfAPoolThatIsNew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before, _, _ := w.cluster()
	before.stop()
	r := w.replica(func(c *server.Config) { c.Cache = before.state })
	w.create(pool("six", "fd00:77::/64"))
	got, err := w.node("n1", r.address).Reserve(t.Context(), client.Reserve{Count4: 1, Count6: 1, Owner: &client.Owner{Handle: "net.c1"}})
	require.NoError(t, err)
	require.Len(t, got, 2)
	for i, name := range []string{"default", "six"} {
		assert.Equal(t, name, got[i].Pool)
		assert.True(t, got[i].Block.Contains(got[i].Address), "%s is not in %s", got[i].Address, got[i].Block)
	}
}

// Handles that are freed together are freed all, or, if one of them is another node's, none.
func TestReleaseSeveralHandles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	var handles []string
	for i := range 5 {
		handles = append(handles, fmt.Sprint("net.c", i))
		_, err := n1.Reserve(t.Context(), client.Reserve{Count4: 2, Owner: &client.Owner{Handle: handles[i]}})
		require.NoError(t, err)
	}
	_, err := n2.Reserve(t.Context(), client.Reserve{Count4: 1, Owner: &client.Owner{Handle: "net.other"}})
	require.NoError(t, err)
	there := func() (n int) {
		l, err := w.store.List(t.Context(), "IPAMHandle", datastore.ListOptions{})
		require.NoError(t, err)
		return len(l.Items)
	}
	before := there()
	require.ErrorIs(t, n1.ReleaseHandles(t.Context(), append(handles[:2:2], "net.other")), client.ErrDenied)
	require.Equal(t, before, there())
	require.NoError(t, n1.ReleaseHandles(t.Context(), append(handles, "net.unknown")))
	require.Equal(t, before-len(handles), there())
	require.NoError(t, n1.ReleaseHandles(t.Context(), handles), "free already")
}

func TestReserveASpecificAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	ask := client.Reserve{Address: netip.MustParseAddr("192.168.7.7"), Owner: &client.Owner{Handle: "net.c1"}}
	got, err := n1.Reserve(t.Context(), ask)
	require.NoError(t, err)
	assert.Equal(t, ask.Address, got[0].Address)
	_, err = n2.Reserve(t.Context(), ask)
	require.ErrorIs(t, err, client.ErrExists)
	ask.Address = netip.MustParseAddr("10.0.0.1")
	_, err = n2.Reserve(t.Context(), ask)
	require.ErrorIs(t, err, client.ErrInvalid, "in no pool: nothing else helps than to ask for another")
	assert.Contains(t, err.Error(), "10.0.0.1")
}

func TestReserveRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	for name, r := range map[string]client.Reserve{
		"nothing":       {Owner: &client.Owner{Handle: "h"}},
		"no handle":     {Count4: 1, Owner: &client.Owner{}},
		"too many":      {Count4: 1 << 20, Owner: &client.Owner{Handle: "h"}},
		"warm no epoch": {Count4: 1},
	} {
		_, err := n1.Reserve(t.Context(), r)
		require.ErrorIs(t, err, client.ErrInvalid, name)
	}
	nowhere := client.Reserve{Count4: 1, Pools4: []string{"nowhere"}, Owner: &client.Owner{Handle: "h"}}
	_, err := n1.Reserve(t.Context(), nowhere)
	require.ErrorIs(t, err, client.ErrInvalid)
	assert.Contains(t, err.Error(), "nowhere")
	nowhere.Owner, nowhere.Epoch = nil, enter(t, n1)
	_, err = n1.Reserve(t.Context(), nowhere)
	require.ErrorIs(t, err, client.ErrExhausted, "a node keeps nothing ready of it, and asks again later")
}

// enter has a node enter an epoch.
func enter(t *testing.T, n *client.Client, claims ...client.Settlement) uint64 {
	t.Helper()
	r, err := n.Review(t.Context(), 0)
	require.NoError(t, err)
	entered, err := n.Enter(t.Context(), r.Epoch, 0, claims)
	require.NoError(t, err)
	require.Greater(t, entered.Epoch, r.Epoch)
	return entered.Epoch
}

func (w *world) remove(kind, name string) {
	_, err := w.store.Delete(w.t.Context(), api.Key{Kind: kind, Name: name}, datastore.Precondition{})
	require.NoError(w.t, err)
}

func warmHandle(node string, epoch uint64) string { return fmt.Sprintf("warm-%s-%d", node, epoch) }

func TestWarmAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	epoch := enter(t, n1)
	warm, err := n1.Reserve(t.Context(), client.Reserve{Count4: 3, Epoch: epoch})
	require.NoError(t, err)
	handle := warmHandle("n1", epoch)
	h := get[*api.IPAMHandle](w, "IPAMHandle", handle)
	assert.Equal(t, 3, h.Spec.Block[warm[0].Block.String()])
	b := get[*api.IPAMBlock](w, "IPAMBlock", warm[0].Block.String())
	attrs := b.Spec.Attributes[*b.Spec.Allocations[0]].Owner
	assert.Equal(t, "n1 warmPool", attrs["node"]+" "+attrs["type"])
	assert.NotEmpty(t, attrs["timestamp"])

	settle := []client.Settlement{{
		Address: warm[0].Address, Sequence: warm[0].Sequence, Owner: client.Owner{Handle: "net.c1", Attributes: map[string]string{"pod": "p"}},
	}}
	for range 2 { // idempotent
		refused, err := n1.Settle(t.Context(), epoch, settle)
		require.NoError(t, err)
		assert.Empty(t, refused)
	}
	assert.Equal(t, 2, get[*api.IPAMHandle](w, "IPAMHandle", handle).Spec.Block[warm[0].Block.String()])
	assert.Equal(t, 1, get[*api.IPAMHandle](w, "IPAMHandle", "net.c1").Spec.Block[warm[0].Block.String()])

	other := []client.Settlement{
		{Address: warm[0].Address, Owner: client.Owner{Handle: "net.c2"}},
		{Address: netip.MustParseAddr("192.168.99.99"), Owner: client.Owner{Handle: "net.c2"}},
		{Address: warm[1].Address, Sequence: warm[1].Sequence + 1, Owner: client.Owner{Handle: "net.c2"}},
	}
	refused, err := n1.Settle(t.Context(), epoch, other)
	require.NoError(t, err)
	require.Len(t, refused, 3)
	assert.Contains(t, refused[0].Reason, "net.c1")
	assert.Contains(t, refused[2].Reason, "assigned again since")

	other2 := enter(t, n2)
	refused, err = n2.Settle(t.Context(), other2, []client.Settlement{{Address: warm[1].Address, Owner: client.Owner{Handle: "stolen"}}})
	require.NoError(t, err)
	require.Len(t, refused, 1)
	require.NoError(t, n2.Return(t.Context(), other2, []client.WarmAddress{{Address: warm[1].Address, Sequence: warm[1].Sequence}}))
	assert.Equal(t, 2, get[*api.IPAMHandle](w, "IPAMHandle", handle).Spec.Block[warm[0].Block.String()], "another node moves nothing")

	require.NoError(t, n1.Return(t.Context(), epoch, []client.WarmAddress{
		{Address: warm[0].Address, Sequence: warm[0].Sequence},
		{Address: warm[1].Address, Sequence: warm[1].Sequence},
		{Address: warm[2].Address, Sequence: warm[2].Sequence - 1},
	}), "one is settled, one is warm, one was reserved anew")
	assert.Equal(t, 1, get[*api.IPAMHandle](w, "IPAMHandle", handle).Spec.Block[warm[0].Block.String()])
	assert.Equal(t, 1, get[*api.IPAMHandle](w, "IPAMHandle", "net.c1").Spec.Block[warm[0].Block.String()])

	r, err := n1.Review(t.Context(), epoch)
	require.NoError(t, err)
	assert.Equal(t, client.Review{Epoch: epoch, Warm: []client.WarmAddress{{Address: warm[2].Address, Sequence: warm[2].Sequence}}}, r)
}

func TestAnEpochThatEndedIsFenced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	first := enter(t, n1)
	old, err := n1.Reserve(t.Context(), client.Reserve{Count4: 3, Epoch: first})
	require.NoError(t, err)
	claim := client.Settlement{Address: old[1].Address, Owner: client.Owner{Handle: "net.alive"}}
	second := enter(t, n1, claim)
	_, err = w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: warmHandle("n1", first)})
	require.ErrorIs(t, err, datastore.ErrNotFound, "what the old journal held is free")
	require.Len(t, get[*api.IPAMHandle](w, "IPAMHandle", "net.alive").Spec.Block, 1, "but for what a living pod has")
	_, err = n1.Settle(t.Context(), first, []client.Settlement{{Address: old[0].Address, Owner: client.Owner{Handle: "net.c1"}}})
	require.ErrorIs(t, err, client.ErrStale)
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: first})
	require.ErrorIs(t, err, client.ErrStale)
	_, err = n1.Enter(t.Context(), first, 0, nil)
	require.ErrorIs(t, err, client.ErrStale, "a call that comes late ends nothing")
	r, err := n1.Review(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, client.Review{Epoch: second}, r)

	stranger := w.node("unregistered", w.replica().address)
	_, err = stranger.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: 1})
	require.ErrorIs(t, err, client.ErrStale)
	_, err = stranger.Review(t.Context(), 0)
	require.ErrorIs(t, err, client.ErrNotFound)

	// A node that was deleted and made again knows its last epoch, or does not.
	w.remove("Node", "n1")
	_, err = n1.Review(t.Context(), second)
	require.ErrorIs(t, err, client.ErrStale)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	r, err = n1.Review(t.Context(), second)
	require.NoError(t, err)
	require.Zero(t, r.Epoch)
	entered, err := n1.Enter(t.Context(), 0, second, nil)
	require.NoError(t, err)
	require.Greater(t, entered.Epoch, second)
}

func TestWhatIsNotFitForPodsAnyMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	epoch := enter(t, n1)
	warm, err := n1.Reserve(t.Context(), client.Reserve{Count4: 2, Epoch: epoch})
	require.NoError(t, err)
	why := func(want string) {
		t.Helper()
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			r, err := n1.Review(w.t.Context(), epoch)
			require.NoError(t, err)
			require.Len(t, r.Warm, 2)
			assert.Equal(t, want, r.Warm[0].Unfit+r.Warm[0].ByNameOnly)
		}, 30*time.Second, 20*time.Millisecond)
	}
	why("")
	reservation := &api.IPReservation{Spec: api.IPReservationSpec{ReservedCIDRs: []string{warm[0].Address.String()}}}
	reservation.Name = "r"
	w.create(reservation)
	why("an IPReservation has it")
	w.remove("IPReservation", "r")
	change := func(do func(*api.IPPool)) { modify(w, "IPPool", "default", do) }
	change(func(p *api.IPPool) { p.Spec.Disabled = true })
	why("pool default is disabled")
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: epoch})
	require.ErrorIs(t, err, client.ErrExhausted)
	change(func(p *api.IPPool) {
		p.Spec.Disabled, p.Spec.NamespaceSelector, p.Spec.AllowedUses = false, "team == 'a'", []api.IPPoolUse{api.UseWorkload}
	})
	why("pool default is for namespaces with team == 'a', so which pool serves a pod depends on its namespace")
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: epoch})
	require.ErrorIs(t, err, client.ErrExhausted, "a pod of any namespace may get it")
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Pools4: []string{"default"}, Epoch: epoch})
	require.NoError(t, err)
}

func TestWarmAddressesAreNotBorrowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	w.create(pool("tiny", "192.168.0.0/26"))
	n1, n2 := w.node("n1", r.address), w.node("n2", r.address)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	register(t, n2, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.2/24")})
	reserve(t, n1, "c1") // the one block is n1's
	reserve(t, n2, "c2") // borrowed
	epoch := enter(t, n2)
	_, err := n2.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: epoch})
	require.ErrorIs(t, err, client.ErrExhausted)
	_, err = w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: warmHandle("n2", epoch)})
	require.ErrorIs(t, err, datastore.ErrNotFound, "what was taken is given back")
}

// TestRequestsOfAddresses counts what the life of a pod's address costs the datastore, by the calls of its node.
func TestRequestsOfAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	store := &counted{asked: map[string]int{}}
	r := w.typha(func(c *server.Config) {
		store.Client = c.Datastore
		c.Datastore = store
		c.Alloc = alloc.New(c.Datastore, alloc.Options{Known: c.Cache})
	})
	w.create(pool("default", "192.168.0.0/16"))
	n1 := w.node("n1", r.address)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	eventually(t, "typha knows pool and node", func() bool {
		now := r.state.Snapshot()
		return now.Len("IPPool") > 0 && now.Node("n1") != nil
	})
	entered, err := n1.Enter(t.Context(), 0, 0, nil)
	require.NoError(t, err)
	warm := client.Reserve{Count4: 1, Epoch: entered.Epoch}
	_, err = n1.Reserve(t.Context(), warm) // claims the block
	require.NoError(t, err)
	asked := func(what func()) map[string]int {
		of := []string{"IPAMBlock", "IPAMHandle", "IPAMConfiguration", "BlockAffinity"}
		store.take(of...)
		what()
		return store.take(of...)
	}
	var got []client.Reservation
	assert.Equal(t, map[string]int{"list BlockAffinity": 1, "update IPAMBlock": 1, "update IPAMHandle": 1}, asked(func() {
		got, err = n1.Reserve(t.Context(), warm)
		require.NoError(t, err)
		require.Len(t, got, 1)
		assert.Equal(t, "default", got[0].Pool)
	}), "reserve")
	owner := client.Owner{Handle: "net.c1"}
	assert.Equal(t, map[string]int{"create IPAMHandle": 1, "update IPAMBlock": 1, "update IPAMHandle": 1}, asked(func() {
		refused, err := n1.Settle(t.Context(), entered.Epoch, []client.Settlement{{Address: got[0].Address, Sequence: got[0].Sequence, Owner: owner}})
		require.NoError(t, err)
		assert.Empty(t, refused)
	}), "settle")
	assert.Equal(t, map[string]int{"delete IPAMHandle": 1, "get IPAMBlock": 1, "get IPAMHandle": 1, "update IPAMBlock": 1}, asked(func() {
		freed, err := n1.ReleaseHandle(t.Context(), owner.Handle)
		require.NoError(t, err)
		assert.Equal(t, []netip.Addr{got[0].Address}, freed)
	}), "release")
}
