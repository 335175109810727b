// Package wire is UPDATE messages (RFC 4271 section 4.3) as bytes, beside an implementation of BGP that reads and writes them:
// what comes in broken is mended as RFC 7606 has it, and what goes out alike is joined into fewer messages. It knows no
// connection and no route.
package wire

import (
	"bytes"
	"encoding/binary"
)

// Lengths of RFC 4271, in bytes.
const (
	HeaderLen = 19   // of what is before each message's body: marker, length, type
	MaxLen    = 4096 // of a message
)

const (
	lengthAt   = 16 // where the length is in a header
	typeAt     = 18
	typeUpdate = 2
)

// Length is how long the message of a header is in all, in bytes, as far as the header tells the truth.
func Length(header []byte) int { return int(binary.BigEndian.Uint16(header[lengthAt:])) }

// Types of attributes (RFC 4760, RFC 8092), and flags.
const (
	mpReach          = 14
	mpUnreach        = 15
	largeCommunities = 32
	largeCommunity   = 12 // length of one, in bytes

	extended = 0x10 // the length has two bytes
	optional = 0x80
)

// update is the parts of an UPDATE.
type update struct{ withdrawn, attributes, prefixes []byte }

// parse takes a message apart; not ok if it is none, or its lengths do not fit.
func parse(message []byte) (u update, ok bool) {
	if len(message) < HeaderLen || message[typeAt] != typeUpdate || Length(message) != len(message) {
		return u, false
	}
	if u.withdrawn, message, ok = counted(message[HeaderLen:]); !ok {
		return u, false
	}
	u.attributes, u.prefixes, ok = counted(message)
	return u, ok
}

// counted takes off a field that its length of two bytes goes before.
func counted(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// append appends the message that parse takes apart.
func (u *update) append(to []byte) []byte {
	begin := len(to)
	to = append(append(to, marker...), 0, 0, typeUpdate)
	to = binary.BigEndian.AppendUint16(to, uint16(len(u.withdrawn)))
	to = append(to, u.withdrawn...)
	to = binary.BigEndian.AppendUint16(to, uint16(len(u.attributes)))
	to = append(append(to, u.attributes...), u.prefixes...)
	binary.BigEndian.PutUint16(to[begin+lengthAt:], uint16(len(to)-begin))
	return to
}

var marker = bytes.Repeat([]byte{255}, lengthAt)

// nextAttribute takes the first attribute off a list that is not empty; not ok if it is longer than the list.
func nextAttribute(list []byte) (kind byte, value, rest []byte, ok bool) {
	head := 3
	if list[0]&extended != 0 {
		head = 4
	}
	if len(list) < head {
		return 0, nil, nil, false
	}
	n := int(list[2])
	if head == 4 {
		n = int(binary.BigEndian.Uint16(list[2:]))
	}
	if len(list) < head+n {
		return 0, nil, nil, false
	}
	return list[1], list[head : head+n], list[head+n:], true
}

// appendAttribute appends one whose value is in parts.
func appendAttribute(to []byte, flags, kind byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > 255 {
		to = binary.BigEndian.AppendUint16(append(to, flags|extended, kind), uint16(n))
	} else {
		to = append(to, flags&^extended, kind, byte(n))
	}
	for _, p := range parts {
		to = append(to, p...)
	}
	return to
}

// family is the address family of an attribute that holds prefixes: AFI and SAFI.
type family [3]byte

// IPv4 and IPv6 unicast.
var ipv4, ipv6 = family{0, 1, 1}, family{0, 2, 1}

// parseReach takes the value of MP_REACH_NLRI apart: what is before the prefixes, and the prefixes.
func parseReach(value []byte) (f family, head, prefixes []byte, ok bool) {
	const fixed = 3 + 1 + 1 // family, length of the next hop, reserved
	if len(value) < fixed || len(value) < fixed+int(value[3]) {
		return f, nil, nil, false
	}
	n := fixed + int(value[3])
	return family(value[:3]), value[:n], value[n:], true
}

// parseUnreach is parseReach for MP_UNREACH_NLRI.
func parseUnreach(value []byte) (f family, head, prefixes []byte, ok bool) {
	if len(value) < 3 {
		return f, nil, nil, false
	}
	return family(value[:3]), value[:3], value[3:], true
}
