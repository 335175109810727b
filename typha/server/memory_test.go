package server_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// What a client said that it has is needed for its first view only, and must not be held while it stays.
func TestWhatAClientHadIsForgotten(t *testing.T) {
	w := newWorld(t)
	r := w.typha()
	w.create(pool("default", "192.168.0.0/16"))
	used := func() uint64 {
		for range 3 { // what lies in pools is given back by the second
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	s := w.stream("n", r.address)
	before := used()
	const parts, each = 20, 10_000
	for part := range parts {
		h := &typhav1.Hello{More: part+1 < parts}
		for i := range each {
			key := &typhav1.ItemKey{Kind: 5, Id: fmt.Sprintf("np/of-another-time-%d", part*each+i)}
			h.Have = append(h.Have, &typhav1.Have{Key: key, Version: make([]byte, 16)})
		}
		s.hello(h)
	}
	removed := 0
	for inSync := false; !inSync; {
		m, err := s.Recv()
		require.NoError(t, err)
		removed += len(m.GetChunk().GetRemoves())
		inSync = m.GetChunk().GetInSync()
	}
	require.Equal(t, parts*each, removed)
	require.Less(t, int64(used())-int64(before), int64(5<<20), "a map of so many items takes more")
	runtime.KeepAlive(s)
}
