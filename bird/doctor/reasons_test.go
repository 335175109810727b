//go:debug multipathtcp=0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
	"github.com/muslin-net/muslin/bird/tap"
)

const port = 17181

func at(n int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 81, byte(n)}) }

// launch starts a speaker with peers; heard tells whether it hears what peers answer.
func launch(t *testing.T, own netip.Addr, as uint32, peers ...policy.Peer) (s *speaker.Speaker, heard bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	var engine *gobgp.Engine
	s, err := speaker.New(log, func(events speaker.Events) (_ speaker.Engine, err error) {
		engine, err = gobgp.New(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	if ears, err := tap.Open(); err == nil { // without the right to it a reason is less exact
		heard = true
		running.Go(func() { _ = engine.Overhear(ctx, ears) })
	}
	t.Cleanup(func() { cancel(); running.Wait(); _ = engine.Stop() })
	s.Feed().SnapshotEnd()
	_, err = s.Apply(policy.Config{Generation: 1, RouterID: own, ASNumber: as, ListenPort: port, ListenAddresses: []netip.Addr{own}, Peers: peers})
	require.NoError(t, err)
	return s, heard
}

func peer(own, other netip.Addr, as uint32, change ...func(*policy.Peer)) policy.Peer {
	p := policy.Peer{
		Name: "Node_" + other.String(), Type: policy.PeerNode, Source: "BGPPeer(test)", Address: other, Port: port,
		ASNumber: as, SourceAddress: own,
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

func passive(p *policy.Peer) { p.Passive = true }

// play is a peer that says what it is told to after our OPEN, and then what; it closes the connection at the end.
func play(t *testing.T, own netip.Addr, talk func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(own, port).String())
	require.NoError(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(t.Context(), func() { conn.Close() })
				defer stop()
				talk(conn)
			})
		}
	})
}

func say(conn net.Conn, messages ...*bgp.BGPMessage) {
	for _, m := range messages {
		if body, err := m.Serialize(); err == nil {
			_, _ = conn.Write(body)
		}
	}
}

// hear waits for the next message, or the end.
func hear(conn net.Conn) {
	header := make([]byte, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, header); err != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, int64(header[16])<<8+int64(header[17])-bgp.BGP_HEADER_LENGTH)
}

func openOf(own netip.Addr, hold uint16) *bgp.BGPMessage {
	return bgp.NewBGPOpenMessage(65001, hold, own.String(), []bgp.OptionParameterInterface{
		bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC)}),
	})
}

// establish goes through the handshake, until the session is up.
func establish(conn net.Conn, own netip.Addr, hold uint16) {
	hear(conn)
	say(conn, openOf(own, hold))
	hear(conn)
	say(conn, bgp.NewBGPKeepAliveMessage())
}

func cease(subcode uint8, data []byte) *bgp.BGPMessage {
	return bgp.NewBGPNotificationMessage(bgp.BGP_ERROR_CEASE, subcode, data)
}

func after(message *bgp.BGPMessage) func(net.Conn) {
	return func(conn net.Conn) {
		hear(conn)
		say(conn, message)
		hear(conn) // until the other end closes
	}
}

// TestReasons makes sessions fail in every way that can be had on loopback, and wants each told in operators' words.
func TestReasons(t *testing.T) {
	own := at(1)
	reasons := map[int]struct{ because, deaf, diagnosis string }{
		2:  {because: "Socket: Connection refused", diagnosis: "nothing listens on port 17181 there"},
		3:  {because: "Error: peer says its AS is 65009, configured 65001"},
		4:  {because: "Received: Bad peer AS", deaf: speaker.Refused, diagnosis: "the peer expects another AS than 64512, which this node shows"},
		5:  {because: `Received: Administrative shutdown ("maintenance")`, deaf: speaker.Refused},
		6:  {because: "Received: Unsupported capability (IPv6 unicast, 4-byte AS)", deaf: speaker.Refused},
		7:  {because: "Socket: Connection closed before the peer's OPEN; it may have no session configured for this node"},
		8:  {because: "Error: Hold timer expired"},
		9:  {because: "Received: Peer de-configured"},
		10: {because: "Socket: Cannot assign requested address", diagnosis: "source address 192.0.2.77 is not this node's"},
		11: {because: "Error: peer's router id is 127.0.81.1, which is no other node's"},
		12: {because: `Received: Administrative reset ("new cable")`},
	}
	launch(t, at(3), 65009, peer(at(3), own, 64512, passive))
	launch(t, at(4), 65001, peer(at(4), own, 64999, passive))
	play(t, at(5), after(cease(bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN, append([]byte{11}, "maintenance"...))))
	play(t, at(6), after(bgp.NewBGPNotificationMessage(2, 7, []byte{1, 4, 0, 2, 0, 1, 65, 4, 0, 0, 0, 1})))
	play(t, at(7), func(net.Conn) {})
	play(t, at(8), func(conn net.Conn) {
		establish(conn, at(8), 3)
		_, _ = io.Copy(io.Discard, conn)
	})
	play(t, at(9), func(conn net.Conn) {
		establish(conn, at(9), 90)
		say(conn, cease(bgp.BGP_ERROR_SUB_PEER_DECONFIGURED, nil))
		hear(conn)
	})
	play(t, at(12), func(conn net.Conn) {
		establish(conn, at(12), 90)
		say(conn, cease(bgp.BGP_ERROR_SUB_ADMINISTRATIVE_RESET, append([]byte{9}, "new cable"...)))
		hear(conn)
	})
	play(t, at(11), func(conn net.Conn) {
		hear(conn)
		m := openOf(own, 90)
		m.Body.(*bgp.BGPOpen).MyAS = 64512
		say(conn, m)
		hear(conn)
	})
	var peers []policy.Peer
	for n := range reasons {
		p := peer(own, at(n), 65001)
		switch n {
		case 10:
			p.SourceAddress = netip.MustParseAddr("192.0.2.77")
		case 11:
			p.ASNumber = 64512
		}
		peers = append(peers, p)
	}
	s, heard := launch(t, own, 64512, peers...)
	for n, want := range reasons {
		because := want.because
		if !heard && want.deaf != "" {
			because, want.diagnosis = want.deaf, ""
		}
		require.Eventually(t, func() bool {
			list := s.Sessions(at(n).String())
			return len(list) == 1 && list[0].LastError == because && list[0].Diagnosis == want.diagnosis
		}, time.Minute, 20*time.Millisecond, "%s\nis not %+v", because, s.Sessions(at(n).String()))
	}
	for _, n := range []int{8, 9, 12} {
		require.Eventually(t, func() bool {
			p := s.Sessions(at(n).String())[0]
			for i, h := range p.History {
				if i+1 < len(p.History) && p.History[i+1].State == speaker.Established {
					return p.Flaps > 0 && h.Reason == reasons[n].because
				}
			}
			return false
		}, time.Minute, 20*time.Millisecond, "the history of %d says how the session was lost: %+v", n, s.Sessions(at(n).String()))
	}
}

// suspected waits until a doctor of the speaker, which has one session, suspects what is wanted.
func suspected(t *testing.T, s *speaker.Speaker, want string) {
	t.Helper()
	d := New(slog.New(slog.DiscardHandler), s)
	d.grace = 0
	var err error
	d.before, err = d.read()
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		d.look(t.Context())
		return strings.HasPrefix(s.Sessions("")[0].Diagnosis, want)
	}, time.Minute, 100*time.Millisecond, want)
	t.Logf("%q: %s", s.Sessions("")[0].LastError, s.Sessions("")[0].Diagnosis)
}

// TestPasswords has peers that do not answer each other, since their passwords differ.
func TestPasswords(t *testing.T) {
	for n, c := range map[int]struct {
		dialer, listener string // passwords
		dials            string // what the end that dials suspects
	}{
		111: {dialer: "right", listener: "wrong", dials: "password mismatch suspected: "},
		112: {listener: "secret", dials: "no answer to SYN while the peer's host is there: "},
		113: {dialer: "secret", dials: "password mismatch suspected: "},
	} {
		t.Run(fmt.Sprintf("%q and %q", c.dialer, c.listener), func(t *testing.T) { // one after the other: the kernel counts for all
			listener, dialer := at(n), at(n+20)
			a, _ := launch(t, listener, 64512, peer(listener, dialer, 65001, passive, func(p *policy.Peer) { p.Password = c.listener }))
			b, _ := launch(t, dialer, 65001, peer(dialer, listener, 64512, func(p *policy.Peer) { p.Password = c.dialer }))
			suspected(t, a, "password mismatch suspected: ")
			suspected(t, b, c.dials)
		})
	}
}

// TestTTL has peers whose packets have a TTL of 64, once where we dial, and once where they do.
func TestTTL(t *testing.T) {
	hops := func(p *policy.Peer) { p.TTLSecurity = 2 }
	play(t, at(121), hear)
	s, _ := launch(t, at(122), 64512, peer(at(122), at(121), 65001, hops))
	suspected(t, s, "TTL security: packets came in with a TTL below 254; ")

	s, _ = launch(t, at(123), 64512, peer(at(123), at(124), 65001, hops, passive))
	require.Eventually(t, func() bool { return s.Sessions("")[0].State == speaker.Active }, time.Minute, 20*time.Millisecond)
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(at(124), 0))}
	conn, err := dialer.DialContext(t.Context(), "tcp", netip.AddrPortFrom(at(123), port).String())
	require.NoError(t, err)
	defer conn.Close()
	say(conn, openOf(at(124), 90)) // it may or may not come in before the limit is set
	suspected(t, s, "TTL security: packets came in with a TTL below 254; ")
}

// TestNobodyThere has a host that does not answer at all, and then is there after all.
func TestNobodyThere(t *testing.T) {
	there, now := false, time.Now()
	one := speaker.PeerState{Session: speaker.Session{State: speaker.Active, LastError: "Socket: Connection timed out"}}
	one.Peer.Address = at(9)
	bird := &patient{list: []speaker.PeerState{one}}
	d := New(slog.New(slog.DiscardHandler), bird)
	d.read = func() (Drops, error) { return nil, errors.New("no such file") }
	d.asks = func(context.Context, netip.Addr, netip.Addr) bool { return there }
	d.now = func() time.Time { return now }
	d.look(t.Context())
	require.Equal(t, "nothing at all answers from the peer's host", bird.text)
	there = true
	d.look(t.Context())
	require.Equal(t, "nothing at all answers from the peer's host", bird.text, "a host is not asked every few seconds")
	now = now.Add(again)
	d.look(t.Context())
	require.Contains(t, bird.text, "no answer to SYN while the peer's host is there")
}

type patient struct {
	list []speaker.PeerState
	text string
}

func (p *patient) Ailing() []speaker.PeerState        { return p.list }
func (p *patient) Diagnose(_ netip.Addr, what string) { p.text = what }

func TestDropsAreRead(t *testing.T) {
	got, err := parseDrops("TcpExt: SyncookiesSent TCPMD5Failure TCPMinTTLDrop\nTcpExt: 1 22 333\nIpExt: InNoRoutes\nIpExt: 7\n")
	require.NoError(t, err)
	require.Equal(t, Drops{WrongSignature: 22, LowTTL: 333}, got)
	_, err = parseDrops("TcpExt: A B\nTcpExt: 1\n")
	require.ErrorContains(t, err, "line 2")
	_, err = parseDrops("TcpExt: TCPMinTTLDrop\nTcpExt: x\n")
	require.ErrorContains(t, err, "TCPMinTTLDrop")
	_, err = ReadDrops()
	require.NoError(t, err)
}
