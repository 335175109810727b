package unary

import (
	"encoding/binary"
	"errors"
)

// The kinds of fields on the wire: how long a value is.
const (
	kindNumber = 0
	kindFixed8 = 1
	kindBytes  = 2
	kindFixed4 = 5
)

var errBroken = errors.New("the answer cannot be read: its message is cut short, or none of protobuf")

// AppendNumber appends a field of a protobuf message that is a number.
func AppendNumber(m []byte, field int, n uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(m, uint64(field)<<3|kindNumber), n)
}

// AppendBytes appends a field that is a text, bytes or another message.
func AppendBytes(m []byte, field int, value []byte) []byte {
	m = binary.AppendUvarint(binary.AppendUvarint(m, uint64(field)<<3|kindBytes), uint64(len(value)))
	return append(m, value...)
}

// Each calls take for every field of a message: with n where it is a number, with value where it is of bytes. Others, which nobody
// here sends, have neither. value is part of m.
func Each(m []byte, take func(field int, n uint64, value []byte) error) error {
	next := func() (n uint64, ok bool) {
		n, length := binary.Uvarint(m)
		if length <= 0 {
			return 0, false
		}
		m = m[length:]
		return n, true
	}
	for len(m) > 0 {
		tag, ok := next()
		if !ok || tag>>3 == 0 || tag>>3 >= 1<<29 {
			return errBroken
		}
		var n, size uint64
		switch tag & 7 {
		case kindNumber:
			n, ok = next()
		case kindBytes:
			size, ok = next()
		case kindFixed8:
			size = 8
		case kindFixed4:
			size = 4
		default:
			ok = false // groups are of before proto3
		}
		if !ok || size > uint64(len(m)) {
			return errBroken
		}
		var value []byte
		if tag&7 == kindBytes {
			value = m[:size:size]
		}
		m = m[size:]
		if err := take(int(tag>>3), n, value); err != nil {
			return err
		}
	}
	return nil
}
