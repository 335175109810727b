package alloc

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

func TestUsage(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30), aPool("six", "fd00::/64", 122), aPool("z", "10.1.0.0/24", 30))
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.9", "10.1.0.1"} {
		require.NoError(t, w.specific(a, "n"))
	}
	w.f.put(aReservation("10.0.0.0/31", "10.0.0.128/25", "fd00::/65"))
	delete(w.f.objects, api.Key{Kind: kindPool, Name: "z"})
	usage, err := w.Usage(t.Context())
	require.NoError(t, err)
	var got []string
	line := func(name any, c Counts) {
		got = append(got, fmt.Sprintf("%v total %v in use %v reserved %v free %v", name, c.Total, c.InUse, c.Reserved, c.Free))
	}
	for _, p := range usage {
		line(p.Name+" "+p.CIDR.String(), p.Counts)
		for _, b := range p.Blocks {
			line("  "+b.CIDR.String()+" "+b.Affinity, b.Counts)
		}
	}
	assert.Equal(t, []string{
		"p 10.0.0.0/24 total 256 in use 3 reserved 130 free 124", // .1 is both
		"  10.0.0.0/30 host:n total 4 in use 2 reserved 2 free 1",
		"  10.0.0.8/30 host:n total 4 in use 1 reserved 0 free 3",
		"six fd00::/64 total 18446744073709551616 in use 0 reserved 9223372036854775808 free 9223372036854775808",
		" invalid Prefix total 4 in use 1 reserved 0 free 3",
		"  10.1.0.0/30 host:n total 4 in use 1 reserved 0 free 3",
	}, got)

	has, err := w.Address(t.Context(), addr("10.1.0.1"))
	require.NoError(t, err, "outside every pool")
	assert.Equal(t, "s-n", has.Handle)
	_, err = w.Address(t.Context(), addr("10.7.0.1"))
	require.EqualError(t, err, "10.7.0.1 is not assigned")
	_, err = w.Address(t.Context(), addr("10.0.0.200"))
	require.ErrorIs(t, err, ErrNotAssigned)

	none, err := w.Borrowed(t.Context())
	require.NoError(t, err)
	assert.Empty(t, none)
	b, err := block.Of(w.blocks()["10.0.0.8/30"].DeepCopy())
	require.NoError(t, err)
	b.Disown()
	w.f.put(b.IPAMBlock)
	borrowed, err := w.Borrowed(t.Context())
	require.NoError(t, err)
	require.Len(t, borrowed, 1)
	assert.Equal(t, Borrowed{Allocation: borrowed[0].Allocation, Node: "n", Block: prefix("10.0.0.8/30")}, borrowed[0])
}

func TestConfiguration(t *testing.T) {
	w := newWorld(t)
	cfg, err := w.Configuration(t.Context())
	require.NoError(t, err)
	assert.True(t, *cfg.AutoAllocateBlocks)
	assert.False(t, cfg.StrictAffinity)
	assert.Empty(t, w.f.objects, "reading never writes one")
	w.f.put(aConfig(strict))
	cfg, err = w.Configuration(t.Context())
	require.NoError(t, err)
	assert.True(t, cfg.StrictAffinity)
}
