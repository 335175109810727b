// Package udp runs BFD sessions over UDP (RFC 5881, RFC 5883), each for a peer of BGP, and tells when a path is lost.
//
// All of it happens in one thread of its own, which waits for sockets and timers alone: packets go out on time while BGP is
// busy, and whatever has arrived is read before anyone is called lost. Sockets are open only while there are sessions.
package udp

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/bird/bfd"
	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// Events is who is told about paths. Calls come one at a time, in order, on a goroutine of their own.
type Events interface {
	// PeerLost says that a path worked and does not any more.
	PeerLost(peer netip.Addr, by speaker.Evidence, reason string)
	// PeerFound says that a path works, or that nothing more is known of it.
	PeerFound(peer netip.Addr, by speaker.Evidence)
}

const (
	openAgain = time.Second            // before a socket that could not be opened is tried again
	confirmed = 200 * time.Millisecond // within which peers should confirm that they will wait
	farewells = 3                      // packets that say that BFD ends; one may get lost
	pause     = 5 * time.Millisecond   // between them
)

// Detector runs the sessions. It is made by New and works while Run does.
type Detector struct {
	log       *slog.Logger
	listen    []netip.Addr // empty: all addresses
	start     time.Time
	wake      int // eventfd
	tell      *teller
	confirmed time.Duration // within which peers should confirm that they will wait

	mu        sync.Mutex // guards the following
	sessions  map[netip.Addr]*session
	ending    []*session // told to the peer as ended until their time is over
	listeners map[hops]*listener
}

// session is a BFD session with its socket.
type session struct {
	*bfd.Session
	peer       netip.Addr
	source     netip.Addr // unspecified: the kernel chooses
	hops       hops
	parameters bfd.Parameters
	silence    time.Duration // for how long the peer waits for a restart
	socket     int           // -1: not open
	trouble    error
	retry      time.Duration // when to open the socket again
	until      time.Duration // of one that ends
	said       string        // last state in the log
}

// listener is what receives packets of a kind.
type listener struct {
	sockets []int
	trouble error
	retry   time.Duration
}

// New returns a detector without sessions. It listens on the given addresses, or on all if there are none.
func New(log *slog.Logger, events Events, listen ...netip.Addr) (*Detector, error) {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("bfd: %w", err)
	}
	return &Detector{
		log: log, listen: listen, start: time.Now(), wake: wake, tell: newTeller(events), sessions: map[netip.Addr]*session{},
		listeners: map[hops]*listener{}, confirmed: confirmed,
	}, nil
}

// now is the time of sessions. The wall clock has no say in it.
func (d *Detector) now() time.Duration { return time.Since(d.start) }

// Watch makes those of the peers that are configured for BFD the ones that have a session. Changed timers are negotiated
// without the session going down.
func (d *Detector) Watch(peers []policy.Peer) {
	d.mu.Lock()
	now, want := d.now(), map[netip.Addr]bool{}
	for i := range peers {
		if p := &peers[i]; p.BFD.Enabled() {
			want[p.Address] = true
			d.watch(now, p)
		}
	}
	for a, s := range d.sessions {
		if !want[a] {
			d.end(now, s)
		}
	}
	d.mu.Unlock()
	d.poke()
}

// watch begins or changes a session. Whoever calls holds mu.
func (d *Detector) watch(now time.Duration, p *policy.Peer) {
	h := hops{v6: p.Address.Is6(), multihop: p.BFD.Multihop}
	source := p.SourceAddress
	if !source.IsValid() {
		source = h.any()
	}
	parameters := bfd.Parameters{MinTx: p.BFD.MinTx, MinRx: p.BFD.MinRx, Multiplier: p.BFD.Multiplier}
	if s := d.sessions[p.Address]; s != nil {
		if s.hops == h && s.source == source {
			s.silence = p.RestartTime
			if s.parameters != parameters {
				s.parameters = parameters
				s.Change(now, parameters)
			}
			return
		}
		d.end(now, s)
	}
	d.sessions[p.Address] = &session{
		Session: bfd.New(now, d.discriminator(), parameters, rand.Float64), peer: p.Address, source: source, hops: h,
		parameters: parameters, silence: p.RestartTime, socket: -1,
	}
	if d.listeners[h] == nil {
		d.listeners[h] = &listener{}
	}
}

// discriminator is one that no session has, and hard to guess.
func (d *Detector) discriminator() uint32 {
	for {
		if n := rand.Uint32(); n != 0 && d.find(n) == nil {
			return n
		}
	}
}

func (d *Detector) find(discriminator uint32) *session {
	for _, s := range d.sessions {
		if s.Local() == discriminator {
			return s
		}
	}
	return nil
}

// end begins the end of a session. Whoever calls holds mu.
func (d *Detector) end(now time.Duration, s *session) {
	delete(d.sessions, s.peer)
	s.until = now + s.RemoteDetection()
	d.ending = append(d.ending, s)
	d.act(now, s, s.Stop(now))
	d.tell.add(event{peer: s.peer})
}

// State says how the session with a peer does, empty if there is none.
func (d *Detector) State(peer netip.Addr) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.sessions[peer]
	switch {
	case s == nil:
		return ""
	case s.State() == bfd.Up:
	case d.listeners[s.hops].trouble != nil:
		return "not running: " + d.listeners[s.hops].trouble.Error()
	case s.trouble != nil:
		return "not running: " + s.trouble.Error()
	}
	return s.String()
}

// poke makes Run look.
func (d *Detector) poke() {
	_, _ = unix.Write(d.wake, binary.NativeEndian.AppendUint64(nil, 1)) // it fails only if it is poked already
}

// Run serves the sessions until ctx ends; then it has the peers wait for the process to come back.
func (d *Detector) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, d.poke)
	defer stop()
	told := make(chan struct{})
	go func() { defer close(told); d.tell.run(ctx) }()
	defer func() { <-told }()
	runtime.LockOSThread() // never waits behind goroutines that share a thread with network and timers
	defer runtime.UnlockOSThread()
	defer d.close()
	var buf [1500]byte
	var control [256]byte
	for ctx.Err() == nil {
		fds, wait := d.turn(buf[:], control[:])
		timeout := unix.NsecToTimespec(max(wait, 0).Nanoseconds())
		if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && err != unix.EINTR {
			return fmt.Errorf("bfd: waiting for packets: %w", err)
		}
	}
	d.farewell(buf[:], control[:])
	return nil
}

// longest is how long a turn waits when nothing is due.
const longest = time.Minute

// turn reads what has arrived, does what is due, and says what to wait for and how long.
func (d *Detector) turn(buf, control []byte) ([]unix.PollFd, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var drained [8]byte
	_, _ = unix.Read(d.wake, drained[:])
	d.openAll()
	fds := []unix.PollFd{{Fd: int32(d.wake), Events: unix.POLLIN}}
	for h, l := range d.listeners {
		for _, fd := range l.sockets {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			// What has come by now is read before anyone is called lost; what comes later waits, lest a flood of packets
			// keep ours from going out.
			for range 64 + 16*len(d.sessions) {
				a, ok := receive(fd, buf, control)
				if !ok {
					break
				}
				d.take(h, a)
			}
		}
	}
	now := d.now()
	next := now + longest
	for _, s := range d.sessions {
		if now >= s.Next() {
			d.act(now, s, s.Tick(now))
		}
		next = min(next, s.Next())
	}
	rest := d.ending[:0]
	for _, s := range d.ending {
		if now >= s.until {
			s.close()
			continue
		}
		if now >= s.Next() {
			d.act(now, s, s.Tick(now))
		}
		next = min(next, s.Next(), s.until)
		rest = append(rest, s)
	}
	clear(d.ending[len(rest):])
	d.ending = rest
	for _, l := range d.listeners {
		if l.trouble != nil {
			next = min(next, l.retry)
		}
	}
	return fds, next - now
}

// openAll opens the listeners that are needed, and closes the others.
func (d *Detector) openAll() {
	now, needed := d.now(), map[hops]bool{}
	for _, s := range d.sessions {
		needed[s.hops] = true
	}
	for h, l := range d.listeners {
		switch {
		case !needed[h]:
			l.close()
			delete(d.listeners, h)
		case len(l.sockets) == 0 && now >= l.retry:
			before := l.trouble
			if l.trouble = l.open(h, d.listen); l.trouble != nil {
				l.retry = now + openAgain
				if before == nil {
					d.log.Warn("BFD does not run; trying again", "error", l.trouble)
				}
			}
		}
	}
}

func (l *listener) open(h hops, addresses []netip.Addr) error {
	if len(addresses) == 0 {
		addresses = []netip.Addr{h.any()}
	}
	for _, a := range addresses {
		if a.Is6() != h.v6 {
			continue
		}
		fd, err := listen(h, a)
		if err != nil {
			l.close()
			return err
		}
		l.sockets = append(l.sockets, fd)
	}
	return nil
}

func (l *listener) close() {
	for _, fd := range l.sockets {
		_ = unix.Close(fd)
	}
	l.sockets = nil
}

// take gives a datagram to the session that it is for, if it may be what it claims.
func (d *Detector) take(h hops, a arrival) {
	s := d.sessions[a.from]
	if s == nil || s.hops != h || !h.multihop && a.ttl != ttl || !s.source.IsUnspecified() && a.to.IsValid() && a.to != s.source {
		return
	}
	p, err := bfd.Parse(a.data)
	if err != nil {
		d.log.Debug("BFD packet dropped", "peer", a.from, "error", err)
		return
	}
	if p.Receiver != s.Local() && d.find(p.Receiver) != nil {
		return // it names the session of another peer
	}
	now := d.now()
	d.act(now, s, s.Receive(now, p))
}

// act does what a session asks for. Whoever calls holds mu.
func (d *Detector) act(now time.Duration, s *session, out bfd.Output) {
	if out.Send {
		s.send(now, out.Packet)
	}
	if state := s.String(); state != s.said && s.until == 0 {
		s.said = state
		d.log.Info("BFD", "peer", s.peer, "state", state)
	}
	switch out.Event {
	case bfd.Lost:
		d.tell.add(event{s.peer, true, "BFD: " + s.Reason()})
	case bfd.CameUp, bfd.Released:
		d.tell.add(event{peer: s.peer})
	}
}

// send sends a packet. What the network says to that is for the session's timers to notice.
func (s *session) send(now time.Duration, p bfd.Packet) {
	if s.socket < 0 && now >= s.retry {
		s.socket, s.trouble = dial(s.hops.v6, s.source)
		s.retry = now + openAgain
	}
	if s.socket < 0 {
		return
	}
	_ = unix.Sendto(s.socket, p.Append(nil), unix.MSG_DONTWAIT, sockaddr(netip.AddrPortFrom(s.peer, s.hops.port())))
}

func (s *session) close() {
	if s.socket >= 0 {
		_ = unix.Close(s.socket)
		s.socket = -1
	}
}

// farewell has peers not miss this process until their graceful restart would be over. Those that do not confirm are told
// that BFD ends here in order, a few times: to say it for a whole detection time, as RFC 5880 section 6.8.16 has it, would
// make every stop last for that.
func (d *Detector) farewell(buf, control []byte) {
	d.each(func(now time.Duration, s *session) {
		if s.State() == bfd.Up {
			d.act(now, s, s.Retreat(now, s.silence))
		}
	})
	for deadline := d.now() + d.confirmed; d.unconfirmed() && d.now() < deadline; {
		fds, wait := d.turn(buf, control)
		timeout := unix.NsecToTimespec(max(min(wait, deadline-d.now()), 0).Nanoseconds())
		_, _ = unix.Ppoll(fds, &timeout, nil)
	}
	for i := range farewells {
		if i > 0 {
			time.Sleep(pause)
		}
		d.each(func(now time.Duration, s *session) {
			if s.State() != bfd.Up || s.Polling() {
				s.send(now, s.Stop(now).Packet)
			}
		})
	}
}

// each does something with every session.
func (d *Detector) each(do func(time.Duration, *session)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		do(d.now(), s)
	}
}

func (d *Detector) unconfirmed() (some bool) {
	d.each(func(_ time.Duration, s *session) { some = some || s.State() == bfd.Up && s.Polling() })
	return some
}

// close closes all sockets; sessions are gone.
func (d *Detector) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		s.close()
	}
	for _, s := range d.ending {
		s.close()
	}
	for _, l := range d.listeners {
		l.close()
	}
	clear(d.sessions)
	clear(d.listeners)
	d.ending = nil
}
