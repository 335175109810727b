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
	Info             string // flags of TCP, type of ICMP
	Payload          []byte // of TCP, UDP or ICMP
}

// decodePacket reads the headers of an Ethernet frame. vxlanPort is the UDP port whose datagrams are taken for VXLAN.
// What it does not understand stays zero; no input makes it fail.
func decodePacket(frame []byte, vxlanPort uint16) Packet {
	p := Packet{Data: frame, Encap: EncapNone}
	rest := p.Outer.decode(gopacket.NewPacket(frame, layers.LayerTypeEthernet, decodeOptions))
	p.Inner = p.Outer
	switch {
	case p.Outer.Proto == "udp" && p.Outer.DstPort == vxlanPort && len(p.Outer.Payload) > vxlanHeader:
		p.Encap = EncapVXLAN
		h := p.Outer.Payload
		p.VNI = uint32(h[4])<<16 | uint32(h[5])<<8 | uint32(h[6])
		p.Inner = Flow{}
		p.Inner.decode(gopacket.NewPacket(h[vxlanHeader:], layers.LayerTypeEthernet, decodeOptions))
	case p.Outer.Proto == "4" && len(rest) > 0:
		p.Encap = EncapIPIP
		p.Inner = Flow{}
		p.Inner.decode(gopacket.NewPacket(rest, layers.LayerTypeIPv4, decodeOptions))
	}
	return p
}

const vxlanHeader = 8 // bytes

var decodeOptions = gopacket.DecodeOptions{NoCopy: true}

// decode fills the flow from the packet's first IP header and what follows it, and returns the IP payload.
func (f *Flow) decode(pkt gopacket.Packet) []byte {
	if arp, ok := pkt.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		f.Proto = "arp"
		f.Src, _ = netip.AddrFromSlice(arp.SourceProtAddress)
		f.Dst, _ = netip.AddrFromSlice(arp.DstProtAddress)
		f.Info = map[uint16]string{1: "request", 2: "reply"}[arp.Operation]
		return nil
	}
	var next layers.IPProtocol
	var payload []byte
	for _, l := range pkt.Layers() {
		switch ip := l.(type) {
		case *layers.IPv4:
			f.Src, _ = netip.AddrFromSlice(ip.SrcIP.To4())
			f.Dst, _ = netip.AddrFromSlice(ip.DstIP.To4())
			next, payload = ip.Protocol, ip.Payload
		case *layers.IPv6:
			f.Src, _ = netip.AddrFromSlice(ip.SrcIP)
			f.Dst, _ = netip.AddrFromSlice(ip.DstIP)
			next, payload = ip.NextHeader, ip.Payload
		default:
			continue
		}
		break
	}
	if !f.Src.IsValid() {
		return nil
	}
	f.transport(next, payload)
	return payload
}

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
