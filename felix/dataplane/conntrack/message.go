package conntrack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	msgNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaMark       = 8
	ctaID         = 12
	ctaZone       = 18
	ctaMarkMask   = 21
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Source      = 1
	ctaIPv4Destination = 2
	ctaIPv6Source      = 3
	ctaIPv6Destination = 4

	ctaProtoNum             = 1
	ctaProtoSourcePort      = 2
	ctaProtoDestinationPort = 3
	ctaProtoICMPType        = 5
	ctaProtoICMPCode        = 6
	ctaProtoICMPv6Type      = 8
	ctaProtoICMPv6Code      = 9

	ctaProtoInfoTCP              = 1
	ctaProtoInfoTCPFlagsOriginal = 4
	tcpLiberal                   = 8 // IP_CT_TCP_FLAG_BE_LIBERAL: windows are not known, since no SYN was seen

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterIPSource      = 1 // CTA_FILTER_F_CTA_IP_SRC

	statusExpected = 1 // IPS_EXPECTED
)

// nfgen is struct nfgenmsg.
func nfgen(family uint8) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }

// request asks for what is selected; a kernel that does not know the filter sends more. For IPv6 it is the family only:
// kernels (6.18 still) take the comparison of IPv6 addresses the wrong way round, and leave out just what is asked for.
func (s Select) request() nlsock.Message {
	body := nfgen(unix.AF_UNSPEC)
	tuple, flags, a := uint16(ctaTupleOrig), uint16(ctaFilterOrigFlags), s.Source
	if s.Destination.IsValid() {
		tuple, flags, a = ctaTupleReply, ctaFilterReplyFlags, s.Destination
	}
	switch {
	case a.Is6():
		body[0] = unix.AF_INET6
	case a.Is4():
		body[0] = unix.AF_INET
		body = nlsock.Nest(body, tuple, func(b []byte) []byte {
			return nlsock.Nest(b, ctaTupleIP, func(b []byte) []byte { return nlsock.Attr(b, ctaIPv4Source, a.AsSlice()) })
		})
		body = nlsock.Nest(body, ctaFilter, func(b []byte) []byte { return nlsock.AttrU32(b, flags, filterIPSource) })
	}
	if s.Marked != 0 {
		body = nlsock.AttrBE32(body, ctaMark, s.Marked)
		body = nlsock.AttrBE32(body, ctaMarkMask, s.Marked)
	}
	return nlsock.Message{Type: msgGet, Body: body}
}

func (f *Flow) family() uint8 {
	if f.Original.Source.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (f *Flow) markMessage(mark, mask uint32) nlsock.Message {
	body := nlsock.Attr(nfgen(f.family()), ctaTupleOrig|unix.NLA_F_NESTED, f.tuple)
	body = nlsock.AttrBE32(body, ctaMark, mark)
	body = nlsock.AttrBE32(body, ctaMarkMask, mask)
	return nlsock.Message{Type: msgNew, Body: body} // without NLM_F_CREATE: only what is there
}

func (f *Flow) deleteMessage() nlsock.Message {
	body := nlsock.Attr(nfgen(f.family()), ctaTupleOrig|unix.NLA_F_NESTED, f.tuple)
	if len(f.id) > 0 { // not one that has come under the same addresses and ports since
		body = nlsock.Attr(body, ctaID, f.id)
	}
	return nlsock.Message{Type: msgDelete, Body: body}
}

// read parses an entry; false for one that is none of ours: another zone's, or none at all.
func (f *Flow) read(body []byte) bool {
	if len(body) < 4 {
		return false
	}
	*f = Flow{}
	for typ, v := range nlsock.Attrs(body[4:]) {
		switch typ {
		case ctaTupleOrig:
			f.Original, f.tuple = readTuple(v), v
		case ctaTupleReply:
			f.Reply = readTuple(v)
		case ctaStatus:
			f.Expected = nlsock.BE32(v)&statusExpected != 0
		case ctaProtoInfo:
			f.PickedUp = pickedUp(v)
		case ctaMark:
			f.Mark = nlsock.BE32(v)
		case ctaID:
			f.id = v
		case ctaZone:
			return false // a part of the table that others keep apart
		}
	}
	return f.Original.Source.IsValid() && f.Reply.Source.IsValid()
}

// pickedUp reads struct nf_ct_tcp_flags of what the kernel knows of a TCP connection.
func pickedUp(b []byte) bool {
	for typ, tcp := range nlsock.Attrs(b) {
		if typ != ctaProtoInfoTCP {
			continue
		}
		for typ, flags := range nlsock.Attrs(tcp) {
			if typ == ctaProtoInfoTCPFlagsOriginal && len(flags) > 0 {
				return flags[0]&tcpLiberal != 0
			}
		}
	}
	return false
}

func (f *Flow) clone() Flow {
	out := *f
	out.tuple, out.id = slices.Clone(f.tuple), slices.Clone(f.id)
	return out
}

func readTuple(b []byte) (t Tuple) {
	for typ, v := range nlsock.Attrs(b) {
		switch typ {
		case ctaTupleIP:
			for typ, a := range nlsock.Attrs(v) {
				switch typ {
				case ctaIPv4Source, ctaIPv6Source:
					t.Source, _ = netip.AddrFromSlice(a)
				case ctaIPv4Destination, ctaIPv6Destination:
					t.Destination, _ = netip.AddrFromSlice(a)
				}
			}
		case ctaTupleProto:
			for typ, x := range nlsock.Attrs(v) {
				t.readProtocol(typ, x)
			}
		}
	}
	return t
}

func (t *Tuple) readProtocol(typ uint16, x []byte) {
	switch {
	case len(x) < 1:
	case typ == ctaProtoNum:
		t.Protocol = x[0]
	case typ == ctaProtoICMPType, typ == ctaProtoICMPv6Type:
		t.ICMPType = x[0]
	case typ == ctaProtoICMPCode, typ == ctaProtoICMPv6Code:
		t.ICMPCode = x[0]
	case len(x) < 2:
	case typ == ctaProtoSourcePort:
		t.SourcePort = binary.BigEndian.Uint16(x)
	case typ == ctaProtoDestinationPort:
		t.DestinationPort = binary.BigEndian.Uint16(x)
	}
}
