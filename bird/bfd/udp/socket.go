package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Ports of RFC 5881 section 4 and RFC 5883 section 5.
const (
	portSingleHop = 3784
	portMultihop  = 4784

	firstSource = 49152
	lastSource  = 65535
)

// ttl is sent with every packet, and what came over one hop must have it (RFC 5881 section 5).
const ttl = 255

// class is CS6, network control.
const class = 0xc0

// hops is what a session spans.
type hops struct {
	v6       bool
	multihop bool
}

func (h hops) port() uint16 {
	if h.multihop {
		return portMultihop
	}
	return portSingleHop
}

func (h hops) any() netip.Addr {
	if h.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

type option struct{ level, name, value int }

// open makes a socket that never blocks.
func open(v6 bool, options ...option) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
		options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a UDP socket: %w", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	return fd, nil
}

// listen opens the socket on which packets of a kind arrive.
func listen(h hops, address netip.Addr) (int, error) {
	options := []option{{unix.IPPROTO_IP, unix.IP_RECVTTL, 1}, {unix.IPPROTO_IP, unix.IP_PKTINFO, 1}}
	if h.v6 {
		options = []option{{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1}, {unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1}}
	}
	fd, err := open(h.v6, options...)
	if err != nil {
		return -1, err
	}
	at := netip.AddrPortFrom(address, h.port())
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listening for BFD on %s: %w", at, err)
	}
	return fd, nil
}

// dial opens the socket from which packets of one session go. source may be unspecified.
func dial(v6 bool, source netip.Addr) (int, error) {
	options := []option{{unix.IPPROTO_IP, unix.IP_TTL, ttl}, {unix.IPPROTO_IP, unix.IP_TOS, class}}
	if v6 {
		options = []option{{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl}, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS, class}}
	}
	fd, err := open(v6, options...)
	if err != nil {
		return -1, err
	}
	for range 100 {
		port := firstSource + rand.IntN(lastSource-firstSource+1)
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, uint16(port))))
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("sending BFD from %s: %w", source, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// arrival is a datagram as it came.
type arrival struct {
	from, to netip.Addr
	ttl      int // -1: not known
	data     []byte
}

// receive takes one datagram, if there is one. buf and control are used for it.
func receive(fd int, buf, control []byte) (arrival, bool) {
	n, controls, _, from, err := unix.Recvmsg(fd, buf, control, unix.MSG_DONTWAIT)
	if err != nil {
		return arrival{}, false
	}
	a := arrival{ttl: -1, data: buf[:n]}
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		a.from = netip.AddrFrom4(from.Addr)
	case *unix.SockaddrInet6:
		a.from = netip.AddrFrom16(from.Addr)
	}
	a.readControl(control[:controls])
	return a, true
}

// readControl reads what the kernel says of a datagram (ip(7), ipv6(7)).
func (a *arrival) readControl(b []byte) {
	for len(b) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return
		}
		b = rest
		kind := [2]int32{header.Level, header.Type}
		switch {
		case len(data) >= 4 && (kind == [2]int32{unix.IPPROTO_IP, unix.IP_TTL} || kind == [2]int32{unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT}):
			a.ttl = int(binary.NativeEndian.Uint32(data))
		case len(data) >= unix.SizeofInet4Pktinfo && kind == [2]int32{unix.IPPROTO_IP, unix.IP_PKTINFO}:
			a.to = netip.AddrFrom4([4]byte(data[8:12])) // ipi_addr
		case len(data) >= unix.SizeofInet6Pktinfo && kind == [2]int32{unix.IPPROTO_IPV6, unix.IPV6_PKTINFO}:
			a.to = netip.AddrFrom16([16]byte(data[:16]))
		}
	}
}
