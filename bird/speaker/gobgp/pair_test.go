package gobgp_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
)

var (
	addrA = netip.MustParseAddr("127.0.71.1")
	addrB = netip.MustParseAddr("127.0.71.2")
)

const testPort = 17179

// testLog writes to the test's log until the test ends; the engine goes on for a moment.
type testLog struct {
	mu sync.Mutex
	t  testing.TB // nil when it has ended
}

func newLog(t testing.TB) *slog.Logger {
	l := &testLog{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.t = nil
	})
	return slog.New(slog.NewTextHandler(l, nil))
}

// Write is for slog.
func (l *testLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Log(strings.TrimSuffix(string(line), "\n"))
	}
	return len(line), nil
}

func start(t testing.TB) *speaker.Speaker {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := newLog(t)
	var engine speaker.Engine
	s, err := speaker.New(log, func(events speaker.Events) (speaker.Engine, error) {
		var err error
		engine, err = gobgp.New(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = engine.Stop() })
	return s
}

func config(own netip.Addr, as uint32, peers ...policy.Peer) policy.Config {
	return policy.Config{
		Generation: 1, RouterID: own, ASNumber: as, ListenPort: testPort, ListenAddresses: []netip.Addr{own}, Peers: peers,
		Export: policy.Export{Pools: []policy.Pool{{Prefix: netip.MustParsePrefix("192.168.0.0/16")}, {Prefix: netip.MustParsePrefix("fd00:1::/48")}}},
	}
}

func peer(own, other netip.Addr, as uint32, passive bool) policy.Peer {
	return policy.Peer{
		Name: "Node_" + other.String(), Type: policy.PeerNode, Source: "BGPPeer(test)", Address: other, Port: testPort,
		ASNumber: as, SourceAddress: own, Passive: passive,
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 15*time.Second, 20*time.Millisecond, what)
}

func best(s *speaker.Speaker) map[string]speaker.Path {
	out := map[string]speaker.Path{}
	list, _ := s.BestSince(0, 1<<20)
	for _, b := range list {
		if len(b.Paths) > 0 {
			out[b.Prefix.String()] = b.Paths[0]
		}
	}
	return out
}

func announce(s *speaker.Speaker, prefixes ...string) *speaker.Feed {
	f := s.Feed()
	for _, p := range prefixes {
		f.Announce(speaker.LocalRoute{Prefix: netip.MustParsePrefix(p)})
	}
	f.SnapshotEnd()
	return f
}

// TestPair has two speakers exchange routes over iBGP, and follows a route through its whole life.
func TestPair(t *testing.T) {
	a, b := start(t), start(t)
	feed := announce(a, "192.168.1.0/26", "10.0.0.0/8")
	announce(b, "192.168.2.0/26")
	ca := config(addrA, 64512, peer(addrA, addrB, 64512, true))
	cb := config(addrB, 64512, peer(addrB, addrA, 64512, false))
	for s, c := range map[*speaker.Speaker]policy.Config{a: ca, b: cb} {
		changes, err := s.Apply(c)
		require.NoError(t, err)
		require.Len(t, changes.Added, 1)
	}
	eventually(t, "b has a's block", func() bool { return best(b)["192.168.1.0/26"].NextHop == addrA })
	eventually(t, "a has b's block", func() bool { return best(a)["192.168.2.0/26"].NextHop == addrB })
	got := best(b)["192.168.1.0/26"]
	require.Equal(t, uint32(policy.MaxPreference-1024), got.Preference)
	require.Equal(t, "igp", got.Origin)
	require.Empty(t, got.Communities, "tags stay at home")
	require.NotContains(t, best(b), "10.0.0.0/8")

	feed.Withdraw(netip.MustParsePrefix("192.168.1.0/26"))
	eventually(t, "b lost a's block", func() bool { _, ok := best(b)["192.168.1.0/26"]; return !ok })

	// A pool that is no longer exported takes the routes back without a flap.
	since := state(t, b).Since
	feed.Announce(speaker.LocalRoute{Prefix: netip.MustParsePrefix("192.168.3.0/26")})
	eventually(t, "b has a's new block", func() bool { _, ok := best(b)["192.168.3.0/26"]; return ok })
	ca.Generation, ca.Export.Pools = 2, []policy.Pool{{Prefix: netip.MustParsePrefix("192.168.0.0/16"), DisableExport: true}}
	_, err := a.Apply(ca)
	require.NoError(t, err)
	eventually(t, "b lost it with the pool", func() bool { _, ok := best(b)["192.168.3.0/26"]; return !ok })

	// Neither do timers disturb the session.
	ca.Generation, ca.Peers = 3, []policy.Peer{ca.Peers[0]}
	ca.Peers[0].KeepaliveTime, ca.Peers[0].HoldTime = 10*time.Second, 30*time.Second
	changes, err := a.Apply(ca)
	require.NoError(t, err)
	require.Empty(t, changes.Restarted)
	require.Equal(t, since, state(t, b).Since, "the session stayed up")

	// A peer that is gone is told so.
	ca.Generation, ca.Peers = 4, nil
	changes, err = a.Apply(ca)
	require.NoError(t, err)
	require.Len(t, changes.Removed, 1)
	eventually(t, "b sees it go", func() bool { return state(t, b).State != speaker.Established })
	eventually(t, "b says why", func() bool { return state(t, b).LastError == "Received: Hard reset" })
	require.NotEmpty(t, state(t, b).History)
}

// TestPortInUse has a start fail, say so, and succeed when the port is free.
func TestPortInUse(t *testing.T) {
	own := netip.MustParseAddr("127.0.71.9")
	l, err := net.Listen("tcp", netip.AddrPortFrom(own, testPort).String())
	require.NoError(t, err)
	s := start(t)
	announce(s)
	_, err = s.Apply(config(own, 64512))
	require.ErrorContains(t, err, "127.0.71.9")
	require.ErrorContains(t, s.Ready(), "address already in use")
	require.NoError(t, l.Close())
	eventually(t, "it is tried again", func() bool { return s.Ready() == nil })

	// The router id concerns all sessions: listeners are opened anew.
	c := config(own, 64512)
	c.Generation, c.RouterID = 2, netip.MustParseAddr("9.9.9.9")
	_, err = s.Apply(c)
	require.NoError(t, err)
	require.NoError(t, s.Ready())
	conn, err := net.Dial("tcp", netip.AddrPortFrom(own, testPort).String())
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func state(t *testing.T, s *speaker.Speaker) speaker.PeerState {
	t.Helper()
	list, err := s.Peers("")
	require.NoError(t, err)
	require.Len(t, list, 1)
	return list[0]
}
