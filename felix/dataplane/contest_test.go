package dataplane_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
)

// Three times at once, then ever later; each thing by itself.
func TestContestsEnd(t *testing.T) {
	var c dataplane.Contests[string]
	start := time.Now()
	now := start
	for range 3 {
		assert.True(t, c.Enter("a", now))
	}
	for pause := time.Second; pause < time.Minute; pause *= 2 {
		assert.False(t, c.Enter("a", now))
		assert.False(t, c.Enter("a", now.Add(pause-1)), "before %s", pause)
		now = now.Add(pause)
		assert.True(t, c.Enter("a", now), "after %s", pause)
	}
	assert.Equal(t, 63*time.Second, now.Sub(start))
	assert.True(t, c.Enter("b", now))
	assert.False(t, c.Enter("a", now.Add(time.Minute-1)))
	now = now.Add(time.Minute)
	for range 3 {
		assert.True(t, c.Enter("a", now), "the minute is over")
	}
	assert.False(t, c.Enter("a", now))
	c.Forget("a")
	assert.True(t, c.Enter("a", now))
}

// What felix changes by itself is no contest: only what differs from what it had done, as long as it wants that.
func TestRepairsAreThoseOfOthersDoings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r dataplane.Repairs[int]
		refused := func(as int) bool {
			done := false
			err := r.Do("tunl0", as, "set MTU", func() error { done = true; return nil })
			if err != nil {
				assert.ErrorContains(t, err, "it would set MTU")
			}
			assert.Equal(t, err == nil, done)
			return err != nil
		}
		nothing := func() error { return nil }
		for range 9 {
			assert.False(t, refused(1), "it was never done")
		}
		r.Done("tunl0", 1)
		for range 3 {
			assert.False(t, refused(1))
			r.Done("tunl0", 1)
		}
		assert.True(t, refused(1))
		assert.NoError(t, r.Do("tunl0", 1, "set up", nothing), "that is another matter")
		assert.NoError(t, r.Do("vxlan.calico", 1, "set MTU", nothing), "so is that")
		for range 9 {
			assert.ErrorIs(t, r.Do("tunl0", 1, "set address", func() error { return unix.EBUSY }), unix.EBUSY, "the kernel's error is told")
		}
		for range 9 {
			assert.False(t, refused(2), "it is wanted otherwise")
		}
		time.Sleep(61 * time.Second)
		assert.False(t, refused(1), "others may have come to their senses")
		r.Forget("tunl0")
		for range 9 {
			assert.False(t, refused(1), "it is made, not repaired")
		}
		r.Done("tunl0", 2)
		for range 3 {
			assert.False(t, refused(2))
		}
		assert.True(t, refused(2))
		r.Done("tunl0", 3)
		assert.False(t, refused(3), "after a change by felix nothing has been undone yet")
	})
}
