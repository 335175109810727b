package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"

	"github.com/muslin-net/muslin/internal/rpc"
)

const (
	// maxHandshakes is how many handshakes may be unfinished. Beyond it the oldest of the host with most of them is dropped: a real
	// one takes milliseconds, and all nodes of a cluster at once must find room.
	maxHandshakes = 2048
	// maxConnections is how many connections a client may have. Three or four daemons of a node have one each.
	maxConnections = 16
)

// door stands before a listener: it bounds unfinished handshakes and connections of one client, and notes what fails before
// any call is there to be refused.
type door struct {
	credentials.TransportCredentials
	refusals *refusals

	mu     sync.Mutex            // guards all below
	shut   bool                  // no more connections are noted: the server ends them
	open   map[string]int        // connections by client
	shakes map[string][]*arrival // unfinished handshakes by host, oldest first
	count  int                   // of them
}

func newDoor(creds credentials.TransportCredentials, r *refusals) *door {
	return &door{TransportCredentials: creds, refusals: r, open: map[string]int{}, shakes: map[string][]*arrival{}}
}

// arrival is a connection as it was accepted.
type arrival struct {
	net.Conn
	door    *door
	host    string
	who     string      // whose it is; guarded by the door's mu, empty until that is known and after the end
	dropped atomic.Bool // it made room for another one
}

// listener makes arrivals of what it accepts.
type listener struct {
	net.Listener
	door *door
}

// Accept waits for the next one.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	a := &arrival{Conn: c, door: l.door, host: hostOf(c.RemoteAddr())}
	l.door.arrives(a)
	return a, nil
}

// arrives notes a connection whose handshake is to come.
func (d *door) arrives(a *arrival) {
	d.mu.Lock()
	d.shakes[a.host] = append(d.shakes[a.host], a)
	d.count++
	var victim *arrival
	if d.count > maxHandshakes {
		var most string
		for host, list := range d.shakes {
			if len(list) > len(d.shakes[most]) {
				most = host
			}
		}
		victim = d.shakes[most][0]
		d.shaken(victim)
	}
	d.mu.Unlock()
	if victim != nil {
		victim.dropped.Store(true)
		victim.Conn.Close()
	}
}

// shaken forgets a handshake. The caller holds mu.
func (d *door) shaken(a *arrival) {
	list := d.shakes[a.host]
	i := slices.Index(list, a)
	if i < 0 {
		return
	}
	d.count--
	if d.shakes[a.host] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(d.shakes, a.host)
	}
}

// Close ends the connection.
func (a *arrival) Close() error {
	d := a.door
	d.mu.Lock()
	d.shaken(a)
	if a.who != "" {
		if d.open[a.who]--; d.open[a.who] == 0 {
			delete(d.open, a.who)
		}
		a.who = ""
	}
	d.mu.Unlock()
	return a.Conn.Close()
}

// close says that connections end from now on because the server does.
func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
}

// note notes what was refused, unless the server is ending.
func (d *door) note(reason, from, what string, why error) {
	d.mu.Lock()
	shut := d.shut
	d.mu.Unlock()
	if !shut {
		d.refusals.note(reason, from, what, why)
	}
}

// ServerHandshake is of credentials.TransportCredentials.
func (d *door) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a, ok := raw.(*arrival)
	if !ok {
		return nil, nil, errors.New("the connection came past the door")
	}
	conn, info, err := d.TransportCredentials.ServerHandshake(raw)
	d.mu.Lock()
	d.shaken(a)
	d.mu.Unlock()
	switch {
	case err == nil:
	case a.dropped.Load():
		err = fmt.Errorf("more than %d handshakes were unfinished, this one was the oldest of the host with most of them", maxHandshakes)
		fallthrough
	case !errors.Is(err, io.EOF): // a probe connects and goes, and means nothing by it
		d.note(refusedHandshake, a.host, "handshake", err)
		fallthrough
	default:
		return nil, nil, err
	}
	who := a.host
	if tls, ok := info.(credentials.TLSInfo); ok && len(tls.State.PeerCertificates) > 0 {
		if id, err := rpc.IdentityOf(tls.State.PeerCertificates[0]); err == nil {
			who = id.String()
			if err := d.admit(a, who); err != nil {
				d.note(refusedLimit, who, "connection", err)
				return nil, nil, errors.Join(err, conn.Close())
			}
		}
	}
	return &watched{Conn: conn, door: d, who: who}, info, nil
}

// admit counts a connection as a client's.
func (d *door) admit(a *arrival, who string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[who] >= maxConnections {
		return fmt.Errorf("%s has %d connections already", who, maxConnections)
	}
	d.open[who]++
	a.who = who
	return nil
}

// Clone is of credentials.TransportCredentials.
func (d *door) Clone() credentials.TransportCredentials { return d }

// ClientHandshake is of credentials.TransportCredentials.
func (d *door) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a door is for servers")
}

// watched is a connection after its handshake. Package grpc tells nobody when it refuses at the level of HTTP/2, so the frames
// by which it does are looked for in what it sends.
type watched struct {
	net.Conn
	door *door
	who  string

	reading, ended, told atomic.Bool
	out                  scanner // of Write alone, which one goroutine calls
}

// Read reads.
func (w *watched) Read(b []byte) (int, error) {
	w.reading.Store(true)
	n, err := w.Conn.Read(b)
	w.reading.Store(false)
	if err != nil {
		w.ended.Store(true)
	}
	return n, err
}

// Write writes.
func (w *watched) Write(b []byte) (int, error) {
	w.out.scan(b, w.refused)
	return w.Conn.Write(b)
}

// Close ends the connection. If nobody was reading it, nor had it ended, then the reader gave up: what it read was no HTTP/2.
func (w *watched) Close() error {
	if !w.reading.Load() && !w.ended.Swap(true) && !w.told.Load() {
		w.door.note(refusedProtocol, w.who, "connection", errors.New("what came is no HTTP/2, or a frame of it is damaged; the connection was closed"))
	}
	return w.Conn.Close()
}

// refused notes a stream, or a connection, that is ended with an error.
func (w *watched) refused(kind http2.FrameType, code http2.ErrCode, text string) {
	if kind == http2.FrameGoAway {
		w.told.Store(true)
	}
	reason, why := refusedProtocol, fmt.Errorf("HTTP/2 %v: %v %s", kind, code, text)
	switch code {
	case http2.ErrCodeNo, http2.ErrCodeCancel, http2.ErrCodeInternal:
		return
	case http2.ErrCodeFrameSize:
		reason, why = refusedOversized, fmt.Errorf("the metadata of a call has more than %d bytes, or a frame has not the size that its kind has", maxMetadata)
	case http2.ErrCodeRefusedStream:
		reason, why = refusedLimit, fmt.Errorf("more than %d calls are under way on one connection", maxOpen)
	case http2.ErrCodeEnhanceYourCalm:
		reason = refusedLimit
	}
	w.door.note(reason, w.who, "connection", why)
}

// scanner looks through frames of HTTP/2, as they are written, for RST_STREAM and GOAWAY.
type scanner struct {
	head []byte // of the frame that has begun
	body []byte // of one that is looked for
	left int    // bytes of the frame that are to come
}

const frameHead = 9

func (s *scanner) scan(b []byte, found func(http2.FrameType, http2.ErrCode, string)) {
	for len(b) > 0 {
		if s.left == 0 {
			n := min(frameHead-len(s.head), len(b))
			s.head, b = append(s.head, b[:n]...), b[n:]
			if len(s.head) < frameHead {
				return
			}
			s.left, s.body = int(s.head[0])<<16|int(s.head[1])<<8|int(s.head[2]), s.body[:0]
		}
		kind := http2.FrameType(s.head[3])
		n := min(s.left, len(b))
		if kind == http2.FrameRSTStream || kind == http2.FrameGoAway {
			s.body = append(s.body, b[:n]...)
		}
		b, s.left = b[n:], s.left-n
		if s.left > 0 {
			return
		}
		s.head = s.head[:0]
		switch {
		case kind == http2.FrameRSTStream && len(s.body) >= 4:
			found(kind, http2.ErrCode(binary.BigEndian.Uint32(s.body)), "")
		case kind == http2.FrameGoAway && len(s.body) >= 8:
			found(kind, http2.ErrCode(binary.BigEndian.Uint32(s.body[4:])), string(s.body[8:]))
		}
	}
}
