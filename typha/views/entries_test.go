package views

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

// TestEntriesAgainstMap applies random deltas, small and large, and compares with a map.
func TestEntriesAgainstMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	var es entries
	want := map[view.Key]*Entry{}
	for range 100 {
		touched := map[view.Key]*Entry{}
		for range r.IntN([]int{3, 200}[r.IntN(2)]) {
			e := &Entry{Key: view.Key{Kind: view.Kind(r.IntN(3)), ID: fmt.Sprint(r.IntN(150))}}
			touched[e.Key] = e
			if r.IntN(3) == 0 {
				touched[e.Key] = nil
			}
		}
		var d Delta
		for k, e := range touched {
			if e == nil {
				d.Drop = append(d.Drop, k)
				delete(want, k)
			} else {
				d.Put = append(d.Put, e)
				want[k] = e
			}
		}
		es.apply(&d)
		require.Len(t, es.list, len(want))
		for i, e := range es.list {
			require.True(t, i == 0 || CompareKeys(es.list[i-1].Key, e.Key) < 0, "in order")
			require.Same(t, want[e.Key], e)
			require.Same(t, e, es.get(e.Key))
		}
		require.Nil(t, es.get(view.Key{Kind: 9}))
	}
}
