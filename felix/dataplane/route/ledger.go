package route

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/felix/desired"
)

// ledger is what is desired beside what is there, by key, and the difference. A node may have a hundred thousand routes,
// which lead over a few next hops: so what routes have in common is held once, and a route is its key and two pointers to
// that. It is not safe for concurrent use.
type ledger struct {
	routes  map[place]sides
	updates map[place]struct{} // desired, and missing or different in actual
	deletes map[place]struct{} // actual, and not desired
	last    *common            // that was made last: routes in a row are mostly alike
}

// place is a key without pointers, which is hashed at once.
type place struct {
	high, low uint64 // of the destination
	table     uint32
	metric    uint32
	bits      uint32
	v6        uint32
}

// sides are what is desired and what is there; nil is nothing.
type sides struct{ desired, actual *common }

// common is a route but for its destination. It never changes.
type common struct{ route desired.Route }

func newLedger() ledger {
	return ledger{routes: map[place]sides{}, updates: map[place]struct{}{}, deletes: map[place]struct{}{}}
}

func placeOf(k desired.RouteKey) place {
	p := place{table: uint32(k.Table), metric: uint32(k.Metric), bits: uint32(k.Dst.Bits())}
	if a := k.Dst.Addr(); a.Is4() {
		b := a.As4()
		p.low = uint64(binary.BigEndian.Uint32(b[:]))
	} else {
		b := a.As16()
		p.high, p.low, p.v6 = binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:]), 1
	}
	return p
}

func (p place) key() desired.RouteKey {
	var a netip.Addr
	if p.v6 == 0 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(p.low))
		a = netip.AddrFrom4(b)
	} else {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], p.high)
		binary.BigEndian.PutUint64(b[8:], p.low)
		a = netip.AddrFrom16(b)
	}
	return desired.RouteKey{Table: int(p.table), Dst: netip.PrefixFrom(a, int(p.bits)), Metric: int(p.metric)}
}

// at is the whole route.
func (c *common) at(k desired.RouteKey) desired.Route {
	r := c.route
	r.Dst = k.Dst
	return r
}

// of is what a route has in common with others: one of those at its place, or the last, if that is the same.
func (l *ledger) of(r desired.Route, s sides) *common {
	r.Dst = netip.Prefix{}
	for _, c := range [...]*common{s.desired, s.actual, l.last} {
		if c != nil && identical(&c.route, &r) {
			return c
		}
	}
	l.last = &common{r}
	return l.last
}

// identical is stricter than Equal: the order of next hops matters.
func identical(a, b *desired.Route) bool {
	return a.Dst == b.Dst && a.Kind == b.Kind && a.LinkScope == b.LinkScope && a.Protocol == b.Protocol && a.Metric == b.Metric &&
		a.MTU == b.MTU && a.Src == b.Src && a.Table == b.Table && slices.Equal(a.NextHops, b.NextHops)
}

// SetDesired says that a route shall be there.
func (l *ledger) SetDesired(k desired.RouteKey, r desired.Route) {
	p := placeOf(k)
	s := l.routes[p]
	s.desired = l.of(r, s)
	l.put(p, s)
}

// DeleteDesired says that no route shall be there with that key.
func (l *ledger) DeleteDesired(k desired.RouteKey) {
	p := placeOf(k)
	s := l.routes[p]
	s.desired = nil
	l.put(p, s)
}

// SetActual says that a route is there.
func (l *ledger) SetActual(k desired.RouteKey, r desired.Route) {
	p := placeOf(k)
	s := l.routes[p]
	s.actual = l.of(r, s)
	l.put(p, s)
}

// DeleteActual says that no route is there with that key.
func (l *ledger) DeleteActual(k desired.RouteKey) {
	p := placeOf(k)
	s := l.routes[p]
	s.actual = nil
	l.put(p, s)
}

// ReplaceActual makes all the whole of what is there.
func (l *ledger) ReplaceActual(all map[desired.RouteKey]desired.Route) {
	for p, s := range l.routes {
		if _, there := all[p.key()]; !there && s.actual != nil {
			s.actual = nil
			l.put(p, s)
		}
	}
	for k, r := range all {
		l.SetActual(k, r)
	}
}

// put records both sides of a place, and what is to be done there.
func (l *ledger) put(p place, s sides) {
	if s == (sides{}) {
		delete(l.routes, p)
	} else {
		l.routes[p] = s
	}
	mark(&l.updates, p, s.desired != nil && (s.actual == nil || s.actual != s.desired && !s.actual.route.Equal(s.desired.route)))
	mark(&l.deletes, p, s.actual != nil && s.desired == nil)
}

// mark puts a place into a set, or takes it out. An empty set gives the memory back that it had when it was large.
func mark(set *map[place]struct{}, p place, in bool) {
	if in {
		(*set)[p] = struct{}{}
		return
	}
	if len(*set) == 0 {
		return
	}
	if delete(*set, p); len(*set) == 0 {
		*set = map[place]struct{}{}
	}
}

// Desired returns the route that shall be there.
func (l *ledger) Desired(k desired.RouteKey) (desired.Route, bool) {
	return whole(k, l.routes[placeOf(k)].desired)
}

// Actual returns the route that is there, as far as is known.
func (l *ledger) Actual(k desired.RouteKey) (desired.Route, bool) {
	return whole(k, l.routes[placeOf(k)].actual)
}

// Has tells whether a route is there, as far as is known.
func (l *ledger) Has(k desired.RouteKey) bool { return l.routes[placeOf(k)].actual != nil }

func whole(k desired.RouteKey, c *common) (desired.Route, bool) {
	if c == nil {
		return desired.Route{}, false
	}
	return c.at(k), true
}

// AllDesired yields what shall be there, in no order.
func (l *ledger) AllDesired() iter.Seq2[desired.RouteKey, desired.Route] {
	return l.each(func(s sides) *common { return s.desired })
}

// AllActual yields what is there, in no order. The loop's body may call any Set or Delete method.
func (l *ledger) AllActual() iter.Seq2[desired.RouteKey, desired.Route] {
	return l.each(func(s sides) *common { return s.actual })
}

func (l *ledger) each(side func(sides) *common) iter.Seq2[desired.RouteKey, desired.Route] {
	return func(yield func(desired.RouteKey, desired.Route) bool) {
		for p, s := range l.routes {
			if c := side(s); c != nil && !l.yields(p, c, yield) {
				return
			}
		}
	}
}

// Updates yields what must be written. The loop's body may call any Set or Delete method.
func (l *ledger) Updates() iter.Seq2[desired.RouteKey, desired.Route] {
	return l.due(l.updates, func(s sides) *common { return s.desired })
}

// Deletes yields what must be removed. The loop's body may call any Set or Delete method.
func (l *ledger) Deletes() iter.Seq2[desired.RouteKey, desired.Route] {
	return l.due(l.deletes, func(s sides) *common { return s.actual })
}

func (l *ledger) due(set map[place]struct{}, side func(sides) *common) iter.Seq2[desired.RouteKey, desired.Route] {
	return func(yield func(desired.RouteKey, desired.Route) bool) {
		for p := range set {
			if c := side(l.routes[p]); c != nil && !l.yields(p, c, yield) {
				return
			}
		}
	}
}

func (l *ledger) yields(p place, c *common, yield func(desired.RouteKey, desired.Route) bool) bool {
	k := p.key()
	return yield(k, c.at(k))
}
