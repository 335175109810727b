package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A part that promised to report and does not has hung: the daemon is no longer live.
func TestSilenceIsDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth()
		part := h.Add("loop", 10*time.Second)
		part.Ready()
		time.Sleep(9 * time.Second)
		live, ready, _ := h.State()
		require.True(t, live && ready)
		part.Alive()
		time.Sleep(9 * time.Second)
		live, _, _ = h.State()
		require.True(t, live)
		time.Sleep(2 * time.Second)
		live, ready, lines := h.State()
		require.False(t, live || ready)
		require.Equal(t, []string{"loop: silent for 11s, promised to report every 10s"}, lines)
		part.NotReady("typha is away")
		live, ready, lines = h.State()
		require.True(t, live)
		require.False(t, ready)
		require.Equal(t, []string{"loop: not ready: typha is away"}, lines)
	})
}
