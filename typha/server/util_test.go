package server_test

import (
	"crypto/sha1"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/client"
)

func exists(t testing.TB, path string) bool {
	_, err := os.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	return err == nil
}

// metric is the sum of a metric's values over its labels.
func metric(t testing.TB, r *replica, name string) float64 {
	families, err := r.metrics.Gather()
	require.NoError(t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// saved makes a follower keep its view in a file.
func saved(path string) func(*client.Config, *follower) {
	return func(c *client.Config, _ *follower) { c.StatePath = path }
}

func viewFile(t testing.TB) string { return filepath.Join(t.TempDir(), "felix", "view") }

// member is the i-th of a network's addresses.
func member(i int) view.Member {
	return view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}
}

func passDeltas(c *client.Config, _ *follower) { c.SetDeltas = true }

// macOf is the rule for VXLAN MACs, written down a second time.
func macOf(seed string) string {
	sum := sha1.Sum([]byte(seed))
	return net.HardwareAddr(append([]byte{0x66}, sum[:5]...)).String()
}

// quiet is for where logs would be part of what is measured.
var quiet = slog.New(slog.DiscardHandler)
