package alloc

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/ipam/block"
)

// TestReassignedOnce lets two settle one address at once: one of them has it then, and the counts are right.
func TestReassignedOnce(t *testing.T) {
	for range 20 {
		w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 28))
		a := netip.MustParseAddr(w.assign("n", 1)[0])
		errs := make([]error, 2)
		var both sync.WaitGroup
		for i, handle := range []string{"net.c1", "net.c2"} {
			both.Go(func() { errs[i] = w.Reassign(t.Context(), a, "h-n", block.Owner{Handle: handle}) })
		}
		both.Wait()
		require.NotEqual(t, errs[0] == nil, errs[1] == nil, "%v", errs)
		require.NoError(t, w.f.broken())
		require.Empty(t, w.f.surplus())
	}
}
