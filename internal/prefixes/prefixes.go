// Package prefixes has a map by IP prefix for tables of a hundred thousand routes: IPv4 prefixes are keys of eight bytes
// without pointers, which take a quarter of the memory of a netip.Prefix, are hashed at once, and are nothing to look at for
// the garbage collector.
package prefixes

import (
	"encoding/binary"
	"iter"
	"net/netip"
)

// Map is a map by prefix. The zero value is empty and ready to use. It is not safe for concurrent use.
type Map[V any] struct {
	four map[uint64]V
	six  map[netip.Prefix]V // and whatever else is no IPv4 prefix
}

// four is the key of an IPv4 prefix.
func four(p netip.Prefix) (uint64, bool) {
	if !p.IsValid() || !p.Addr().Is4() {
		return 0, false
	}
	a := p.Addr().As4()
	return uint64(binary.BigEndian.Uint32(a[:]))<<8 | uint64(p.Bits()), true
}

func prefix(four uint64) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(four>>8))
	return netip.PrefixFrom(netip.AddrFrom4(a), int(four&0xff))
}

// Get returns the value of a prefix.
func (m *Map[V]) Get(p netip.Prefix) (V, bool) {
	if k, ok := four(p); ok {
		v, there := m.four[k]
		return v, there
	}
	v, there := m.six[p]
	return v, there
}

// Has tells whether a prefix has a value.
func (m *Map[V]) Has(p netip.Prefix) bool {
	_, there := m.Get(p)
	return there
}

// Set gives a prefix a value.
func (m *Map[V]) Set(p netip.Prefix, v V) {
	if k, ok := four(p); ok {
		if m.four == nil {
			m.four = map[uint64]V{}
		}
		m.four[k] = v
		return
	}
	if m.six == nil {
		m.six = map[netip.Prefix]V{}
	}
	m.six[p] = v
}

// Delete takes a prefix out.
func (m *Map[V]) Delete(p netip.Prefix) {
	if k, ok := four(p); ok {
		delete(m.four, k)
		return
	}
	delete(m.six, p)
}

// Len is how many prefixes have a value.
func (m *Map[V]) Len() int { return len(m.four) + len(m.six) }

// All yields all, in no order. The loop's body may call Set and Delete.
func (m *Map[V]) All() iter.Seq2[netip.Prefix, V] {
	return func(yield func(netip.Prefix, V) bool) {
		for k, v := range m.four {
			if !yield(prefix(k), v) {
				return
			}
		}
		for p, v := range m.six {
			if !yield(p, v) {
				return
			}
		}
	}
}
