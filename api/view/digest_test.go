package view_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

func TestDigests(t *testing.T) {
	key := func(n int) view.Key { return view.Key{Kind: view.KindPolicy, ID: fmt.Sprint(n)} }
	var a, b view.Digests
	parts := map[uint8]bool{}
	for n := range 4000 {
		a.Add(key(n), view.Version{byte(n), 1})
		parts[view.PartOf(key(n))] = true
	}
	assert.Len(t, parts, view.Parts, "all are used")
	for n := 3999; n >= 0; n-- {
		b.Add(key(n), view.Version{byte(n), 1})
	}
	assert.Empty(t, a.Differing(&b), "whatever the order")

	b.Remove(key(5), view.Version{5, 1})
	b.Add(key(5), view.Version{5, 2})
	assert.Equal(t, []uint8{view.PartOf(key(5))}, a.Differing(&b), "another version")
	b.Remove(key(5), view.Version{5, 2})
	b.Add(key(5), view.Version{5, 1})
	assert.Equal(t, a, b)

	// Two of one part that have each other's version: sums of versions would be equal.
	x, y := key(1), key(2)
	for view.PartOf(y) != view.PartOf(x) {
		y.ID += "x"
	}
	var p, q view.Digests
	p.Add(x, view.Version{1})
	p.Add(y, view.Version{2})
	q.Add(x, view.Version{2})
	q.Add(y, view.Version{1})
	assert.Equal(t, []uint8{view.PartOf(x)}, p.Differing(&q))
	assert.NotEqual(t, view.PartOf(view.Key{Kind: view.KindPolicy, ID: "a"}), view.PartOf(view.Key{Kind: view.KindPolicyList, ID: "a"}))

	read, err := view.DigestsOf(a.Bytes())
	require.NoError(t, err)
	assert.Equal(t, a, *read)
	read, err = view.DigestsOf((&view.Digests{}).Bytes())
	require.NoError(t, err)
	assert.Nil(t, read, "those of nothing")
	_, err = view.DigestsOf(make([]byte, 17))
	require.ErrorContains(t, err, "17 bytes")
}
