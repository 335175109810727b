package keymap

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// It does what a map does, and keeps nothing of namespaces that have become empty.
func TestMap(t *testing.T) {
	var m Map[int]
	plain := map[api.Key]int{}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		k := api.Key{Kind: fmt.Sprint("K", r.IntN(2)), Namespace: fmt.Sprint(r.IntN(4)), Name: fmt.Sprint(r.IntN(6))}
		if r.IntN(2) == 0 {
			m.Set(k, i)
			plain[k] = i
		} else {
			m.Delete(k)
			delete(plain, k)
		}
		v, ok := m.Get(k)
		want, wanted := plain[k]
		require.Equal(t, wanted, ok)
		require.Equal(t, want, v)
		require.Equal(t, len(plain), m.Len())
	}
	require.Equal(t, plain, maps.Collect(m.All()))
	for k := range m.All() {
		m.Delete(k)
	}
	require.Empty(t, m.scopes)
	require.Zero(t, m.Len())
}
