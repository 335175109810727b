package block

import (
	"cmp"
	"fmt"
	"math/big"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// Reserved is a set of addresses that must not be handed out automatically (IPReservations). The zero value reserves
// nothing. It is immutable.
type Reserved struct {
	ranges []addrRange // sorted, not touching each other, each within one family
}

type addrRange struct{ from, to netip.Addr } // both inclusive

// NewReserved makes the set of all addresses of the given prefixes, which may overlap.
func NewReserved(prefixes ...netip.Prefix) Reserved {
	all := make([]addrRange, 0, len(prefixes))
	for _, p := range prefixes {
		p = p.Masked()
		all = append(all, addrRange{p.Addr(), last(p)})
	}
	slices.SortFunc(all, func(a, b addrRange) int { return cmp.Or(a.from.Compare(b.from), a.to.Compare(b.to)) })
	var merged []addrRange
	for _, r := range all {
		if n := len(merged); n > 0 && touches(merged[n-1], r) {
			if merged[n-1].to.Less(r.to) {
				merged[n-1].to = r.to
			}
			continue
		}
		merged = append(merged, r)
	}
	return Reserved{merged}
}

// ReadReserved makes the set of all addresses of reservations. It leaves out entries that are neither an address nor a
// network, and tells each of them.
func ReadReserved(all []*api.IPReservation) (Reserved, []error) {
	var prefixes []netip.Prefix
	var bad []error
	for _, obj := range all {
		for _, text := range obj.Spec.ReservedCIDRs {
			p, err := netip.ParsePrefix(text)
			if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
				p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
			}
			if err != nil {
				bad = append(bad, fmt.Errorf("reservation %s: %w", obj.Name, err))
				continue
			}
			prefixes = append(prefixes, p)
		}
	}
	return NewReserved(prefixes...), bad
}

// touches tells whether b, which begins no earlier than a, overlaps a or follows it without a gap.
func touches(a, b addrRange) bool {
	if a.from.Is4() != b.from.Is4() {
		return false
	}
	return b.from.Compare(a.to) <= 0 || a.to.Next() == b.from
}

// Contains tells whether an address is reserved.
func (r Reserved) Contains(a netip.Addr) bool {
	_, ok := r.at(a)
	return ok
}

// Covers tells whether every address of a prefix is reserved.
func (r Reserved) Covers(p netip.Prefix) bool {
	found, ok := r.at(p.Addr())
	return ok && last(p).Compare(found.to) <= 0
}

// Count is the number of reserved addresses of a prefix.
func (r Reserved) Count(p netip.Prefix) *big.Int {
	count := new(big.Int)
	from, to := p.Masked().Addr(), last(p)
	for _, in := range r.ranges {
		if in.from.Is4() != from.Is4() || in.to.Less(from) || to.Less(in.from) {
			continue
		}
		lo, hi := in.from, in.to
		if lo.Less(from) {
			lo = from
		}
		if to.Less(hi) {
			hi = to
		}
		count.Add(count, numberOf(hi).sub(numberOf(lo)).add(number{lo: 1}).big())
	}
	return count
}

// at finds the range that holds an address.
func (r Reserved) at(a netip.Addr) (addrRange, bool) {
	// The first range that ends at or after a is the only one that can hold it. (Addresses sort by family first.)
	i, _ := slices.BinarySearchFunc(r.ranges, a, func(in addrRange, a netip.Addr) int { return in.to.Compare(a) })
	if i < len(r.ranges) && r.ranges[i].from.Compare(a) <= 0 {
		return r.ranges[i], true
	}
	return addrRange{}, false
}
