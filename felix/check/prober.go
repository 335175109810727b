package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/render"
)

// Of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	icmpHeader               = 8 // bytes: type, code, checksum, identifier, sequence number
	ip4Header                = 20
	ip6Header                = 40
)

// prober sends echo requests that nobody on the way may take apart, to one address. Sizes are those of whole IP packets.
// The kernel's own idea of the path's MTU is passed over: whether a packet arrives is what is asked.
type prober struct {
	conn   *net.IPConn
	v6     bool
	id     uint16
	seq    uint16
	sent   map[uint16]probe // by sequence number
	took   map[int]time.Duration
	trip   time.Duration // the shortest round trip
	failed error         // of the last attempt to send
	stop   func() bool
}

type probe struct {
	size int
	at   time.Time
}

func newProber(ctx context.Context, path render.Path) (*prober, error) {
	p := &prober{v6: path.Remote.Is6(), id: uint16(rand.Uint32()), sent: map[uint16]probe{}, took: map[int]time.Duration{}}
	network, level, option, value := "ip4:icmp", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if p.v6 {
		network, level, option, value = "ip6:ipv6-icmp", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	conn, err := net.DialIP(network, &net.IPAddr{IP: path.Local.AsSlice()}, &net.IPAddr{IP: path.Remote.AsSlice()})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), level, option, value)
			if err == nil && p.v6 {
				err = unix.SetsockoptInt(int(fd), level, unix.IPV6_DONTFRAG, 1)
			}
		}), err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forbid fragments: %w", err), conn.Close())
	}
	p.conn = conn
	p.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return p, nil
}

func (p *prober) close() {
	p.stop()
	_ = p.conn.Close()
}

// round sends packets of the given sizes, each a second time when half of the time is over, and returns the largest size
// that was answered, 0 if none was. It ends when the first size is answered. With limit 0 it waits a few of the round trips
// seen so far; so it does once an answer came, if that is sooner.
func (p *prober) round(ctx context.Context, sizes []int, limit time.Duration) (best int) {
	clear(p.sent) // late answers to an earlier round say nothing about this one
	if limit == 0 {
		limit = max(least, trips*p.trip)
	}
	for try := 0; try < 2 && best < sizes[0] && ctx.Err() == nil; try++ {
		p.send(sizes)
		sent := time.Now() // a process that did not get its turn waits as long
		for best < sizes[0] && ctx.Err() == nil {
			size, answered := p.receive(sent.Add(limit / 2))
			if answered {
				if best == 0 {
					limit = min(limit, time.Since(sent)+max(least, trips*p.trip))
				}
				best = max(best, size)
			} else if time.Since(sent) >= limit/2 { // else it was an ICMP error
				break
			}
		}
	}
	return best
}

// send sends one packet of each size. One that the node's own device does not take just gets no answer.
func (p *prober) send(sizes []int) {
	header := ip4Header
	kind := byte(echoRequest4)
	if p.v6 {
		header, kind = ip6Header, echoRequest6
	}
	for _, size := range sizes {
		p.seq++
		body := make([]byte, max(icmpHeader, size-header))
		body[0] = kind
		binary.BigEndian.PutUint16(body[4:], p.id)
		binary.BigEndian.PutUint16(body[6:], p.seq)
		if !p.v6 { // the kernel does it for ICMPv6, whose checksum covers the addresses
			binary.BigEndian.PutUint16(body[2:], checksum(body))
		}
		p.sent[p.seq] = probe{size: size, at: time.Now()}
		_, err := p.conn.Write(body)
		if err != nil { // perhaps the answer to an earlier packet, which the socket reports at the next call
			_, err = p.conn.Write(body)
		}
		if err != nil && !errors.Is(err, unix.EMSGSIZE) {
			p.failed = err
		}
	}
}

// receive waits for one answer. One that has come already is taken whatever the deadline is: it may be this process that is late.
func (p *prober) receive(deadline time.Time) (size int, ok bool) {
	if now := time.Now().Add(glance); deadline.Before(now) {
		deadline = now
	}
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return 0, false
	}
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := p.conn.ReadFromIP(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return 0, false
		}
		if err != nil {
			continue // an ICMP error about a packet of ours; others may have arrived
		}
		reply := byte(echoReply4)
		if p.v6 {
			reply = echoReply6
		}
		if n < icmpHeader || buffer[0] != reply || binary.BigEndian.Uint16(buffer[4:]) != p.id {
			continue
		}
		if sent, mine := p.sent[binary.BigEndian.Uint16(buffer[6:])]; mine {
			trip := time.Since(sent.at)
			p.took[sent.size] = trip
			if p.trip == 0 || trip < p.trip {
				p.trip = trip
			}
			return sent.size, true
		}
	}
}

// checksum is that of the Internet protocols (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
