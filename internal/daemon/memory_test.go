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
