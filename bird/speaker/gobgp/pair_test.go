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
	s, stop := launch(t)
	t.Cleanup(stop)
	return s
}

func launch(t testing.TB) (_ *speaker.Speaker, stop func()) {
	t.Helper()
	return launchOn(t, gobgp.New)
}

// newEngine is gobgp.New, or takes its place.
type newEngine func(context.Context, *slog.Logger, speaker.Events) (*gobgp.Engine, error)

func launchOn(t testing.TB, newEngine newEngine) (_ *speaker.Speaker, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := newLog(t)
	var engine speaker.Engine
	s, err := speaker.New(log, func(events speaker.Events) (speaker.Engine, error) {
		var err error
		engine, err = newEngine(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	return s, func() { cancel(); <-done; _ = engine.Stop() }
}

func config(own netip.Addr, as uint32, peers ...policy.Peer) policy.Config {
	return policy.Config{
		Generation: 2, RouterID: own, ASNumber: as, ListenPort: testPort, ListenAddresses: []netip.Addr{own}, Peers: peers,
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
	require.Eventually(t, ok, time.Minute, 20*time.Millisecond, what)
}

func best(s *speaker.Speaker) map[string]speaker.Path {
	out := map[string]speaker.Path{}
	list, _, _ := s.ReadBest(0).Next(1 << 20)
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

// TestSessions runs what needs several speakers, all at once, since it is mostly waiting. All speakers listen before the
// first session: gobgp's start writes variables of its package, which those that run read.
func TestSessions(t *testing.T) {
	type test struct {
		name     string
		third    byte
		as       []uint32
		run      func(*testing.T, []*speaker.Speaker)
		speakers []*speaker.Speaker
	}
	var stops []func()
	t.Cleanup(func() { // all at once: each waits until its peers have been told
		var all sync.WaitGroup
		for _, stop := range stops {
			all.Go(stop)
		}
		all.Wait()
	})
	tests := []*test{
		{name: "pair", third: 71, as: []uint32{64512, 64512}, run: testPair},
		{name: "return of the active end", third: 73, as: []uint32{64512, 64512}, run: testReturn(73, 0)},
		{name: "return of the passive end", third: 77, as: []uint32{64512, 64512}, run: testReturn(77, 1)},
		{name: "transit", third: 74, as: []uint32{64512, 64512, 65001}, run: testTransit},
		{name: "reflector", third: 75, as: []uint32{64512, 64512, 64512}, run: testReflector},
		{name: "mesh to reflectors and back", third: 78, as: []uint32{64512, 64512, 64512, 64512, 64512}, run: testSwitch},
		{name: "loss", third: 79, as: []uint32{64512, 64512, 64512}, run: testLoss},
		{name: "community filter", third: 76, as: []uint32{64512, 64512, 65001}, run: testCommunityFilter},
		{name: "all paths", third: 81, as: []uint32{64512, 64512, 64512, 64512}, run: testAllPaths(81, 0)},
		{name: "all paths, long-lived", third: 84, as: []uint32{64512, 64512, 64512, 64512}, run: testAllPaths(84, time.Hour)},
		{name: "long-lived", third: 82, as: []uint32{64512}, run: testLongLived},
		{name: "failed attempts of a restart", third: 83, as: []uint32{64512}, run: testFailedAttempts},
		{name: "malformed updates", third: 90, as: []uint32{64512}, run: testMalformed},
		{name: "packed updates", third: 91, as: []uint32{64512}, run: testPacked},
	}
	for _, test := range tests {
		for i, as := range test.as {
			s, stop := launch(t)
			stops = append(stops, stop)
			announce(s)
			c := config(loopback(test.third, i+1), as)
			c.Generation = 1
			apply(t, s, c)
			test.speakers = append(test.speakers, s)
		}
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, test.speakers)
		})
	}
}

func loopback(third byte, fourth int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 0, third, byte(fourth)})
}

// testPair has two speakers exchange routes over iBGP, and follows a route through its whole life.
func testPair(t *testing.T, speakers []*speaker.Speaker) {
	a, b := speakers[0], speakers[1]
	addrA, addrB := loopback(71, 1), loopback(71, 2)
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
	ca.Generation, ca.Export.Pools = 3, []policy.Pool{{Prefix: netip.MustParsePrefix("192.168.0.0/16"), DisableExport: true}}
	_, err := a.Apply(ca)
	require.NoError(t, err)
	eventually(t, "b lost it with the pool", func() bool { _, ok := best(b)["192.168.3.0/26"]; return !ok })

	// Neither do timers disturb the session.
	ca.Generation, ca.Peers = 4, []policy.Peer{ca.Peers[0]}
	ca.Peers[0].KeepaliveTime, ca.Peers[0].HoldTime = 10*time.Second, 30*time.Second
	changes, err := a.Apply(ca)
	require.NoError(t, err)
	require.Empty(t, changes.Restarted)
	require.Equal(t, since, state(t, b).Since, "the session stayed up")

	// A peer that is gone is told so.
	ca.Generation, ca.Peers = 5, nil
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
	c.Generation, c.RouterID = 3, netip.MustParseAddr("9.9.9.9")
	_, err = s.Apply(c)
	require.NoError(t, err)
	require.NoError(t, s.Ready())
	conn, err := net.Dial("tcp", netip.AddrPortFrom(own, testPort).String())
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// testReturn takes a session down and puts it up again, from one end, of which the first is the one that connects: the other
// end must be ready again before gobgp itself would be.
func testReturn(third byte, leaves int) func(*testing.T, []*speaker.Speaker) {
	return func(t *testing.T, speakers []*speaker.Speaker) {
		addrs := []netip.Addr{loopback(third, 1), loopback(third, 2)}
		configs := []policy.Config{
			config(addrs[0], 64512, peer(addrs[0], addrs[1], 64512, false)), config(addrs[1], 64512, peer(addrs[1], addrs[0], 64512, true)),
		}
		up := func() bool {
			return speakers[0].States()[addrs[1]] == speaker.Established && speakers[1].States()[addrs[0]] == speaker.Established
		}
		for i, s := range speakers {
			apply(t, s, configs[i])
		}
		eventually(t, "the session is up", up)
		stays := speakers[1-leaves]
		with := configs[leaves]
		without := with
		without.Peers = nil
		quick := false
		for try := uint64(1); !quick && try <= 5; try++ { // the machine may rest for longer than the session
			without.Generation, with.Generation = 1+2*try, 2+2*try
			apply(t, speakers[leaves], without)
			eventually(t, "the session is lost", func() bool { return state(t, stays).State != speaker.Established })
			apply(t, speakers[leaves], with)
			eventually(t, "the session is back", up)

			var idle, ready time.Time // the newest of each
			for _, h := range state(t, stays).History {
				if h.State == speaker.Active && ready.IsZero() {
					ready = h.At
				}
				if h.State == speaker.Idle && idle.IsZero() {
					idle = h.At
				}
			}
			require.Greater(t, ready.Sub(idle), 900*time.Millisecond, "there is a rest")
			quick = ready.Sub(idle) < 4*time.Second
		}
		require.True(t, quick, "gobgp's own rest is 5 s")
	}
}

func state(t *testing.T, s *speaker.Speaker) speaker.PeerState {
	t.Helper()
	list, err := s.Peers("")
	require.NoError(t, err)
	require.Len(t, list, 1)
	return list[0]
}
