// Package route makes the kernel's routes agree with what felix wants. It owns
//
//   - routes with protocol 80, wherever they are;
//   - routes of felix's and BIRD's protocols on the tunnel devices;
//   - all routes on workload interfaces: one that felix did not ask for is removed after a grace period;
//   - a route made by hand in the place (table, destination, metric) of one of felix's, a few times, and one to the address
//     of a local workload.
//
// It leaves alone everything else, and everything the kernel itself makes: another's route in the place of a desired one
// is reported (see OccupiedError) and waited out. Equal routes found at start are adopted untouched.
//
// What makes this harder than it looks: the kernel removes IPv4 routes without a notification when their device goes down
// or away, or loses its last address; an IPv6 route with metric 0 comes back with 1024; an index names another device
// after a device was made anew; and a route whose device is not there yet is no error, but waits.
package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/links"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// Config says which routes are felix's.
type Config struct {
	WorkloadPrefixes []string      // beginnings of workload interfaces' names; empty: "cali"
	TunnelDevices    []string      // empty: vxlan.calico, vxlan-v6.calico, tunl0
	DeviceProtocol   int           // Felix's DeviceRouteProtocol; 0: 3 (boot)
	KeepExternal     bool          // RemoveExternalRoutes=false: leave others' routes on workload interfaces
	Grace            time.Duration // how long others' routes on workload interfaces are left; 0: 10 s
	Log              *slog.Logger
}

func (c Config) withDefaults() Config {
	if len(c.WorkloadPrefixes) == 0 {
		c.WorkloadPrefixes = []string{"cali"}
	}
	if len(c.TunnelDevices) == 0 {
		c.TunnelDevices = []string{desired.VXLANDevice4, desired.VXLANDevice6, desired.IPIPDevice}
	}
	if c.DeviceProtocol == 0 {
		c.DeviceProtocol = desired.ProtocolBoot
	}
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Table is the driver. Its methods may be called from several goroutines.
type Table struct {
	cfg    Config
	conn   *nlsock.Conn
	events *nlsock.Conn

	mu       sync.Mutex // guards the following, and conn
	links    links.Table
	routes   *delta.Tracker[desired.RouteKey, desired.Route] // actual: those that are ours
	byLink   map[string]map[desired.RouteKey]struct{}        // keys of actual routes by device
	dropped  map[desired.RouteKey]struct{}                   // explicitly removed: may go before whole
	doubles  []desired.Route                                 // further kernel routes with the key of one of ours
	external map[desired.RouteKey]external                   // others' routes on workload interfaces, in their grace period
	waiting  map[desired.RouteKey]string                     // desired, but this device is not there or not up
	occupied map[desired.RouteKey]desired.Route              // another's route in the place of a desired one; the zero route: unknown
	told     map[desired.RouteKey]string                     // what was logged of it
	ousted   map[desired.RouteKey]struct{}                   // ours was there until another took it out
	suspects map[desired.RouteKey]struct{}                   // ours was there, and may have gone with its device
	contests map[desired.RouteKey]contest
	failures dataplane.Failures
	whole    bool
	stale    bool // actual must be read anew
}

type external struct {
	route desired.Route
	until time.Time
}

// New opens the driver on the caller's network namespace.
func New(cfg Config) (*Table, error) {
	conn, err := nlsock.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("route driver: %w", err)
	}
	events, err := nlsock.Dial(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("route driver: %w", err)
	}
	return &Table{
		cfg: cfg.withDefaults(), conn: conn, events: events,
		routes:   delta.New[desired.RouteKey](desired.Route.Equal),
		byLink:   map[string]map[desired.RouteKey]struct{}{},
		dropped:  map[desired.RouteKey]struct{}{},
		external: map[desired.RouteKey]external{},
		waiting:  map[desired.RouteKey]string{},
		occupied: map[desired.RouteKey]desired.Route{},
		told:     map[desired.RouteKey]string{},
		ousted:   map[desired.RouteKey]struct{}{},
		suspects: map[desired.RouteKey]struct{}{},
		contests: map[desired.RouteKey]contest{},
		stale:    true,
	}, nil
}

// Close releases the driver's sockets; routes stay. A running Watch returns.
func (t *Table) Close() error { return errors.Join(t.conn.Close(), t.events.Close()) }

// Writes counts the changes sent to the kernel since New.
func (t *Table) Writes() uint64 { return t.conn.Writes() }

// Update takes a change of the desired routes.
func (t *Table) Update(d desired.Delta[desired.RouteKey, desired.Route]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range d.Removed {
		k = normalKey(k)
		t.routes.DeleteDesired(k)
		t.dropped[k] = struct{}{}
		delete(t.waiting, k)
		delete(t.ousted, k)
		t.vacate(k)
	}
	for _, r := range d.Set {
		r = normal(r)
		k := r.Key()
		delete(t.dropped, k)
		delete(t.waiting, k)
		if e, ok := t.external[k]; ok { // the CNI, or a former felix, was first
			delete(t.external, k)
			t.setActual(e.route)
		}
		t.routes.SetDesired(k, r)
	}
}

// Whole says that Update was told all routes there shall be: from now on, others of ours are removed.
func (t *Table) Whole() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.whole = true
}

// Resync makes the next Apply read all routes from the kernel.
func (t *Table) Resync() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stale = true
}

// Apply makes the kernel agree. What failed stays due and is in the error, one ObjectError for each route; a route whose
// device is not there is not an error but waits for it.
func (t *Table) Apply(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stale {
		if err := t.load(ctx); err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		t.stale = false
	}
	t.expire(time.Now())
	t.failures = dataplane.Failures{}
	// Writes go before removals: a route that changes its metric is never missing.
	err := t.write(ctx)
	if err == nil {
		err = t.remove(ctx)
	}
	if err != nil {
		t.stale = true
		return err
	}
	return t.failures.Join()
}

// write makes and changes routes. Where one is made, nothing must be in its place: if something is, everything is read
// anew to find out what.
func (t *Table) write(ctx context.Context) error {
	taken, err := t.attempt(ctx)
	if err != nil || len(taken) == 0 {
		return err
	}
	if err := t.load(ctx); err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	taken, err = t.attempt(ctx)
	for _, k := range taken {
		t.occupied[k] = desired.Route{}
		t.contested(k, time.Now())
	}
	return err
}

// attempt writes what is due. taken are the places where something is that was not known of.
func (t *Table) attempt(ctx context.Context) (taken []desired.RouteKey, err error) {
	var msgs []nlsock.Message
	var due, refused []desired.Route
	now := time.Now()
	for k, r := range t.routes.Updates() {
		if missing := t.missingLink(r); missing != "" {
			t.waiting[k] = missing
			continue
		}
		delete(t.waiting, k)
		_, occupied := t.occupied[k]
		if occupied && !t.contested(k, now) {
			continue
		}
		_, there := t.routes.Actual(k)
		_, perhaps := t.suspects[k]
		mode := uint16(unix.NLM_F_EXCL)
		if occupied || there || perhaps {
			mode = unix.NLM_F_REPLACE
		}
		due = append(due, r)
		msgs = append(msgs, nlsock.Message{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | mode, Body: encode(r, t.index)})
	}
	results, err := t.conn.Send(ctx, msgs)
	if err != nil {
		return nil, err
	}
	for i, r := range due {
		k := r.Key()
		switch err := results[i]; {
		case err == nil:
			t.setActual(r)
			delete(t.occupied, k)
			delete(t.ousted, k)
			delete(t.told, k)
		case errors.Is(err, unix.EEXIST):
			taken = append(taken, k)
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV):
			t.waiting[k] = r.NextHops[0].Link // it went in this moment; its return wakes us
		case refusedInPlace(r, t.has(k), err):
			refused = append(refused, r)
		default:
			t.failures.Add(dataplane.KindRoute, k.String(), fmt.Errorf("add %s: %w", r, err))
		}
	}
	return taken, t.reroute(ctx, refused)
}

// has tells whether a route of ours is in the kernel with the key.
func (t *Table) has(k desired.RouteKey) bool {
	_, there := t.routes.Actual(k)
	return there
}

func (t *Table) remove(ctx context.Context) error {
	var msgs []nlsock.Message
	due := t.doubles
	extra := len(due)
	t.doubles = nil
	for k, r := range t.routes.Deletes() {
		if _, told := t.dropped[k]; told || t.whole {
			due = append(due, r)
		}
	}
	for _, r := range due {
		body := encode(r, t.index)
		body[6] = unix.RT_SCOPE_NOWHERE // any scope: the key is enough to tell it from others
		msgs = append(msgs, nlsock.Message{Type: unix.RTM_DELROUTE, Body: body})
	}
	results, err := t.conn.Send(ctx, msgs)
	if err != nil {
		return err
	}
	for i, r := range due {
		switch err := results[i]; {
		case err == nil, errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENODEV):
			if i >= extra {
				t.deleteActual(r.Key())
			}
		default:
			t.failures.Add(dataplane.KindRoute, r.Key().String(), fmt.Errorf("remove %s: %w", r, err))
		}
	}
	clear(t.dropped)
	for _, r := range due { // what could not be removed is still to be removed
		if _, there := t.routes.Actual(r.Key()); there {
			t.dropped[r.Key()] = struct{}{}
		}
	}
	return nil
}

// load reads links and routes.
func (t *Table) load(ctx context.Context) error {
	if err := t.links.Load(ctx, t.conn); err != nil {
		return err
	}
	var found []desired.Route
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		before := len(found)
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = fam
		err := t.conn.Dump(ctx, nlsock.Message{Type: unix.RTM_GETROUTE, Body: body}, func() { found = found[:before] },
			func(kind uint16, body []byte) error {
				if r, ok := decode(body, t.links.Name); ok && kind == unix.RTM_NEWROUTE {
					found = append(found, r)
				}
				return nil
			})
		if err != nil {
			return err
		}
	}
	was := t.external
	t.external, t.doubles = map[desired.RouteKey]external{}, nil
	actual := make(map[desired.RouteKey]desired.Route, len(found))
	intruding := map[desired.RouteKey]desired.Route{}
	for _, r := range found {
		k := r.Key()
		switch t.owner(r) {
		case ours:
			if first, double := actual[k]; double {
				if want, wanted := t.routes.Desired(k); wanted && r.Equal(want) {
					actual[k], r = r, first // keep the right one
				}
				t.doubles = append(t.doubles, r)
				continue
			}
			actual[k] = r
		case guests:
			t.greet(r, was[k].until)
		case intruders:
			intruding[k] = r
		}
	}
	t.byLink = map[string]map[desired.RouteKey]struct{}{}
	for k, r := range actual {
		t.indexLinks(k, r)
	}
	t.routes.ReplaceActual(actual)
	clear(t.suspects)
	t.occupy(intruding)
	return nil
}

// greet starts a guest's grace period, or continues it.
func (t *Table) greet(r desired.Route, until time.Time) {
	if until.IsZero() {
		until = time.Now().Add(t.cfg.Grace)
	}
	t.external[r.Key()] = external{r, until}
}

// expire makes routes ours whose grace period is over; being not desired they are removed.
func (t *Table) expire(now time.Time) {
	if !t.whole {
		return
	}
	for k, e := range t.external {
		if !now.Before(e.until) {
			delete(t.external, k)
			t.setActual(e.route)
			t.cfg.Log.Info("removing a route on a workload interface that felix did not make", "route", e.route.String())
		}
	}
}

func (t *Table) missingLink(r desired.Route) string {
	for _, h := range r.NextHops {
		if l, ok := t.links.ByName(h.Link); !ok || !l.Up {
			return h.Link
		}
	}
	return ""
}

func (t *Table) index(name string) int {
	l, _ := t.links.ByName(name)
	return l.Index
}

func (t *Table) setActual(r desired.Route) {
	k := r.Key()
	if old, ok := t.routes.Actual(k); ok {
		t.unindexLinks(k, old)
	}
	t.routes.SetActual(k, r)
	delete(t.suspects, k)
	t.indexLinks(k, r)
}

func (t *Table) deleteActual(k desired.RouteKey) {
	if old, ok := t.routes.Actual(k); ok {
		t.unindexLinks(k, old)
		t.routes.DeleteActual(k)
	}
}

func (t *Table) indexLinks(k desired.RouteKey, r desired.Route) {
	for _, h := range r.NextHops {
		if t.byLink[h.Link] == nil {
			t.byLink[h.Link] = map[desired.RouteKey]struct{}{}
		}
		t.byLink[h.Link][k] = struct{}{}
	}
}

func (t *Table) unindexLinks(k desired.RouteKey, r desired.Route) {
	for _, h := range r.NextHops {
		delete(t.byLink[h.Link], k)
		if len(t.byLink[h.Link]) == 0 {
			delete(t.byLink, h.Link)
		}
	}
}
