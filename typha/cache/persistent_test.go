package cache

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMapAgainstBuiltin compares a persistent map with Go's own over random changes, and checks that versions taken on
// the way stay what they were.
func TestMapAgainstBuiltin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var m Map[int, int]
	plain := map[int]int{}
	type version struct {
		m     Map[int, int]
		plain map[int]int
	}
	var versions []version
	for i := range 20_000 {
		k := r.IntN(2000)
		if r.IntN(3) == 0 {
			m = m.Without(k)
			delete(plain, k)
		} else {
			m = m.With(k, i)
			plain[k] = i
		}
		v, ok := m.Get(k)
		want, wanted := plain[k]
		require.Equal(t, wanted, ok)
		require.Equal(t, want, v)
		if i%1000 == 0 {
			versions = append(versions, version{m, maps.Clone(plain)})
		}
	}
	versions = append(versions, version{m, plain})
	for _, v := range versions {
		require.Equal(t, v.plain, maps.Collect(v.m.All()))
		require.Equal(t, len(v.plain), v.m.Len())
	}
	for k := range plain {
		m = m.Without(k)
	}
	require.Zero(t, m.Len())
	require.Nil(t, m.root)
	for range m.All() {
		t.Fatal("an empty map has no entries")
	}
}

// TestCollisions puts keys of equal hash into one trie, which real hashes hardly ever bring about.
func TestCollisions(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	hash := func(k int) uint64 { return uint64(k%3) << 62 } // differs at the last level, if at all
	root := &trie[int, int]{}
	plain := map[int]int{}
	get := func(k int) (int, bool) {
		tr := root
		for shift := 0; tr != nil; shift += branchBits {
			i, found := tr.find(hash(k), shift, k)
			if !found {
				return 0, false
			}
			if e := tr.slots[i].entry; e != nil {
				return e.value, e.key == k
			}
			tr = tr.slots[i].below
		}
		return 0, false
	}
	for i := range 3000 {
		k := r.IntN(12)
		if _, had := plain[k]; had && r.IntN(2) == 0 {
			next, removed := root.without(hash(k), k, 0)
			require.True(t, removed)
			if next == nil {
				next = &trie[int, int]{}
			}
			root = next
			delete(plain, k)
		} else {
			next, added := root.with(&entry[int, int]{k, i, hash(k)}, 0)
			require.Equal(t, !had, added)
			root = next
			plain[k] = i
		}
		for k := range 12 {
			v, ok := get(k)
			want, wanted := plain[k]
			require.Equal(t, wanted, ok, "step %d, key %d", i, k)
			if ok {
				require.Equal(t, want, v)
			}
		}
		all := map[int]int{}
		root.all(func(k, v int) bool { all[k] = v; return true })
		require.Equal(t, plain, all)
	}
}

func BenchmarkMapWith(b *testing.B) {
	var m Map[int, int]
	for i := range 100_000 {
		m = m.With(i, i)
	}
	i := 0
	for b.Loop() {
		i++
		m = m.With(i%100_000, i)
	}
}
