package udp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/bird/bfd"
	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// recorder keeps what a detector tells.
type recorder struct {
	mu   sync.Mutex
	told []string
}

func (r *recorder) PeerLost(peer netip.Addr, _ speaker.Evidence, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprintf("%s lost: %s", peer, reason))
}

func (r *recorder) PeerFound(peer netip.Addr, _ speaker.Evidence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprintf("%s found", peer))
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.told...)
}

// end is a detector that runs.
type end struct {
	*Detector
	recorder
	address netip.Addr
	stop    func()
}

func start(t *testing.T, address string) *end {
	t.Helper()
	e := &end{address: netip.MustParseAddr(address)}
	var err error
	e.Detector, err = New(slog.New(slog.DiscardHandler), &e.recorder, e.address)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	var once sync.Once
	e.stop = func() { once.Do(func() { cancel(); require.NoError(t, <-done) }) }
	t.Cleanup(e.stop)
	return e
}

func (e *end) peer(with *end, b policy.BFD) []policy.Peer {
	return []policy.Peer{{Name: "x", Address: with.address, SourceAddress: e.address, RestartTime: time.Minute, BFD: b}}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, time.Minute, 5*time.Millisecond, what)
}

var quick = policy.BFD{MinTx: 50 * time.Millisecond, MinRx: 50 * time.Millisecond, Multiplier: 100} // a starved machine rests for seconds

// TestUDP runs two detectors against each other over loopback: sessions come up, timers change without a loss, a stop is no
// loss, and a process that comes back at once is not even seen.
func TestUDP(t *testing.T) {
	for name, c := range map[string]struct {
		a, b     string
		multihop bool
	}{
		"IPv4":          {"127.0.3.1", "127.0.3.2", false},
		"IPv4 multihop": {"127.0.3.3", "127.0.3.4", true},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, c.a), start(t, c.b)
			parameters := quick
			parameters.Multihop = c.multihop
			a.Watch(a.peer(b, parameters))
			require.Equal(t, "waiting for peer's BFD", a.State(b.address))
			b.Watch(b.peer(a, parameters))
			until(t, "up", func() bool { return a.State(b.address) == "up, 50ms x 100" && b.State(a.address) == "up, 50ms x 100" })

			parameters.MinTx, parameters.Multiplier = 80*time.Millisecond, 125
			a.Watch(a.peer(b, parameters))
			until(t, "the peer knows the new timers", func() bool { return b.State(a.address) == "up, 80ms x 125" })

			b.confirmed = time.Minute
			b.stop()
			until(t, "a will wait", func() bool { return a.State(b.address) == "up, 600ms x 100" })
			b2 := start(t, c.b)
			b2.Watch(b2.peer(a, parameters))
			until(t, "as before", func() bool {
				return a.State(b.address) == "up, 80ms x 125" && strings.HasPrefix(b2.State(a.address), "up")
			})
			require.Equal(t, []string{c.b + " found"}, a.all(), "a has seen no change of state")
			b2.Watch(nil)
			until(t, "ended in order", func() bool { return a.State(b.address) == "down: the peer has switched BFD off" })
			require.Empty(t, b2.State(a.address))
			for _, told := range append(a.all(), b2.all()...) {
				require.Contains(t, told, "found", "nobody called the other lost")
			}
		})
	}
}

// TestSilence loses a peer that says nothing any more, within its detection time.
func TestSilence(t *testing.T) {
	a, b := start(t, "127.0.3.5"), start(t, "127.0.3.6")
	a.Watch(a.peer(b, quick))
	b.Watch(b.peer(a, quick))
	until(t, "up", func() bool { return a.State(b.address) == "up, 50ms x 100" && b.State(a.address) == "up, 50ms x 100" })
	b.Detector.mu.Lock() // as if its process were stopped
	began := time.Now()
	until(t, "lost", func() bool { return a.State(b.address) == "down: control detection time expired" })
	took := time.Since(began)
	b.Detector.mu.Unlock()
	require.Greater(t, took, 100*time.Millisecond)
	t.Logf("noticed after %s, detection time is 5s", took)
	until(t, "told", func() bool { return len(a.all()) >= 2 })
	require.Equal(t, []string{"127.0.3.6 found", "127.0.3.6 lost: BFD: control detection time expired"}, a.all()[:2])
	until(t, "up again", func() bool { return a.State(b.address) == "up, 50ms x 100" && b.State(a.address) == "up, 50ms x 100" })
}

// TestForeignPackets come from others, too far away, or for another session: none of them counts.
func TestForeignPackets(t *testing.T) {
	a := start(t, "127.0.3.7")
	peer := netip.MustParseAddr("127.0.3.8")
	a.Watch([]policy.Peer{{Name: "x", Address: peer, SourceAddress: a.address, BFD: quick}})
	until(t, "it listens", func() bool {
		a.Detector.mu.Lock()
		defer a.Detector.mu.Unlock()
		return len(a.listeners[hops{}].sockets) == 1
	})
	good := bfd.Packet{State: bfd.Down, Multiplier: 3, Sender: 9, MinTx: time.Second, MinRx: time.Second}.Append(nil)
	send := func(from string, ttl int, b []byte) {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: a.address.AsSlice(), Port: portSingleHop})
		require.NoError(t, err)
		defer c.Close()
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			require.NoError(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl))
		}))
		_, err = c.Write(b)
		require.NoError(t, err)
	}
	send("127.0.3.9", 255, good)
	send("127.0.3.8", 254, good)
	send("127.0.3.8", 255, good[:20])
	send("127.0.3.8", 255, []byte("hello"))
	stranger := bfd.Packet{State: bfd.Init, Multiplier: 3, Sender: 9, Receiver: 77, MinTx: time.Second, MinRx: time.Second}
	send("127.0.3.8", 255, stranger.Append(nil))
	require.Never(t, func() bool { return a.State(peer) != "waiting for peer's BFD" }, 200*time.Millisecond, 10*time.Millisecond)
	send("127.0.3.8", 255, good)
	until(t, "the good one counts", func() bool { return a.State(peer) == "init" })
}

// TestPortTaken says why BFD does not run, and runs once it can.
func TestPortTaken(t *testing.T) {
	address := netip.MustParseAddr("127.0.3.10")
	taken, err := listen(hops{}, address)
	require.NoError(t, err)
	a, b := start(t, "127.0.3.10"), start(t, "127.0.3.11")
	a.Watch(a.peer(b, quick))
	b.Watch(b.peer(a, quick))
	until(t, "it says why", func() bool {
		return a.State(b.address) == "not running: listening for BFD on 127.0.3.10:3784: address already in use"
	})
	require.NoError(t, unix.Close(taken))
	until(t, "it runs", func() bool { return a.State(b.address) == "up, 50ms x 100" })
}
