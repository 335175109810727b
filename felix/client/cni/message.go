package cni

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message, serialised. Fields with their zero value are left out, as proto3 has it.
type message []byte

func (m *message) bytes(number int, b []byte) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, protowire.Number(number), protowire.BytesType), b)
}

// message appends a nested message, also an empty one: that it is there may matter.
func (m *message) message(number int, part message) { m.bytes(number, part) }

func (m *message) text(number int, s string) {
	if s != "" {
		m.bytes(number, []byte(s))
	}
}

func (m *message) texts(number int, list []string) {
	for _, s := range list {
		m.bytes(number, []byte(s))
	}
}

func (m *message) number(number int, n uint64) {
	if n != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, protowire.Number(number), protowire.VarintType), n)
	}
}

func (m *message) truth(number int, b bool) {
	if b {
		m.number(number, 1)
	}
}

func (m *message) addresses(number int, list []netip.Addr) {
	for _, a := range list {
		m.bytes(number, a.AsSlice())
	}
}

func (m *message) prefixes(number int, list []netip.Prefix) {
	for _, p := range list {
		m.bytes(number, []byte(p.String()))
	}
}

// pairs appends a map of texts, in order.
func (m *message) pairs(number int, pairs map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		var entry message
		entry.text(1, k)
		entry.text(2, pairs[k])
		m.message(number, entry)
	}
}

// each calls take for every field: with n where it is a number, with value where it is anything else that is used here.
func (m message) each(take func(number int, n uint64, value []byte) error) error {
	for b := []byte(m); len(b) > 0; {
		number, kind, length := protowire.ConsumeTag(b)
		if length < 0 {
			return broken(length)
		}
		b = b[length:]
		var n uint64
		var value []byte
		switch kind {
		case protowire.VarintType:
			n, length = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			value, length = protowire.ConsumeBytes(b)
		default:
			length = protowire.ConsumeFieldValue(number, kind, b)
		}
		if length < 0 {
			return broken(length)
		}
		b = b[length:]
		if err := take(int(number), n, value); err != nil {
			return err
		}
	}
	return nil
}

func broken(length int) error {
	return fmt.Errorf("the answer of felix cannot be read: %w", protowire.ParseError(length))
}
