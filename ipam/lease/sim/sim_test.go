package sim_test

import (
	"flag"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/lease/sim"
)

var (
	courses = flag.Int("courses", thorough.Rounds(300, 50_000), "how many courses of events to play")
	first   = flag.Uint64("first", 0, "seed of the first of them")
)

// Whatever the order of writes, calls and crashes, no address is used twice and none is lost. A course that fails prints
// its trace; -first with its seed and -courses 1 play it again.
func TestNoCourseOfEventsDoublesOrLosesAnAddress(t *testing.T) {
	var next, lent, assigned, lost, ended atomic.Int64
	var failed atomic.Bool
	var players sync.WaitGroup
	for range runtime.GOMAXPROCS(0) { // each course is on one goroutine
		players.Go(func() {
			for n := next.Add(1); n <= int64(*courses) && !failed.Load(); n = next.Add(1) {
				seed := *first + uint64(n) - 1
				w, err := sim.Run(sim.Options{Seed: seed, Steps: sim.Steps})
				lent.Add(int64(w.Lent))
				assigned.Add(int64(w.Assigned))
				lost.Add(int64(w.Lost))
				ended.Add(int64(w.Ended))
				if err != nil && !failed.Swap(true) {
					var trace []string
					_, again := sim.Run(sim.Options{Seed: seed, Steps: sim.Steps, Trace: &trace})
					t.Errorf("seed %d: %v (again: %v)\n%s", seed, err, again, strings.Join(trace, "\n"))
				}
			}
		})
	}
	players.Wait()
	t.Logf("%d courses: %d addresses were lent, %d were got from typha, %d were lost to others; %d epochs ended",
		*courses, lent.Load(), assigned.Load(), lost.Load(), ended.Load())
	require.Greater(t, lent.Load(), assigned.Load()/2, "what is to be shown is shown with addresses of the reserve")
}
