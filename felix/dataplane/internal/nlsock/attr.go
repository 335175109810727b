package nlsock

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// align rounds up to the alignment of messages and attributes, which is 4 for both.
func align(n int) int { return (n + 3) &^ 3 }

type header struct {
	kind, flags uint16
	seq, port   uint32
}

func appendMessage(out []byte, m Message, flags uint16, seq, port uint32) []byte {
	ne := binary.NativeEndian
	out = ne.AppendUint32(out, uint32(headerLen+len(m.Body)))
	out = ne.AppendUint16(out, m.Type)
	out = ne.AppendUint16(out, flags)
	out = ne.AppendUint32(out, seq)
	out = ne.AppendUint32(out, port)
	return pad(append(out, m.Body...))
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// eachMessage splits a datagram.
func eachMessage(b []byte, each func(header, []byte) error) error {
	ne := binary.NativeEndian
	for len(b) >= headerLen {
		n := int(ne.Uint32(b))
		if n < headerLen || n > len(b) {
			return fmt.Errorf("netlink message of %d bytes in a datagram with %d left", n, len(b))
		}
		h := header{kind: ne.Uint16(b[4:]), flags: ne.Uint16(b[6:]), seq: ne.Uint32(b[8:]), port: ne.Uint32(b[12:])}
		if err := each(h, b[headerLen:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// Attr appends an attribute (struct nlattr) with its padding. Both sizes are far below the format's 64 KiB here except
// for element lists, which their builder cuts.
func Attr(out []byte, typ uint16, value []byte) []byte {
	out = binary.NativeEndian.AppendUint16(out, uint16(4+len(value)))
	out = binary.NativeEndian.AppendUint16(out, typ)
	return pad(append(out, value...))
}

// AttrString appends a zero-terminated text.
func AttrString(out []byte, typ uint16, s string) []byte {
	out = binary.NativeEndian.AppendUint16(out, uint16(4+len(s)+1))
	out = binary.NativeEndian.AppendUint16(out, typ)
	return pad(append(append(out, s...), 0))
}

// AttrU32 appends a number in the host's byte order, as rtnetlink has it.
func AttrU32(out []byte, typ uint16, v uint32) []byte {
	out = binary.NativeEndian.AppendUint16(out, 8)
	out = binary.NativeEndian.AppendUint16(out, typ)
	return binary.NativeEndian.AppendUint32(out, v)
}

// AttrBE32 appends a number in network byte order, as nfnetlink has it.
func AttrBE32(out []byte, typ uint16, v uint32) []byte {
	out = binary.NativeEndian.AppendUint16(out, 8)
	out = binary.NativeEndian.AppendUint16(out, typ)
	return binary.BigEndian.AppendUint32(out, v)
}

// Nest appends an attribute whose value is what fill appends.
func Nest(out []byte, typ uint16, fill func([]byte) []byte) []byte {
	start := len(out)
	out = append(out, 0, 0, 0, 0)
	out = fill(out)
	binary.NativeEndian.PutUint16(out[start:], uint16(len(out)-start))
	binary.NativeEndian.PutUint16(out[start+2:], typ|unix.NLA_F_NESTED)
	return out
}

// Attrs yields type (without flag bits) and value of each attribute in b; it ends at the first malformed one.
func Attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		ne := binary.NativeEndian
		for len(b) >= 4 {
			n, typ := int(ne.Uint16(b)), ne.Uint16(b[2:])
			if n < 4 || n > len(b) {
				return
			}
			if !yield(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// CString is the text of a zero-terminated attribute.
func CString(v []byte) string {
	if i := bytes.IndexByte(v, 0); i >= 0 {
		v = v[:i]
	}
	return string(v)
}

// U32 is a number in the host's byte order; 0 if v is too short.
func U32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// BE32 is a number in network byte order; 0 if v is too short.
func BE32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}
