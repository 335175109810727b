package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNextGrowsWithinBounds(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: time.Second}
	for _, whole := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		whole *= time.Millisecond
		d := b.Next()
		require.GreaterOrEqual(t, d, whole/2)
		require.Less(t, d, whole)
	}
	b.Reset()
	require.Less(t, b.Next(), 100*time.Millisecond)
}

func TestWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b := Backoff{Min: time.Minute, Max: time.Hour}
		start := time.Now()
		require.ErrorIs(t, b.Wait(ctx), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))

		quick := Backoff{Min: time.Second, Max: time.Second}
		start = time.Now()
		require.NoError(t, quick.Wait(t.Context()))
		require.LessOrEqual(t, time.Since(start), time.Second)
	})
}
