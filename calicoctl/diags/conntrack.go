package diags

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// flows is what a number of connections have in common.
type flows struct {
	family, protocol, state, status string
	mark                            uint32
	zone                            uint16
}

// Attributes of a connection as the kernel numbers them (linux/netfilter/nfnetlink_conntrack.h).
const (
	typeMask = 0x3fff // of an attribute's kind, without its flags

	ctaTupleOrig  = 1
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaMark       = 8
	ctaZone       = 18
	ctaTupleProto = 2
	ctaProtoNum   = 1
	ctaTCP        = 1
	ctaTCPState   = 1

	statusSeenReply = 1 << 1
	statusAssured   = 1 << 2
	statusSNAT      = 1 << 4
	statusDNAT      = 1 << 5
)

var tcpStates = []string{"none", "syn-sent", "syn-recv", "established", "fin-wait", "close-wait", "last-ack", "time-wait", "close", "syn-sent2"}

// Connections counts the connections that the kernel follows, by what they have in common. Whose they are is left out.
func Connections(_ context.Context, w io.Writer) error {
	counts := map[flows]int{}
	for family, name := range map[uint8]string{unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6"} {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		err := request.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
			if len(message) > nl.SizeofNfgenmsg {
				f := flowsOf(message[nl.SizeofNfgenmsg:])
				f.family = name
				counts[f]++
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("connections of %s: %w", name, err)
		}
	}
	out := bufio.NewWriter(w)
	total := 0
	for _, n := range counts {
		total += n
	}
	fmt.Fprintf(out, "%d connections\n", total)
	fmt.Fprintln(out, "   COUNT FAMILY PROTOCOL STATE        STATUS                     MARK       ZONE")
	for _, f := range slices.SortedFunc(maps.Keys(counts), func(a, b flows) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	}) {
		fmt.Fprintf(out, "%8d %-6s %-8s %-12s %-26s %#-10x %d\n", counts[f], f.family, f.protocol, f.state, f.status, f.mark, f.zone)
	}
	return out.Flush()
}

// flowsOf reads one message of the kernel, as far as it can be read.
func flowsOf(message []byte) flows {
	f := flows{protocol: "-", state: "-", status: "one way"}
	for kind, value := range attributes(message) {
		switch {
		case kind == ctaTupleOrig:
			if n := attributes(attributes(value)[ctaTupleProto])[ctaProtoNum]; len(n) > 0 {
				f.protocol = protocol(n[0])
			}
		case kind == ctaProtoInfo:
			if s := attributes(attributes(value)[ctaTCP])[ctaTCPState]; len(s) > 0 && int(s[0]) < len(tcpStates) {
				f.state = tcpStates[s[0]]
			}
		case kind == ctaStatus && len(value) >= 4:
			f.status = status(binary.BigEndian.Uint32(value))
		case kind == ctaMark && len(value) >= 4:
			f.mark = binary.BigEndian.Uint32(value)
		case kind == ctaZone && len(value) >= 2:
			f.zone = binary.BigEndian.Uint16(value)
		}
	}
	return f
}

// attributes takes netlink attributes apart; of what is cut short there are none.
func attributes(b []byte) map[uint16][]byte {
	out := map[uint16][]byte{}
	for len(b) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofNlAttr || length > len(b) {
			return out
		}
		out[binary.NativeEndian.Uint16(b[2:])&typeMask] = b[unix.SizeofNlAttr:length]
		b = b[min((length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return out
}

func protocol(n byte) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprint(n)
}

func status(bits uint32) string {
	out := "one way"
	if bits&statusSeenReply != 0 {
		out = "both ways"
	}
	for _, s := range []struct {
		bit  uint32
		name string
	}{{statusAssured, "assured"}, {statusSNAT, "snat"}, {statusDNAT, "dnat"}} {
		if bits&s.bit != 0 {
			out += " " + s.name
		}
	}
	return out
}
