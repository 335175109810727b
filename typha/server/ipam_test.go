package server_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
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
	require.ErrorIs(t, err, client.ErrExhausted)
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
	_, err := n1.Reserve(t.Context(), client.Reserve{Count4: 1, Pools4: []string{"nowhere"}, Owner: &client.Owner{Handle: "h"}})
	require.ErrorIs(t, err, client.ErrExhausted)
	assert.Contains(t, err.Error(), "nowhere")
}

func TestWarmAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	warm, err := n1.Reserve(t.Context(), client.Reserve{Count4: 3, Epoch: 7})
	require.NoError(t, err)
	h := get[*api.IPAMHandle](w, "IPAMHandle", "warm-n1-7")
	assert.Equal(t, 3, h.Spec.Block[warm[0].Block.String()])

	settle := []client.Settlement{{Address: warm[0].Address, Owner: client.Owner{Handle: "net.c1", Attributes: map[string]string{"pod": "p"}}}}
	for range 2 { // idempotent
		refused, err := n1.Settle(t.Context(), 7, settle)
		require.NoError(t, err)
		assert.Empty(t, refused)
	}
	assert.Equal(t, 2, get[*api.IPAMHandle](w, "IPAMHandle", "warm-n1-7").Spec.Block[warm[0].Block.String()])
	assert.Equal(t, 1, get[*api.IPAMHandle](w, "IPAMHandle", "net.c1").Spec.Block[warm[0].Block.String()])

	other := []client.Settlement{{Address: warm[0].Address, Owner: client.Owner{Handle: "net.c2"}}, {Address: netip.MustParseAddr("192.168.99.99"), Owner: client.Owner{Handle: "net.c2"}}}
	refused, err := n1.Settle(t.Context(), 7, other)
	require.NoError(t, err)
	require.Len(t, refused, 2)
	assert.Contains(t, refused[0].Reason, "net.c1")

	_, err = n2.Settle(t.Context(), 7, []client.Settlement{{Address: warm[1].Address, Owner: client.Owner{Handle: "stolen"}}})
	require.NoError(t, err)
	require.NoError(t, n2.Return(t.Context(), 7, []netip.Addr{warm[1].Address}))
	assert.Equal(t, 2, get[*api.IPAMHandle](w, "IPAMHandle", "warm-n1-7").Spec.Block[warm[0].Block.String()], "another node moves nothing")

	require.NoError(t, n1.Return(t.Context(), 7, []netip.Addr{warm[0].Address, warm[1].Address}), "one is settled, one is warm")
	assert.Equal(t, 1, get[*api.IPAMHandle](w, "IPAMHandle", "warm-n1-7").Spec.Block[warm[0].Block.String()])
	assert.Equal(t, 1, get[*api.IPAMHandle](w, "IPAMHandle", "net.c1").Spec.Block[warm[0].Block.String()])
}

func TestStaleEpochIsFenced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	old, err := n1.Reserve(t.Context(), client.Reserve{Count4: 2, Epoch: 1})
	require.NoError(t, err)
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: 2})
	require.NoError(t, err)
	_, err = w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: "warm-n1-1"})
	require.ErrorIs(t, err, datastore.ErrNotFound, "what the old journal held is free")
	_, err = n1.Settle(t.Context(), 1, []client.Settlement{{Address: old[0].Address, Owner: client.Owner{Handle: "net.c1"}}})
	require.ErrorIs(t, err, client.ErrStale)
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: 1})
	require.ErrorIs(t, err, client.ErrStale)
	_, err = w.node("unregistered", w.replica().address).Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: 1})
	require.ErrorIs(t, err, client.ErrStale)
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
	_, err := n2.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: 1})
	require.ErrorIs(t, err, client.ErrExhausted)
	_, err = w.store.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: "warm-n2-1"})
	require.ErrorIs(t, err, datastore.ErrNotFound, "what was taken is given back")
}
