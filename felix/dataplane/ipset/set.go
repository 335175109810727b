// Package ipset turns the members of an IP set into the elements that a kernel set of one family must hold, and keeps
// them up by difference. It is arithmetic only; felix/dataplane/rules/nftables writes the elements, in the same transaction as the
// rules that use them.
//
// Members of a set of prefixes may overlap (a network set may hold a pod's address); elements of a kernel interval set may
// not. So an element stands for a prefix that no other member contains, and when such a member goes, those that it hid
// appear.
package ipset

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// Element is the key of a kernel set's element, in network byte order:
//
//	SetNet     first address, and the first address behind the prefix (nothing if the prefix ends the address space)
//	SetIPPort  address, protocol and port, each padded to 4 bytes
type Element string

// Set is the members of one set that belong to one family. It is not safe for concurrent use.
type Set struct {
	kind    view.SetType
	family  int // 4 or 6
	want    func(e Element, in bool)
	members map[view.Member]struct{}
	lengths [129]int // how many members have that prefix length
}

// New returns an empty set of a family (4 or 6). want is told which elements the kernel set must hold from now on, and
// which not.
func New(kind view.SetType, family int, want func(e Element, in bool)) *Set {
	return &Set{kind: kind, family: family, want: want, members: map[view.Member]struct{}{}}
}

// Len is the number of members of the family, hidden ones too.
func (s *Set) Len() int { return len(s.members) }

// Members are the members of the family, in no order.
func (s *Set) Members() []view.Member { return slices.Collect(maps.Keys(s.members)) }

// Replace makes all the whole set; members of the other family are ignored, as they are everywhere here.
func (s *Set) Replace(all []view.Member) {
	keep := make(map[view.Member]struct{}, len(all))
	for _, m := range all {
		if m, ok := s.ours(m); ok {
			keep[m] = struct{}{}
		}
	}
	for m := range s.members {
		if _, ok := keep[m]; !ok {
			s.Remove(m)
		}
	}
	fresh := make([]view.Member, 0, len(keep))
	for m := range keep {
		if _, ok := s.members[m]; !ok {
			fresh = append(fresh, m)
		}
	}
	// Shorter prefixes first: what they hide never becomes an element.
	slices.SortFunc(fresh, func(a, b view.Member) int { return a.Prefix.Bits() - b.Prefix.Bits() })
	for _, m := range fresh {
		s.Add(m)
	}
}

// Add adds a member; one that is there already changes nothing.
func (s *Set) Add(m view.Member) {
	m, ok := s.ours(m)
	if !ok {
		return
	}
	if _, there := s.members[m]; there {
		return
	}
	s.members[m] = struct{}{}
	if s.kind == view.SetIPPort {
		s.want(s.element(m), true)
		return
	}
	s.lengths[m.Prefix.Bits()]++
	if s.hidden(m.Prefix) {
		return
	}
	s.inside(m.Prefix, func(q view.Member) { s.want(s.element(q), false) })
	s.want(s.element(m), true)
}

// Remove removes a member; one that is not there changes nothing.
func (s *Set) Remove(m view.Member) {
	m, ok := s.ours(m)
	if !ok {
		return
	}
	if _, there := s.members[m]; !there {
		return
	}
	delete(s.members, m)
	if s.kind == view.SetIPPort {
		s.want(s.element(m), false)
		return
	}
	s.lengths[m.Prefix.Bits()]--
	if s.hidden(m.Prefix) {
		return
	}
	s.want(s.element(m), false)
	s.inside(m.Prefix, func(q view.Member) {
		if !s.hidden(q.Prefix) {
			s.want(s.element(q), true)
		}
	})
}

// ours normalises a member of the family.
func (s *Set) ours(m view.Member) (view.Member, bool) {
	if !m.Prefix.IsValid() || m.Prefix.Addr().Is4() != (s.family == 4) {
		return m, false
	}
	m.Prefix = m.Prefix.Masked()
	if s.kind == view.SetNet {
		m.Protocol, m.Port = 0, 0
	}
	return m, true
}

// hidden tells whether another member contains p.
func (s *Set) hidden(p netip.Prefix) bool {
	for bits := range p.Bits() {
		if s.lengths[bits] == 0 {
			continue
		}
		if _, ok := s.members[view.Member{Prefix: netip.PrefixFrom(p.Addr(), bits).Masked()}]; ok {
			return true
		}
	}
	return false
}

// inside visits the members that p contains, without p itself.
func (s *Set) inside(p netip.Prefix, visit func(view.Member)) {
	longer := 0
	for _, n := range s.lengths[p.Bits()+1:] {
		longer += n
	}
	if longer == 0 {
		return
	}
	for q := range s.members {
		if q.Prefix.Bits() > p.Bits() && p.Contains(q.Prefix.Addr()) {
			visit(q)
		}
	}
}

func (s *Set) element(m view.Member) Element {
	a := m.Prefix.Addr().AsSlice()
	if s.kind == view.SetIPPort {
		return Element(append(a, byte(m.Protocol), 0, 0, 0, byte(m.Port>>8), byte(m.Port), 0, 0))
	}
	return Element(append(a, after(a, m.Prefix.Bits())...))
}

// after is the first address behind the prefix of that many bits that begins at from; nil at the end of the space.
func after(from []byte, bits int) []byte {
	next := slices.Clone(from)
	if bits == 0 {
		return nil
	}
	i, step := (bits-1)/8, byte(1)<<(7-(bits-1)%8)
	for ; i >= 0; i, step = i-1, 1 {
		next[i] += step
		if next[i] >= step {
			return next
		}
	}
	return nil
}
