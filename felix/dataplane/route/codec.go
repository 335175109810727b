package route

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// ip6DefaultMetric is what the kernel makes of an IPv6 route with metric 0 (IP6_RT_PRIO_USER). Keys and routes inside this
// package always carry it.
const ip6DefaultMetric = 1024

// normalKey is the key as the kernel reports it.
func normalKey(k desired.RouteKey) desired.RouteKey {
	if k.Dst.Addr().Is6() && k.Metric == 0 {
		k.Metric = ip6DefaultMetric
	}
	return k
}

// normal is the route as the kernel reports it.
func normal(r desired.Route) desired.Route {
	k := normalKey(r.Key())
	r.Table, r.Metric = k.Table, k.Metric
	if r.Dst.Addr().Is6() {
		r.LinkScope = false // IPv6 routes have no scope
	}
	if r.Kind != desired.Unicast {
		r.NextHops = nil
	}
	return r
}

// encode is the body of an RTM_NEWROUTE or RTM_DELROUTE message. index resolves link names.
func encode(r desired.Route, index func(string) int) []byte {
	return appendRoute(make([]byte, 0, 96), r, index)
}

// appendRoute appends what encode returns.
func appendRoute(b []byte, r desired.Route, index func(string) int) []byte {
	dst, head := r.Dst.Addr(), len(b)
	b = append(b, make([]byte, unix.SizeofRtMsg)...)
	b[head], b[head+1] = family(dst), byte(r.Dst.Bits())
	if r.Table < 256 {
		b[head+4] = byte(r.Table)
	}
	b[head+5], b[head+6], b[head+7] = byte(r.Protocol), scope(r), kindOut(r.Kind)
	b = nlsock.AttrU32(b, unix.RTA_TABLE, uint32(r.Table))
	b = attrAddr(b, unix.RTA_DST, dst)
	b = nlsock.AttrU32(b, unix.RTA_PRIORITY, uint32(r.Metric))
	if r.Src.IsValid() {
		b = attrAddr(b, unix.RTA_PREFSRC, r.Src)
	}
	if r.MTU != 0 {
		b = nlsock.Nest(b, unix.RTA_METRICS, func(b []byte) []byte {
			return nlsock.AttrU32(b, unix.RTAX_MTU, uint32(r.MTU))
		})
	}
	switch {
	case len(r.NextHops) == 1:
		h := r.NextHops[0]
		if h.OnLink {
			binary.NativeEndian.PutUint32(b[head+8:], unix.RTNH_F_ONLINK)
		}
		b = gateway(b, h)
		b = nlsock.AttrU32(b, unix.RTA_OIF, uint32(index(h.Link)))
	case len(r.NextHops) > 1:
		b = nlsock.Nest(b, unix.RTA_MULTIPATH, func(b []byte) []byte {
			for _, h := range r.NextHops {
				b = nextHop(b, h, index(h.Link))
			}
			return b
		})
	}
	return b
}

// nextHop appends a struct rtnexthop with its gateway.
func nextHop(b []byte, h desired.NextHop, index int) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	if h.OnLink {
		b[start+2] = unix.RTNH_F_ONLINK
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = gateway(b, h)
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

func gateway(b []byte, h desired.NextHop) []byte {
	if !h.Via.IsValid() {
		return b
	}
	return attrAddr(b, unix.RTA_GATEWAY, h.Via)
}

// attrAddr appends an address without leaving garbage behind.
func attrAddr(b []byte, typ uint16, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return nlsock.Attr(b, typ, v[:])
	}
	v := a.As16()
	return nlsock.Attr(b, typ, v[:])
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func scope(r desired.Route) byte {
	if r.LinkScope {
		return unix.RT_SCOPE_LINK
	}
	return unix.RT_SCOPE_UNIVERSE
}

func kindOut(k desired.RouteKind) byte {
	switch k {
	case desired.Blackhole:
		return unix.RTN_BLACKHOLE
	case desired.Throw:
		return unix.RTN_THROW
	}
	return unix.RTN_UNICAST
}

// decode reads the body of an RTM_NEWROUTE or RTM_DELROUTE message. ok is false for what this package never deals with:
// local and multicast routes, cloned ones, routes with a TOS or by source prefix, and types it does not write.
func decode(body []byte, name func(int) string) (r desired.Route, ok bool) {
	if len(body) < unix.SizeofRtMsg {
		return r, false
	}
	fam, bits, srcLen, tos := body[0], int(body[1]), body[2], body[3]
	flags := nlsock.U32(body[8:])
	if (fam != unix.AF_INET && fam != unix.AF_INET6) || srcLen != 0 || tos != 0 || flags&unix.RTM_F_CLONED != 0 {
		return r, false
	}
	switch body[7] {
	case unix.RTN_UNICAST:
	case unix.RTN_BLACKHOLE:
		r.Kind = desired.Blackhole
	case unix.RTN_THROW:
		r.Kind = desired.Throw
	default:
		return r, false
	}
	r.Table, r.Protocol = int(body[4]), int(body[5])
	r.LinkScope = fam == unix.AF_INET && body[6] == unix.RT_SCOPE_LINK && r.Kind == desired.Unicast
	dst := netip.IPv4Unspecified()
	if fam == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	hop := desired.NextHop{OnLink: flags&unix.RTNH_F_ONLINK != 0}
	for typ, v := range nlsock.Attrs(body[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_TABLE:
			r.Table = int(nlsock.U32(v))
		case unix.RTA_DST:
			dst = addr(v)
		case unix.RTA_PRIORITY:
			r.Metric = int(nlsock.U32(v))
		case unix.RTA_PREFSRC:
			r.Src = addr(v)
		case unix.RTA_GATEWAY:
			hop.Via = addr(v)
		case unix.RTA_VIA: // a gateway of the other family; never ours, so it must differ from all of ours
			hop.Via = netip.IPv6Unspecified()
		case unix.RTA_OIF:
			hop.Link = name(int(nlsock.U32(v)))
		case unix.RTA_METRICS:
			for m, v := range nlsock.Attrs(v) {
				if m == unix.RTAX_MTU {
					r.MTU = int(nlsock.U32(v))
				}
			}
		case unix.RTA_MULTIPATH:
			r.NextHops = nextHops(v, name)
		}
	}
	if !dst.IsValid() {
		return r, false
	}
	r.Dst = netip.PrefixFrom(dst, bits)
	if r.Kind == desired.Unicast && len(r.NextHops) == 0 {
		r.NextHops = []desired.NextHop{hop}
	}
	return normal(r), r.Dst.IsValid()
}

func nextHops(b []byte, name func(int) string) (hops []desired.NextHop) {
	for len(b) >= 8 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 8 || n > len(b) {
			return hops
		}
		h := desired.NextHop{OnLink: b[2]&unix.RTNH_F_ONLINK != 0, Link: name(int(nlsock.U32(b[4:])))}
		for typ, v := range nlsock.Attrs(b[8:n]) {
			if typ == unix.RTA_GATEWAY {
				h.Via = addr(v)
			}
		}
		hops = append(hops, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return hops
}

func addr(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}
