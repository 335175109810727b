package route

import (
	"iter"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// ledger is what is desired beside what is there, by key. A route that is as desired is held once: a node may have a
// hundred thousand of them.
type ledger struct {
	tracker *delta.Tracker[desired.RouteKey, *desired.Route]
}

func newLedger() ledger {
	return ledger{delta.New[desired.RouteKey](func(a, b *desired.Route) bool { return a == b || a.Equal(*b) })}
}

// SetDesired says that a route shall be there.
func (l ledger) SetDesired(k desired.RouteKey, r desired.Route) {
	l.tracker.SetDesired(k, shared(&r, l.tracker.Actual, k))
}

// DeleteDesired says that no route shall be there with that key.
func (l ledger) DeleteDesired(k desired.RouteKey) { l.tracker.DeleteDesired(k) }

// SetActual says that a route is there.
func (l ledger) SetActual(k desired.RouteKey, r desired.Route) {
	l.tracker.SetActual(k, shared(&r, l.tracker.Desired, k))
}

// DeleteActual says that no route is there with that key.
func (l ledger) DeleteActual(k desired.RouteKey) { l.tracker.DeleteActual(k) }

// ReplaceActual makes all the whole of what is there.
func (l ledger) ReplaceActual(all map[desired.RouteKey]desired.Route) {
	refs := make(map[desired.RouteKey]*desired.Route, len(all))
	for k, r := range all {
		refs[k] = shared(&r, l.tracker.Desired, k)
	}
	l.tracker.ReplaceActual(refs)
}

// shared is the other side's copy of a route if that is the same, otherwise one of its own.
func shared(r *desired.Route, other func(desired.RouteKey) (*desired.Route, bool), k desired.RouteKey) *desired.Route {
	if have, ok := other(k); ok && have.Equal(*r) {
		return have
	}
	own := *r
	return &own
}

// Desired returns the route that shall be there.
func (l ledger) Desired(k desired.RouteKey) (desired.Route, bool) { return value(l.tracker.Desired(k)) }

// Actual returns the route that is there, as far as is known.
func (l ledger) Actual(k desired.RouteKey) (desired.Route, bool) { return value(l.tracker.Actual(k)) }

func value(r *desired.Route, ok bool) (desired.Route, bool) {
	if !ok {
		return desired.Route{}, false
	}
	return *r, true
}

// AllDesired yields what shall be there, in no order.
func (l ledger) AllDesired() iter.Seq2[desired.RouteKey, *desired.Route] {
	return l.tracker.AllDesired()
}

// AllActual yields what is there, in no order. The loop's body may call any Set or Delete method.
func (l ledger) AllActual() iter.Seq2[desired.RouteKey, *desired.Route] { return l.tracker.AllActual() }

// Updates yields what must be written. The loop's body may call any Set or Delete method.
func (l ledger) Updates() iter.Seq2[desired.RouteKey, *desired.Route] { return l.tracker.Updates() }

// Deletes yields what must be removed. The loop's body may call any Set or Delete method.
func (l ledger) Deletes() iter.Seq2[desired.RouteKey, *desired.Route] { return l.tracker.Deletes() }
