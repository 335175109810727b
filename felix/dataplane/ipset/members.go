package ipset

import (
	"net/netip"

	"github.com/muslin-net/muslin/api/view"
)

// Entries are the members of one set that belong to one family, as the entries of a set of the kernel's ip_set: those may
// overlap, but none is the whole address space, which is two halves instead. It is not safe for concurrent use.
type Entries struct {
	kind    view.SetType
	v6      bool
	want    func(e view.Member, in bool)
	members map[view.Member]struct{}
}

// NewEntries returns an empty set of a family. want is told which entries the kernel's set must hold from now on, and
// which not; an entry is told more than once where members share it.
func NewEntries(kind view.SetType, v6 bool, want func(e view.Member, in bool)) *Entries {
	return &Entries{kind: kind, v6: v6, want: want, members: map[view.Member]struct{}{}}
}

// Len is the number of members of the family.
func (s *Entries) Len() int { return len(s.members) }

// Members are the members of the family, in no order.
func (s *Entries) Members() []view.Member {
	out := make([]view.Member, 0, len(s.members))
	for m := range s.members {
		out = append(out, m)
	}
	return out
}

// Replace makes all the whole set; members of the other family are ignored, as they are everywhere here.
func (s *Entries) Replace(all []view.Member) {
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
	for m := range keep {
		s.Add(m)
	}
}

// Add adds a member; one that is there already changes nothing.
func (s *Entries) Add(m view.Member) { s.set(m, true) }

// Remove removes a member; one that is not there changes nothing.
func (s *Entries) Remove(m view.Member) { s.set(m, false) }

func (s *Entries) set(m view.Member, in bool) {
	m, ok := s.ours(m)
	if _, there := s.members[m]; !ok || there == in {
		return
	}
	if in {
		s.members[m] = struct{}{}
	} else {
		delete(s.members, m)
	}
	if s.kind == view.SetIPPort || m.Prefix.Bits() > 1 {
		s.want(m, in)
		return
	}
	_, everything := s.members[view.Member{Prefix: netip.PrefixFrom(m.Prefix.Addr(), 0).Masked()}]
	for _, half := range s.halves() {
		_, itself := s.members[half]
		s.want(half, everything || itself)
	}
}

// halves are the two halves of the address space.
func (s *Entries) halves() [2]view.Member {
	low, high := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{128})
	if s.v6 {
		low, high = netip.IPv6Unspecified(), netip.AddrFrom16([16]byte{128})
	}
	return [2]view.Member{{Prefix: netip.PrefixFrom(low, 1)}, {Prefix: netip.PrefixFrom(high, 1)}}
}

// ours normalises a member of the family.
func (s *Entries) ours(m view.Member) (view.Member, bool) {
	if !m.Prefix.IsValid() || m.Prefix.Addr().Is6() != s.v6 {
		return m, false
	}
	m.Prefix = m.Prefix.Masked()
	if s.kind == view.SetNet {
		m.Protocol, m.Port = 0, 0
		return m, true
	}
	m.Prefix = netip.PrefixFrom(m.Prefix.Addr(), m.Prefix.Addr().BitLen())
	return m, true
}
