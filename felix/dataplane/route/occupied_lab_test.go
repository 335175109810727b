//go:build lab

package route_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/route"
	"github.com/muslin-net/muslin/felix/desired"
)

// logged is a log to read.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// A route of another protocol in the place of one of felix's is neither replaced nor removed; it is named, and when it goes
// felix's takes its place.
func TestOthersRoutesAreLeftAndNamed(t *testing.T) {
	block, six := desired.DirectRoute(prefix("10.1.2.0/26"), ip("192.168.9.7"), "eth0", 80), desired.DirectRoute(prefix("fd00:2::/122"), ip("fd09::7"), "eth0", 80)
	byDefault := desired.DirectRoute(prefix("0.0.0.0/0"), ip("192.168.9.7"), "eth0", 80)
	for name, c := range map[string]struct {
		add, shows, owner, del string
		want                   desired.Route
	}{
		"static":                    {"ip route add 10.1.2.0/26 via 192.168.9.66 proto static", "10.1.2.0/26 via 192.168.9.66", "of protocol static", "ip route del 10.1.2.0/26 proto static", block},
		"by hand":                   {"ip route add 10.1.2.0/26 via 192.168.9.66", "10.1.2.0/26 via 192.168.9.66", "of protocol boot", "ip route del 10.1.2.0/26", block},
		"of a routing daemon, IPv6": {"ip -6 route add fd00:2::/122 via fd09::66 proto bgp", "fd00:2::/122 via fd09::66", "of protocol bgp", "ip -6 route del fd00:2::/122 proto bgp", six},
		"connected":                 {"ip link add br9 type bridge; ip link set br9 up; ip addr add 10.1.2.1/26 dev br9", "10.1.2.0/26 dev br9 proto kernel", "of protocol kernel", "ip addr del 10.1.2.1/26 dev br9", block},
		"default":                   {"ip route add default via 192.168.9.66 proto static", "default via 192.168.9.66", "of protocol static", "ip route del default", byDefault},
		"of a strange kind":         {"ip route add prohibit 10.1.2.0/26", "prohibit 10.1.2.0/26", "another's route", "ip route del prohibit 10.1.2.0/26", block},
	} {
		t.Run(name, func(t *testing.T) {
			ns := node(t)
			ns.Run(t, c.add)
			var log logged
			tab := open(t, route.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
			tab.Whole()
			tab.Update(set(append(sample()[:3], c.want)...))
			require.NoError(t, tab.Apply(context.Background()), "it is no failure that trying again would help")
			for range 3 {
				tab.Resync()
				require.NoError(t, tab.Apply(context.Background()))
			}
			show := "ip route show; ip -6 route show"
			assert.Contains(t, ns.Run(t, show), c.shows)
			assert.False(t, tab.Programmed(c.want.Key()))
			assert.True(t, tab.Programmed(sample()[2].Key()), "the others are")
			require.ErrorContains(t, tab.Why(c.want.Key()), c.owner)
			assert.Equal(t, 1, log.count("is not programmed"), "said once")
			for _, e := range tab.Entries() {
				if e.Key == c.want.Key().String() {
					assert.NotEqual(t, e.Desired, e.Actual)
				}
			}
			watch(t, tab)
			// The notifications may be followed only a moment later; an audit finds out too.
			ns.Run(t, c.del)
			require.Eventually(t, func() bool {
				if name == "of a strange kind" {
					tab.Resync()
					_ = tab.Apply(context.Background())
				}
				return tab.Programmed(c.want.Key())
			}, patience, 5*time.Millisecond)
			assert.NoError(t, tab.Why(c.want.Key()))
		})
	}
}

// What was put in the place of a route of felix's by hand is damage, and repaired, but not for ever. What another daemon
// puts there is left at once.
func TestFightsEnd(t *testing.T) {
	ns := node(t)
	tab := open(t, route.Config{})
	tab.Whole()
	want := sample()[4]
	tab.Update(set(sample()...))
	require.NoError(t, tab.Apply(context.Background()))
	watch(t, tab)
	mine := func() bool { return tab.Programmed(want.Key()) }
	place := func(protocol string) {
		ns.Run(t, "ip route replace 10.1.2.0/26 via 192.168.9.66 dev eth0 proto "+protocol)
	}
	for range 3 {
		place("boot")
		require.Eventually(t, func() bool {
			out, _ := ns.Try("ip route show 10.1.2.0/26")
			return strings.Contains(out, "192.168.9.7") && mine()
		}, patience, time.Millisecond)
	}
	place("boot")
	require.Eventually(t, func() bool { return tab.Why(want.Key()) != nil }, patience, time.Millisecond)
	writes := tab.Writes()
	require.Never(t, mine, 300*time.Millisecond, 10*time.Millisecond, "felix gives way")
	assert.Equal(t, writes, tab.Writes())
	assert.Contains(t, ns.Run(t, "ip route show 10.1.2.0/26"), "192.168.9.66")
	ns.Run(t, "ip route del 10.1.2.0/26")
	require.Eventually(t, mine, patience, time.Millisecond, "until it goes")

	place("static")
	require.Eventually(t, func() bool { return tab.Why(want.Key()) != nil }, patience, time.Millisecond)
	assert.Contains(t, ns.Run(t, "ip route show 10.1.2.0/26"), "192.168.9.66")
	assert.False(t, mine())

	// Beside, not instead: felix's is still there.
	ns.Run(t, "ip route del 10.1.2.0/26")
	require.Eventually(t, mine, patience, time.Millisecond)
	ns.Run(t, "ip route append 10.1.2.0/26 via 192.168.9.77 dev eth0 proto static")
	tab.Resync()
	require.NoError(t, tab.Apply(context.Background()))
	require.True(t, mine())
	out := ns.Run(t, "ip route show 10.1.2.0/26")
	assert.Contains(t, out, "192.168.9.7 ")
	assert.Contains(t, out, "192.168.9.77")
}
