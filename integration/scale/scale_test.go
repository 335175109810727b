package scale

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHistogram(t *testing.T) {
	h, other := Histogram{}, Histogram{}
	for i := range 1000 {
		h.Add(time.Duration(i+1) * time.Millisecond)
	}
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		require.InEpsilon(t, want, h.Quantile(share), 0.021)
		require.GreaterOrEqual(t, h.Quantile(share), want)
	}
	other.Add(time.Hour)
	h.Merge(other)
	require.Equal(t, 1001, h.Count())
	require.InEpsilon(t, time.Hour, h.Quantile(1), 0.021)
	require.Zero(t, Histogram{}.Quantile(0.5))
}
