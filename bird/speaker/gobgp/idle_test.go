package gobgp

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/speaker"
)

// TestOnlyTheFirstRestsAreShort has a peer fail again and again: it may hurry a few times, and again only when a session
// has been up for long.
func TestOnlyTheFirstRestsAreShort(t *testing.T) {
	r, now := rest{}, time.Unix(1e9, 0)
	// fails has the session come up, and go down after a while; it never comes up if that is 0.
	fails := func(after time.Duration) (short bool) {
		r.follow(speaker.Active, now)
		r.follow(speaker.OpenSent, now)
		if after > 0 {
			r.follow(speaker.Established, now)
		}
		now = now.Add(after)
		r.follow(speaker.Idle, now)
		return r.cut()
	}
	for range shortRests {
		require.True(t, fails(0))
		r.follow(speaker.Idle, now)
		require.False(t, r.cut(), "still the same rest")
	}
	require.False(t, fails(0), "it never comes up")
	require.False(t, fails(stableAfter/2), "it does not stay up")
	require.True(t, fails(stableAfter))
	require.True(t, fails(stableAfter/2))
	require.True(t, fails(0))
	require.False(t, fails(0))
}
