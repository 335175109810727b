package delta_test

import (
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/delta"
)

// After any history the difference equals that of the two final maps, and draining it makes them equal.
func TestDifferenceIsThatOfTheFinalStates(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		tracker := delta.New[int](func(a, b int) bool { return a == b })
		desired, actual := map[int]int{}, map[int]int{}
		for range 300 {
			k, v := rnd.IntN(20), rnd.IntN(3)
			switch rnd.IntN(6) {
			case 0, 1:
				desired[k] = v
				tracker.SetDesired(k, v)
			case 2:
				delete(desired, k)
				tracker.DeleteDesired(k)
			case 3:
				actual[k] = v
				tracker.SetActual(k, v)
			case 4:
				delete(actual, k)
				tracker.DeleteActual(k)
			case 5:
				actual = map[int]int{k: v, k + 1: v}
				tracker.ReplaceActual(actual)
			}
		}
		updates, deletes := map[int]int{}, map[int]int{}
		for k, v := range desired {
			if have, ok := actual[k]; !ok || have != v {
				updates[k] = v
			}
		}
		for k, v := range actual {
			if _, ok := desired[k]; !ok {
				deletes[k] = v
			}
		}
		require.Equal(t, updates, maps.Collect(tracker.Updates()), "seed %d", seed)
		require.Equal(t, deletes, maps.Collect(tracker.Deletes()), "seed %d", seed)
		require.Equal(t, len(updates)+len(deletes) == 0, tracker.InSync())

		for k, v := range tracker.Updates() {
			tracker.SetActual(k, v)
		}
		for k := range tracker.Deletes() {
			tracker.DeleteActual(k)
		}
		require.True(t, tracker.InSync())
		require.Equal(t, desired, maps.Collect(tracker.AllActual()), "seed %d", seed)
	}
}

func TestReplaceDesiredForgetsTheRest(t *testing.T) {
	tracker := delta.New[string](func(a, b int) bool { return a == b })
	tracker.SetDesired("old", 1)
	tracker.SetActual("old", 1)
	tracker.ReplaceDesired(map[string]int{"new": 2})
	require.Equal(t, map[string]int{"new": 2}, maps.Collect(tracker.Updates()))
	require.Equal(t, map[string]int{"old": 1}, maps.Collect(tracker.Deletes()))
	updates, deletes := tracker.Pending()
	require.Equal(t, []int{1, 1}, []int{updates, deletes})
}

// What was due takes no room once it is done.
func TestWhatIsDoneTakesNoRoom(t *testing.T) {
	const many = 100_000
	tracker := delta.New[[4]uint64](func(struct{}, struct{}) bool { return true })
	held := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		runtime.KeepAlive(tracker)
		return m.HeapAlloc
	}
	for i := range uint64(many) {
		tracker.SetDesired([4]uint64{i}, struct{}{})
	}
	due := held()
	for k := range tracker.Updates() {
		tracker.DeleteDesired(k)
	}
	require.True(t, tracker.InSync())
	require.Less(t, held(), due-many*16, "of keys of 32 bytes")
}
