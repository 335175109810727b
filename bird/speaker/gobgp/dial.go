package gobgp

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"syscall"
	"time"
	"unsafe"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/server"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// gobgp waits 1 to 2 s before it dials, and hands over each connection that is made, also to a peer that has no session for
// us yet and closes at once; then it rests for 5 s. So connections are dialled here: at once, again soon, and handed to
// gobgp as if they had come in, but only once the peer speaks. For gobgp every session is a passive one.
const (
	dialTimeout = 2 * time.Second
	dialFirst   = 50 * time.Millisecond // the wait after a first failure; it doubles with each
	dialMost    = 3 * time.Second       // at most; plus or minus a quarter
	// dialSoon bounds it for dialEager: nodes that start together are there after one another, and whoever has just been
	// missed must not be waited for longer than it took to come.
	dialSoon  = 250 * time.Millisecond
	dialEager = 10 * time.Second
	// dialYield is how long the end with the lower address leaves the first try to the other: if both dial at once, each
	// closes what the other has opened. Mesh sessions have one end that dials.
	dialYield = 300 * time.Millisecond
	// openPatience is how long a peer may take to speak before the connection is handed over all the same: a few wait for
	// our OPEN. Those of the mesh do not, but may be busy with their start.
	openPatience = 300 * time.Millisecond
	meshPatience = 5 * time.Second
)

// accepted is the channel on which gobgp's listeners hand over what came in. gobgp does not export it; what this relies on is
// its name and type in the version that go.mod has, and nil says that they are others now.
func accepted(s *server.BgpServer) chan *net.TCPConn {
	field := reflect.ValueOf(s).Elem().FieldByName("acceptCh")
	if !field.IsValid() || field.Type() != reflect.TypeFor[chan *net.TCPConn]() {
		return nil
	}
	return *(*chan *net.TCPConn)(unsafe.Pointer(field.UnsafeAddr())) //nolint:gosec // name and type are checked
}

// followDial dials while a session waits for a connection. It is called with mu held.
func (e *Engine) followDial(a netip.Addr, state speaker.State) {
	if state == speaker.Active && e.dials[a] != nil {
		return
	}
	e.endDial(a)
	n, ok := e.peers[a]
	if state != speaker.Active || !ok || n.Passive || e.accepted == nil {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx)
	e.dials[a] = cancel
	go e.dial(ctx, n, e.accepted)
}

// endDial is called with mu held.
func (e *Engine) endDial(a netip.Addr) {
	if cancel := e.dials[a]; cancel != nil {
		cancel()
		delete(e.dials, a)
	}
}

// dial tries to connect until ctx ends: the session has a connection, or is no more.
func (e *Engine) dial(ctx context.Context, n speaker.Neighbor, to chan<- *net.TCPConn) {
	wait, began := dialFirst, time.Now()
	pause := firstPause(n)
	ask, patience := true, openPatience
	if n.Type == policy.PeerMesh {
		ask, patience = false, meshPatience // only we dial, so there is no connection that we have not made
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if ask && !e.waits(ctx, n.Address) {
			pause = dialFirst // the news of it ends this, or it waits again
			continue
		}
		conn, err := connect(ctx, n)
		if err == nil && !speaks(ctx, conn, patience) {
			_ = conn.Close()
			err = io.EOF
		}
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				_ = conn.Close()
			}
			return
		case err == nil:
			select {
			case to <- conn:
				ask = true
			case <-ctx.Done():
				_ = conn.Close()
				return
			}
			// gobgp takes it, and the change of state ends this; or it has just refused it.
		case errors.Is(err, io.EOF):
			e.reasons.tell(n.Address, handshake("BGP_FSM_OPENSENT", "read-failed"))
		default:
			e.reasons.trouble("failed to connect", log.Fields{"Topic": "Peer", "Key": n.Address.String(), "Error": err})
		}
		pause = wait*3/4 + rand.N(wait/2)
		most := dialMost
		if time.Since(began) < dialEager {
			most = dialSoon
		}
		wait = min(2*wait, most)
	}
}

// waits asks gobgp itself whether a session has no connection, since its events come late. BIRD takes a connection that comes
// in beside an established session for a restart, and where we have just restarted for a second one, after which it must forget
// our routes (RFC 4724, 4.2).
func (e *Engine) waits(ctx context.Context, peer netip.Addr) (waits bool) {
	err := e.server.ListPeer(ctx, &api.ListPeerRequest{Address: peer.String()}, func(p *api.Peer) {
		waits = p.GetState().GetSessionState() == api.PeerState_ACTIVE
	})
	return err == nil && waits
}

// firstPause is how long to leave the first try to the other end.
func firstPause(n speaker.Neighbor) time.Duration {
	if n.Type == policy.PeerMesh || own(n).Compare(n.Address) > 0 {
		return 0
	}
	return dialYield + rand.N(dialYield)
}

// own is the address that a connection to a neighbour comes from; not valid if there is no way.
func own(n speaker.Neighbor) netip.Addr {
	if n.SourceAddress.IsValid() {
		return n.SourceAddress
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.Address, bgpPort)))
	if err != nil {
		return netip.Addr{}
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

const bgpPort = 179

func connect(ctx context.Context, n speaker.Neighbor) (*net.TCPConn, error) {
	port := uint16(bgpPort)
	if n.Port != 0 {
		port = n.Port
	}
	d := net.Dialer{Timeout: dialTimeout, Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = setOptions(int(fd), n) }), err)
	}}
	if n.SourceAddress.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.SourceAddress, 0))
	}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(n.Address, port).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// setOptions sets what a connection must have before its first packet: the key (RFC 2385), and the TTL (RFC 5082).
func setOptions(fd int, n speaker.Neighbor) error {
	var errs []error
	if n.Password != "" {
		errs = append(errs, unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, signature(n)))
	}
	level, ttl, least := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
	if n.Address.Is6() {
		level, ttl, least = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
	}
	if n.TTLSecurity > 0 || !n.Internal {
		errs = append(errs, unix.SetsockoptInt(fd, level, ttl, 255))
	}
	if n.TTLSecurity > 0 {
		errs = append(errs, unix.SetsockoptInt(fd, level, least, 256-int(n.TTLSecurity)))
	}
	return errors.Join(errs...)
}

func signature(n speaker.Neighbor) *unix.TCPMD5Sig {
	s := &unix.TCPMD5Sig{Keylen: uint16(len(n.Password))}
	const port, flow = 2, 4 // what is before the address in struct sockaddr_in and sockaddr_in6, after the family
	if n.Address.Is4() {
		s.Addr.Family = unix.AF_INET
		copy(s.Addr.Data[port:], n.Address.AsSlice())
	} else {
		s.Addr.Family = unix.AF_INET6
		copy(s.Addr.Data[port+flow:], n.Address.AsSlice())
	}
	copy(s.Key[:], n.Password)
	return s
}

// speaks waits for the peer's first byte, without reading it. A peer that says nothing for a while counts as one that does; one
// that closes does not.
func speaks(ctx context.Context, c *net.TCPConn, patience time.Duration) bool {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := c.SyscallConn()
	if err != nil || c.SetReadDeadline(time.Now().Add(patience)) != nil {
		return false
	}
	count, failed := 0, error(nil)
	err = raw.Read(func(fd uintptr) bool {
		count, _, failed = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(failed, unix.EAGAIN)
	})
	silent := errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err)
	return c.SetReadDeadline(time.Time{}) == nil && (silent || err == nil && failed == nil && count > 0)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
