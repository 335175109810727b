package gobgp_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// BenchmarkReceive measures, for 1,000 and 10,000 routes from one peer, the time from the session's start until the last of
// them is among the best paths that felix is told. The sender runs on the same processors.
func BenchmarkReceive(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for i := range b.N {
				sender, receiver := loopback(72, 2*i+1), loopback(72, 2*i+2)
				from, to := start(b), start(b)
				feed := from.Feed()
				for j := range n {
					feed.Announce(speaker.LocalRoute{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(j >> 8), byte(j)}), 32)})
				}
				feed.SnapshotEnd()
				to.Feed().SnapshotEnd()
				apply(b, from, config(sender, 64512, peer(sender, receiver, 64512, true)))
				apply(b, to, config(receiver, 64512, peer(receiver, sender, 64512, false)))
				for to.States()[sender] != speaker.Established {
					time.Sleep(100 * time.Microsecond) // the poll of a benchmark, not a wait of a test
				}
				began := time.Now()
				for to.Status().Prefixes < n {
					time.Sleep(100 * time.Microsecond)
				}
				b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "ms/all")
			}
		})
	}
}

func apply(t testing.TB, s *speaker.Speaker, c policy.Config) {
	t.Helper()
	_, err := s.Apply(c)
	require.NoError(t, err)
}
