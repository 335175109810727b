package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Encapsulation says how a packet travels between nodes.
type Encapsulation string

// The encapsulations that a captured frame can show.
const (
	EncapNone  Encapsulation = "none"
	EncapVXLAN Encapsulation = "vxlan" // RFC 7348
	EncapIPIP  Encapsulation = "ipip"  // RFC 2003
)

// Packet is a captured frame and what its headers say.
type Packet struct {
	Time     time.Time
	Data     []byte // the frame from its Ethernet header on
	Outgoing bool   // it left the captured interface

	Encap Encapsulation
	VNI   uint32 // of VXLAN
	Outer Flow   // what the fabric sees
	Inner Flow   // what is inside an encapsulation; equal to Outer without one
}

// Flow is the addressing of one IP packet.
type Flow struct {
	Src, Dst         netip.Addr
	Proto            string // tcp, udp, icmp, icmp6, arp, or the number
	SrcPort, DstPort uint16
	TTL              uint8  // or hop limit
	Length           int    // of the IP packet, in bytes
	Info             string // flags of TCP, type of ICMP
	Payload          []byte // of TCP, UDP or ICMP
}

// decodePacket reads the headers of an Ethernet frame. vxlanPort is the UDP port whose datagrams are taken for VXLAN.
// What it does not understand stays zero; no input makes it fail.
func decodePacket(frame []byte, vxlanPort uint16) Packet {
	p := Packet{Data: frame, Encap: EncapNone}
	rest := p.Outer.decode(gopacket.NewPacket(frame, layers.LayerTypeEthernet, decodeOptions))
	p.Inner = p.Outer
	inner := func(e Encapsulation, data []byte, first gopacket.LayerType) {
		p.Encap, p.Inner = e, Flow{}
		p.Inner.decode(gopacket.NewPacket(data, first, decodeOptions))
	}
	switch {
	case p.Outer.Proto == "udp" && p.Outer.DstPort == vxlanPort && len(p.Outer.Payload) > vxlanHeader && p.Outer.Payload[0]&vxlanHasVNI != 0:
		h := p.Outer.Payload
		p.VNI = uint32(h[4])<<16 | uint32(h[5])<<8 | uint32(h[6])
		inner(EncapVXLAN, h[vxlanHeader:], layers.LayerTypeEthernet)
	case p.Outer.Proto == "4" && len(rest) > 0:
		inner(EncapIPIP, rest, layers.LayerTypeIPv4)
	case p.Outer.Proto == "41" && len(rest) > 0:
		inner(EncapIPIP, rest, layers.LayerTypeIPv6)
	}
	return p
}

const (
	vxlanHeader = 8    // bytes
	vxlanHasVNI = 0x08 // the I flag: the header holds a VNI (RFC 7348, section 5)
)

var decodeOptions = gopacket.DecodeOptions{NoCopy: true}

// decode fills the flow from the packet's first IP header and what follows it, and returns the IP payload.
func (f *Flow) decode(pkt gopacket.Packet) []byte {
	for _, l := range pkt.Layers() {
		switch h := l.(type) {
		case *layers.ARP:
			f.Proto = "arp"
			f.Src, _ = netip.AddrFromSlice(h.SourceProtAddress)
			f.Dst, _ = netip.AddrFromSlice(h.DstProtAddress)
			f.Info = map[uint16]string{1: "request", 2: "reply"}[h.Operation]
			return nil
		case *layers.IPv4:
			f.Src, _ = netip.AddrFromSlice(h.SrcIP.To4())
			f.Dst, _ = netip.AddrFromSlice(h.DstIP.To4())
			f.TTL, f.Length = h.TTL, int(h.Length)
			if h.FragOffset > 0 { // what follows is the middle of something
				f.Proto, f.Info = fmt.Sprint(int(h.Protocol)), "fragment"
				return nil
			}
			f.transport(h.Protocol, h.Payload)
			return h.Payload
		case *layers.IPv6:
			f.Src, _ = netip.AddrFromSlice(h.SrcIP)
			f.Dst, _ = netip.AddrFromSlice(h.DstIP)
			f.TTL, f.Length = h.HopLimit, ipv6Header+int(h.Length)
			f.transport(h.NextHeader, h.Payload)
			return h.Payload
		}
	}
	return nil
}

const ipv6Header = 40 // bytes

func (f *Flow) transport(proto layers.IPProtocol, payload []byte) {
	switch proto {
	case layers.IPProtocolTCP:
		var t layers.TCP
		if t.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) == nil {
			f.Proto, f.SrcPort, f.DstPort, f.Payload = "tcp", uint16(t.SrcPort), uint16(t.DstPort), t.Payload
			f.Info = tcpFlags(t)
			return
		}
	case layers.IPProtocolUDP:
		var u layers.UDP
		if u.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) == nil {
			f.Proto, f.SrcPort, f.DstPort, f.Payload = "udp", uint16(u.SrcPort), uint16(u.DstPort), u.Payload
			return
		}
	case layers.IPProtocolICMPv4:
		var i layers.ICMPv4
		if i.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) == nil {
			f.Proto, f.Info, f.Payload = "icmp", i.TypeCode.String(), i.Payload
			return
		}
	case layers.IPProtocolICMPv6:
		var i layers.ICMPv6
		if i.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) == nil {
			f.Proto, f.Info, f.Payload = "icmp6", i.TypeCode.String(), i.Payload
			return
		}
	}
	f.Proto = fmt.Sprint(int(proto))
}

func tcpFlags(t layers.TCP) string {
	var set []string
	for _, fl := range []struct {
		on   bool
		name string
	}{{t.SYN, "SYN"}, {t.FIN, "FIN"}, {t.RST, "RST"}, {t.PSH, "PSH"}, {t.ACK, "ACK"}} {
		if fl.on {
			set = append(set, fl.name)
		}
	}
	return strings.Join(set, ",")
}

// String is one line: the outer header, and after a bar the inner one if there is an encapsulation.
func (p Packet) String() string {
	dir := "in "
	if p.Outgoing {
		dir = "out"
	}
	line := p.Time.Format("15:04:05.000000") + " " + dir + " " + p.Outer.String()
	switch p.Encap {
	case EncapVXLAN:
		line += fmt.Sprintf(" vxlan vni %d | %s", p.VNI, p.Inner)
	case EncapIPIP:
		line += " ipip | " + p.Inner.String()
	}
	return line
}

// Headers are the headers of the packet for people, one line each, from the outside in.
func (p Packet) Headers() []string {
	switch p.Encap {
	case EncapVXLAN:
		return []string{
			fmt.Sprintf("outer  %s, VXLAN VNI %d", p.Outer.describe(), p.VNI),
			"inner  " + p.Inner.describe(),
		}
	case EncapIPIP:
		return []string{"outer  " + p.Outer.describe() + " (IP in IP)", "inner  " + p.Inner.describe()}
	}
	return []string{"bare   " + p.Outer.describe()}
}

// describe is String with the length and the remaining hops.
func (f Flow) describe() string {
	text := f.String()
	if f.Src.IsValid() && f.Proto != "" && f.Proto[0] >= '0' && f.Proto[0] <= '9' {
		text = fmt.Sprintf("%s > %s proto %s", f.Src, f.Dst, strings.TrimSpace(f.Proto+" "+f.Info))
	}
	if f.Length > 0 {
		text += fmt.Sprintf(", ttl %d, %d bytes", f.TTL, f.Length)
	}
	return text
}

// String is "source > destination protocol info".
func (f Flow) String() string {
	if !f.Src.IsValid() {
		return "not IP"
	}
	src, dst := f.Src.String(), f.Dst.String()
	if f.SrcPort != 0 || f.DstPort != 0 {
		src, dst = netip.AddrPortFrom(f.Src, f.SrcPort).String(), netip.AddrPortFrom(f.Dst, f.DstPort).String()
	}
	return strings.TrimSpace(fmt.Sprintf("%s > %s %s %s", src, dst, f.Proto, f.Info))
}
