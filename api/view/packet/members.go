package packet

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// Members is a set with fast look-up. It shares the members it was made of. It is immutable and safe for concurrent use.
type Members struct {
	sorted  []view.Member
	lengths [2][]int // lengths of prefixes that there are, of IPv4 and of IPv6
}

// NewMembers makes a set. A list that is sorted by view.Member.Compare, as views have it, is not copied.
func NewMembers(all []view.Member) *Members {
	if slices.ContainsFunc(all, func(x view.Member) bool { return x.Prefix != x.Prefix.Masked() }) {
		all = slices.Clone(all)
		for i := range all {
			all[i].Prefix = all[i].Prefix.Masked()
		}
	}
	if !slices.IsSortedFunc(all, view.Member.Compare) {
		all = slices.SortedFunc(slices.Values(all), view.Member.Compare)
	}
	m := &Members{sorted: all}
	var seen [2][129]bool
	for _, x := range all {
		if f := family(x.Prefix.Addr()); !seen[f][x.Prefix.Bits()] {
			seen[f][x.Prefix.Bits()] = true
			m.lengths[f] = append(m.lengths[f], x.Prefix.Bits())
		}
	}
	return m
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// All are the members, sorted.
func (m *Members) All() []view.Member { return m.sorted }

// Contains tells whether an address is in one of the prefixes.
func (m *Members) Contains(a netip.Addr) bool { return m.contains(a, 0, 0) }

// ContainsPort tells whether an address with protocol and port is a member.
func (m *Members) ContainsPort(a netip.Addr, protocol view.Protocol, port uint16) bool {
	return m.contains(a, protocol, port)
}

func (m *Members) contains(a netip.Addr, protocol view.Protocol, port uint16) bool {
	for _, bits := range m.lengths[family(a)] {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		if _, in := slices.BinarySearchFunc(m.sorted, view.Member{Prefix: p, Protocol: protocol, Port: port}, view.Member.Compare); in {
			return true
		}
	}
	return false
}
