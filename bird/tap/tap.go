// Package tap hears what peers say in NOTIFICATION messages, on their way in. gobgp drops those that answer our OPEN, and with
// them why a peer does not want the session. Listening needs the right to open raw sockets, which a speaker on port 179
// has; without it only the reasons are missing.
package tap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Heard is a NOTIFICATION that came in (RFC 4271 section 4.5).
type Heard struct {
	From          netip.Addr
	To            netip.Addr // not valid where the kernel does not tell: IPv6
	Code, Subcode uint8
	Data          []byte
}

// Sizes and types of BGP messages (RFC 4271 section 4).
const (
	markerSize   = 16
	headerSize   = 19
	maxMessage   = 4096
	update       = 2
	notification = 3
)

// Tap is open sockets for both families.
type Tap struct{ v4, v6 *net.IPConn }

// Open opens the sockets.
func Open() (*Tap, error) {
	t := &Tap{}
	var err error
	if t.v4, err = open("ip4:tcp"); err == nil {
		if t.v6, err = open("ip6:tcp"); errors.Is(err, unix.EAFNOSUPPORT) {
			err = nil
		}
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("listening to what peers answer: %w; it needs the capability NET_RAW", err)
	}
	return t, nil
}

// Run calls hear for each NOTIFICATION that comes in, one at a time for each family, until ctx ends, and closes the sockets.
func (t *Tap) Run(ctx context.Context, hear func(Heard)) error {
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, t.close)()
	for _, conn := range []*net.IPConn{t.v4, t.v6} {
		if conn != nil {
			group.Go(func() error {
				if err := follow(conn, conn == t.v4, hear); ctx.Err() == nil {
					return fmt.Errorf("listening to what peers answer: %w", err)
				}
				return nil
			})
		}
	}
	return group.Wait()
}

func (t *Tap) close() {
	for _, conn := range []*net.IPConn{t.v4, t.v6} {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// open opens a raw socket that gets TCP segments that begin with a BGP message.
func open(network string) (*net.IPConn, error) {
	conn, err := net.ListenIP(network, nil)
	if err != nil {
		return nil, err
	}
	program, err := bpf.Assemble(filter(network == "ip4:tcp"))
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	code := make([]unix.SockFilter, len(program))
	for i, in := range program {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
		})
		err = errors.Join(err, set)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// filter takes segments whose payload begins with the marker of BGP messages and may have a NOTIFICATION: not those that begin
// with an UPDATE, of which there may be many, nor those that are one message of another type. A raw socket sees an IPv4 packet
// from its IP header on, and an IPv6 packet from its TCP header on.
func filter(v4 bool) []bpf.Instruction {
	var ip []bpf.Instruction
	if v4 {
		ip = []bpf.Instruction{bpf.LoadMemShift{Off: 0}} // X = length of the IP header
	} else {
		ip = []bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegX, Val: 0}}
	}
	return append(ip,
		bpf.LoadIndirect{Off: 12, Size: 1}, // length of the TCP header, in words in the upper half
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{}, // X = where the payload begins
		bpf.LoadIndirect{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0xffffffff, SkipTrue: 11},
		bpf.LoadIndirect{Off: markerSize + 2, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: update, SkipTrue: 9},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: notification, SkipTrue: 7},
		bpf.LoadIndirect{Off: markerSize, Size: 2}, // length of the message
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpX{Op: bpf.ALUOpSub},
		bpf.TAX{}, // X = length of the payload
		bpf.LoadScratch{Dst: bpf.RegA, N: 0},
		bpf.JumpIfX{Cond: bpf.JumpEqual, SkipTrue: 1},
		bpf.RetConstant{Val: 65535},
		bpf.RetConstant{Val: 0},
	)
}

func follow(conn *net.IPConn, v4 bool, hear func(Heard)) error {
	buffer := make([]byte, 65536)
	for {
		n, _, _, from, err := conn.ReadMsgIP(buffer, nil)
		if err != nil {
			return err
		}
		a, ok := netip.AddrFromSlice(from.IP)
		if !ok {
			continue
		}
		packet, to := buffer[:n], netip.Addr{}
		if v4 {
			if len(packet) < 20 || len(packet) < 4*int(packet[0]&0x0f) {
				continue
			}
			to = netip.AddrFrom4([4]byte(packet[16:20]))
			packet = packet[4*int(packet[0]&0x0f):]
		}
		if len(packet) < 20 || len(packet) < 4*int(packet[12]>>4) {
			continue
		}
		for _, h := range notifications(packet[4*int(packet[12]>>4):]) {
			h.From, h.To = a.Unmap(), to
			hear(h)
		}
	}
}

// notifications finds the NOTIFICATION messages in a segment that begins with a message.
func notifications(payload []byte) []Heard {
	var out []Heard
	for len(payload) >= headerSize {
		size := int(binary.BigEndian.Uint16(payload[markerSize:]))
		if size < headerSize || size > maxMessage || size > len(payload) {
			return out
		}
		for _, b := range payload[:markerSize] {
			if b != 0xff {
				return out
			}
		}
		if body := payload[headerSize:size]; payload[headerSize-1] == notification && len(body) >= 2 {
			out = append(out, Heard{Code: body[0], Subcode: body[1], Data: append([]byte(nil), body[2:]...)})
		}
		payload = payload[size:]
	}
	return out
}
