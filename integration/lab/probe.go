package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Path is how a probe travelled.
type Path string

// The paths that a probe can be seen to take.
const (
	PathLocal  Path = "local"  // it left no node
	PathDirect Path = "direct" // between nodes, as it is
	PathVXLAN  Path = "vxlan"
	PathIPIP   Path = "ipip"
	PathNone   Path = "none"  // it did not get through
	PathMixed  Path = "mixed" // its packets were seen in more than one form
)

// ProbeKind is what a probe sends.
type ProbeKind string

// The kinds of probes.
const (
	ProbeTCP  ProbeKind = "tcp"  // connect, send a word, get it back
	ProbeICMP ProbeKind = "icmp" // echo request and reply
)

// ProbeResult tells how one probe went.
type ProbeResult struct {
	From    string        `json:"from"`
	To      string        `json:"to"`
	Target  string        `json:"target"` // address, with the port of a TCP probe
	Kind    ProbeKind     `json:"kind"`
	OK      bool          `json:"ok"`
	Latency time.Duration `json:"latency,omitempty"` // TCP: of the handshake; ICMP: round trip
	Path    Path          `json:"path"`
	Error   string        `json:"error,omitempty"`
	// Sample is one captured packet of the probe between nodes, if there was one.
	Sample string `json:"sample,omitempty"`
	// Packets is how many frames of the probe were captured on node uplinks.
	Packets int `json:"packets"`
	// Seen are all frames of the probe on node uplinks, leaving and arriving, in the order of each node's capture.
	Seen []Sighting `json:"-"`
}

// Sighting is a frame captured on a node's uplink.
type Sighting struct {
	Node string
	Packet
}

// echo answers each connection with what it is sent, until it is closed.
type echo struct {
	l    *net.TCPListener
	addr netip.AddrPort
	done chan struct{}
}

// startEcho serves in a node or pod, on a free port of its address.
func (l *Lab) startEcho(ctx context.Context, where string, at netip.Addr) (*echo, error) {
	ln, err := l.Listen(ctx, where, netip.AddrPortFrom(at, 0))
	if err != nil {
		return nil, err
	}
	e := &echo{l: ln, addr: ln.Addr().(*net.TCPAddr).AddrPort(), done: make(chan struct{})}
	go e.serve()
	return e, nil
}

func (e *echo) serve() {
	defer close(e.done)
	for {
		c, err := e.l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(2 * AnswerPatience)) // a client that vanished must not keep it
			_, _ = io.Copy(c, c)
		}()
	}
}

func (e *echo) close() {
	_ = e.l.Close()
	<-e.done
}

// ping sends an echo request with the word as payload and waits for its reply.
func (l *Lab) ping(ctx context.Context, from string, to netip.Addr, word []byte, timeout time.Duration) (time.Duration, error) {
	request, reply, proto, header := byte(8), byte(0), unix.IPPROTO_ICMP, true
	if to.Is6() {
		request, reply, proto, header = 128, 129, unix.IPPROTO_ICMPV6, false
	}
	f, err := l.socket(ctx, from, familyOf(to), unix.SOCK_RAW, proto)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	msg := append([]byte{request, 0, 0, 0, 0, 0, 0, 1}, word...)
	copy(msg[4:6], word) // the identifier
	if to.Is4() {
		binary.BigEndian.PutUint16(msg[2:4], internetChecksum(msg)) // the kernel does it for ICMPv6
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := f.SetDeadline(began.Add(timeout)); err != nil {
		return 0, err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.Sendto(int(fd), msg, 0, sockaddr(netip.AddrPortFrom(to, 0))) }); err != nil || sent != nil {
		return 0, fmt.Errorf("send an echo request to %s: %w", to, errors.Join(err, sent))
	}
	buf := make([]byte, 2048)
	for {
		var n int
		var got error
		err := raw.Read(func(fd uintptr) bool {
			n, _, got = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(got, unix.EAGAIN)
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("no echo reply from %s", to)
		}
		if err != nil || got != nil {
			return 0, errors.Join(err, got)
		}
		data := buf[:n]
		if header && n > 20 {
			data = data[int(data[0]&0xf)*4:]
		}
		if len(data) > 8 && data[0] == reply && bytes.Equal(data[8:], word) {
			return time.Since(began), nil
		}
	}
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		v := uint32(b[i]) << 8
		if i+1 < len(b) {
			v |= uint32(b[i+1])
		}
		sum += v
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
