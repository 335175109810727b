package cni

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/internal/unary"
)

// message is a protobuf message, serialised. Fields with their zero value are left out, as proto3 has it.
type message []byte

func (m *message) bytes(number int, b []byte) {
	*m = unary.AppendBytes(*m, number, b)
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
		*m = unary.AppendNumber(*m, number, n)
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
