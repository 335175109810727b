package route

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/links"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// Watch follows the kernel's notifications until ctx ends, and calls wake whenever Apply has something to repair, or a
// device that routes wait for has come. It may run once.
func (t *Table) Watch(ctx context.Context, wake dataplane.Wake) error {
	ctx, stop := context.WithCancel(ctx)
	var guests sync.WaitGroup
	guests.Go(func() { t.watchGuests(ctx, wake) })
	defer guests.Wait()
	defer stop()
	return t.events.Listen(ctx, func(e nlsock.Event) {
		if e.Port == t.conn.Port() {
			return // our own doing
		}
		if drifts, due := t.on(e); due {
			wake(drifts...)
		}
	}, func() {
		t.Resync()
		wake()
	})
}

// watchGuests wakes when a grace period ends.
func (t *Table) watchGuests(ctx context.Context, wake dataplane.Wake) {
	tick := time.NewTicker(max(t.cfg.Grace/10, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if t.guestsDue(now) {
				wake()
			}
		}
	}
}

func (t *Table) guestsDue(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.external {
		if t.whole && !now.Before(e.until) {
			return true
		}
	}
	return false
}

// on takes in one notification and tells whether Apply is due.
func (t *Table) on(e nlsock.Event) (drifts []dataplane.Drift, due bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.Kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return t.onRoute(e)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if c, ok := t.links.On(e.Kind, e.Body); ok {
			return t.onLink(c)
		}
	case unix.RTM_DELADDR:
		// With its last IPv4 address a device loses its IPv4 routes, and a route loses its preferred source; neither
		// is notified. Writing them again changes nothing where they are still there.
		if len(e.Body) >= unix.SizeofIfAddrmsg {
			return t.suspectLink(t.links.Name(int(nlsock.U32(e.Body[4:]))), "lost with an address of the device")
		}
	}
	return nil, false
}

func (t *Table) onRoute(e nlsock.Event) ([]dataplane.Drift, bool) {
	r, ok := decode(e.Body, t.links.Name)
	if !ok {
		return nil, false
	}
	k := r.Key()
	have, there := t.routes.Actual(k)
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindRoute, Key: k.String()}}
	if e.Kind == unix.RTM_DELROUTE {
		if g, ok := t.external[k]; ok && g.route.Equal(r) {
			delete(t.external, k)
		}
		if o, ok := t.occupied[k]; ok && o.Equal(r) {
			t.vacate(k)
			return nil, true
		}
		if !there || !have.Equal(r) {
			return nil, false
		}
		t.deleteActual(k)
		drift.What = "removed"
		_, wanted := t.routes.Desired(k)
		if wanted {
			t.ousted[k] = struct{}{}
		}
		return []dataplane.Drift{drift}, wanted
	}
	switch t.owner(r) {
	case ours:
		if there && have.Equal(r) {
			return nil, false
		}
		t.setActual(r)
		drift.What = "changed to " + r.String()
		return []dataplane.Drift{drift}, true
	case intruders:
		if o, known := t.occupied[k]; known && o.Equal(r) {
			return nil, false
		}
		t.stale = true // ours may be beside it, or not
		if !there {
			return nil, true
		}
		t.ousted[k] = struct{}{}
		drift.What = "changed to " + r.String()
		return []dataplane.Drift{drift}, true
	case guests:
		t.greet(r, t.external[k].until)
	}
	return nil, false
}

func (t *Table) onLink(c links.Change) (drifts []dataplane.Drift, due bool) {
	if b := c.Before; b.Index != 0 && b != c.After {
		drifts, due = t.suspectLink(b.Name, "lost with the device")
	}
	if c.After.Up {
		for _, link := range t.waiting {
			due = due || link == c.After.Name
		}
	}
	return drifts, due
}

// suspectLink forgets what is known about the routes of a device.
func (t *Table) suspectLink(name, why string) (drifts []dataplane.Drift, due bool) {
	on := func(r *desired.Route) bool {
		return slices.ContainsFunc(r.NextHops, func(h desired.NextHop) bool { return h.Link == name })
	}
	for k, r := range t.routes.AllActual() {
		if !on(&r) {
			continue
		}
		t.deleteActual(k)
		if _, wanted := t.routes.Desired(k); wanted {
			due = true
			t.suspects[k] = struct{}{}
			drifts = append(drifts, dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindRoute, Key: k.String()}, What: why})
		}
	}
	for k, e := range t.external {
		if on(&e.route) {
			delete(t.external, k)
		}
	}
	for k, o := range t.occupied {
		if on(&o) { // it may have gone without a word; if not, the attempt finds it
			due = t.vacate(k) || due
		}
	}
	return drifts, due
}

// Entries lists all routes of felix, desired beside actual.
func (t *Table) Entries() []dataplane.Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []dataplane.Entry
	for k, want := range t.routes.AllDesired() {
		e := dataplane.Entry{Object: dataplane.Object{Kind: dataplane.KindRoute, Key: k.String()}, Desired: want.String()}
		if have, ok := t.routes.Actual(k); ok {
			e.Actual = have.String()
		}
		e.Err = t.why(k)
		if o, ok := t.occupied[k]; ok && o.Dst.IsValid() {
			e.Actual = o.String()
		}
		out = append(out, e)
	}
	for k, have := range t.routes.AllActual() {
		if _, wanted := t.routes.Desired(k); !wanted {
			o := dataplane.Object{Kind: dataplane.KindRoute, Key: k.String()}
			out = append(out, dataplane.Entry{Object: o, Actual: have.String(), Err: t.failures.Of(o.Kind, o.Key)})
		}
	}
	return out
}

// Programmed tells whether the kernel has the route as desired. Felix announces blocks and answers the CNI only then.
func (t *Table) Programmed(k desired.RouteKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k = normalKey(k)
	want, wanted := t.routes.Desired(k)
	have, there := t.routes.Actual(k)
	return wanted && there && want.Equal(have)
}

// Why tells what keeps a route from being programmed, as far as is known; nil if nothing does.
func (t *Table) Why(k desired.RouteKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.why(normalKey(k))
}

func (t *Table) why(k desired.RouteKey) error {
	if link, ok := t.waiting[k]; ok {
		return &WaitingError{Link: link}
	}
	if o, ok := t.occupied[k]; ok {
		return &OccupiedError{Route: o}
	}
	return t.failures.Of(dataplane.KindRoute, k.String())
}

// WaitingError says that a route waits for its device.
type WaitingError struct{ Link string }

// Error names the device.
func (e *WaitingError) Error() string { return "waits for device " + e.Link + " to be there and up" }
