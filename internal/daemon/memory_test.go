package daemon

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGarbageHasRoomAndAShare(t *testing.T) {
	for used, want := range map[uint64]int{0: 300, 4 << 20: 300, 12 << 20: 100, 20 << 20: 60, 100 << 20: 60, 1 << 40: 60} {
		require.Equal(t, want, garbagePercent(used, 60), "%d bytes in use", used)
	}
}

// The share is set anew after each collection, for what is in use then.
func TestThriftyFollowsWhatIsInUse(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	t.Setenv("GOGC", "")
	Thrifty(50)
	large := make([]byte, 200<<20)
	reaches := func(want int) {
		require.Eventually(t, func() bool {
			runtime.GC()
			now := debug.SetGCPercent(100)
			debug.SetGCPercent(now)
			return now == want
		}, time.Minute, 10*time.Millisecond)
	}
	reaches(50)
	runtime.KeepAlive(large)
	large = nil
	reaches(300)
}

// Memory goes back when nothing happens, once for each burst.
func TestMemoryGoesBackAfterABurst(t *testing.T) {
	const mb = 1 << 20
	var h heap
	for i, look := range []struct {
		allocated, held uint64
		gives           bool
	}{
		{30 * mb, 25 * mb, false}, // the start has just been
		{30*mb + 1000, 25 * mb, true},
		{31 * mb, 12 * mb, false},
		{60 * mb, 24 * mb, false}, // a burst
		{90 * mb, 24 * mb, false},
		{90*mb + 1000, 24 * mb, true},
	} {
		if gives := h.rests(look.allocated, look.held); gives != look.gives {
			t.Fatalf("look %d: gives back: %v", i, gives)
		}
		if look.gives {
			h.least = 11 * mb
		}
	}
	h.least = 400 * mb
	require.False(t, h.rests(90*mb+1000, 440*mb), "a tenth of a large heap is not worth a look through all of it")
	require.True(t, h.rests(90*mb+1000, 460*mb))
}

// What is read is there: the names of the runtime's figures are its own.
func TestWhatTheHeapHoldsIsRead(t *testing.T) {
	var h heap
	before, _ := h.read()
	large := make([]byte, 64<<20)
	allocated, held := h.read()
	require.GreaterOrEqual(t, allocated-before, uint64(len(large)))
	require.GreaterOrEqual(t, held, uint64(len(large)))
	runtime.KeepAlive(large)
	large = nil
	debug.FreeOSMemory()
	_, after := h.read()
	require.Less(t, after, held-32<<20)
}
