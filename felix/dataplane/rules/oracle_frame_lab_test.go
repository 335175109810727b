//go:build lab

package rules_test

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/integration/oracle"
)

const (
	ethernet = 14 // length of the header before a frame's packet
	gre      = 47 // a protocol that rules know by its number only
)

// frame is a packet on Ethernet, with a number at its end.
func frame(p oracle.Packet, number uint32) []byte {
	out := append(append([]byte{}, nodeMAC[:]...), endMAC[:]...)
	body := transport(p)
	body = binary.BigEndian.AppendUint32(body, number)
	if p.Protocol == oracle.ICMPv6 { // the node does not take one with a wrong checksum
		pseudo := append(p.Source.AsSlice(), p.Destination.AsSlice()...)
		pseudo = append(pseudo, 0, 0, 0, byte(len(body)), 0, 0, 0, p.Protocol)
		binary.BigEndian.PutUint16(body[2:], checksum(append(pseudo, body...)))
	}
	if p.V6() {
		out = binary.BigEndian.AppendUint16(out, unix.ETH_P_IPV6)
		out = append(out, 0x60, 0, 0, 0)
		out = binary.BigEndian.AppendUint16(out, uint16(len(body)))
		out = append(out, p.Protocol, 64)
		out = append(append(out, p.Source.AsSlice()...), p.Destination.AsSlice()...)
		return append(out, body...)
	}
	out = binary.BigEndian.AppendUint16(out, unix.ETH_P_IP)
	header := append([]byte{0x45, 0}, binary.BigEndian.AppendUint16(nil, uint16(20+len(body)))...)
	header = append(header, 0, 0, 0, 0, 64, p.Protocol, 0, 0)
	header = append(append(header, p.Source.AsSlice()...), p.Destination.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(append(out, header...), body...)
}

// checksum is the Internet's, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

// transport is a header that begins a connection, where the protocol has any. Connection tracking is told not to look at
// checksums.
func transport(p oracle.Packet) []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SourcePort), p.DestinationPort)
	switch p.Protocol {
	case oracle.TCP: // SYN
		return append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0)
	case oracle.UDP:
		return append(ports, 0, 12, 0, 0)
	case oracle.UDPLite:
		return append(ports, 0, 0, 0, 1)
	case oracle.SCTP: // INIT, which must be the only chunk: the number is inside
		b := append(ports, 0, 0, 0, 0, 0, 0, 0, 0)
		return append(b, 1, 0, 0, 24, 0, 0, 0, 7, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1)
	case oracle.ICMP, oracle.ICMPv6:
		return []byte{p.Type, p.Code, 0, 0, 0, 1, 0, 1}
	}
	return make([]byte, 8)
}
