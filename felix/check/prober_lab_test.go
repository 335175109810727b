//go:build lab

package check

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/render"
)

// An answer counts that has come in time, though this process did not get its turn until after that.
func TestAStarvedProberHearsWhatHasCome(t *testing.T) {
	out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput()
	require.NoError(t, err, string(out))
	loopback := netip.MustParseAddr("127.0.0.1")
	p, err := newProber(t.Context(), render.Path{Local: loopback, Remote: loopback})
	require.NoError(t, err)
	defer p.close()
	p.send([]int{1000, 500})
	for _, want := range []int{1000, 500} {
		size, ok := p.receive(time.Now().Add(-time.Second))
		require.True(t, ok, "of %d bytes", want)
		require.Equal(t, want, size)
	}
	_, ok := p.receive(time.Now().Add(-time.Second))
	require.False(t, ok, "nothing more has come")
}
