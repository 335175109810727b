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
	routes   ledger                             // actual: those that are ours
	dropped  map[desired.RouteKey]struct{}      // explicitly removed: may go before whole
	doubles  []desired.Route                    // further kernel routes with the key of one of ours
	external map[desired.RouteKey]external      // others' routes on workload interfaces, in their grace period
	waiting  map[desired.RouteKey]string        // desired, but this device is not there or not up
	occupied map[desired.RouteKey]desired.Route // another's route in the place of a desired one; the zero route: unknown
	told     map[desired.RouteKey]string        // what was logged of it
	ousted   map[desired.RouteKey]struct{}      // ours was there until another took it out
	suspects map[desired.RouteKey]struct{}      // ours was there, and may have gone with its device
	contests dataplane.Contests[desired.RouteKey]
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
	if err := events.Ignore(conn.Port()); err != nil {
		return nil, errors.Join(fmt.Errorf("route driver: %w", err), conn.Close(), events.Close())
	}
	return &Table{
		cfg: cfg.withDefaults(), conn: conn, events: events,
		routes:   newLedger(),
		dropped:  map[desired.RouteKey]struct{}{},
		external: map[desired.RouteKey]external{},
		waiting:  map[desired.RouteKey]string{},
		occupied: map[desired.RouteKey]desired.Route{},
		told:     map[desired.RouteKey]string{},
		ousted:   map[desired.RouteKey]struct{}{},
		suspects: map[desired.RouteKey]struct{}{},
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

// writeAtOnce is how many routes are encoded, sent and taken note of at a time.
const writeAtOnce = 2048

// attempt writes what is due. taken are the places where something is that was not known of.
func (t *Table) attempt(ctx context.Context) (taken []desired.RouteKey, err error) {
	var refused []desired.Route
	now := time.Now()
	var w batch
	for k, r := range t.routes.Updates() {
		if missing := t.missingLink(&r); missing != "" {
			t.waiting[k] = missing
			continue
		}
		delete(t.waiting, k)
		_, occupied := t.occupied[k]
		if occupied && !t.contested(k, now) {
			continue
		}
		_, perhaps := t.suspects[k]
		mode := uint16(unix.NLM_F_EXCL)
		if occupied || perhaps || t.has(k) {
			mode = unix.NLM_F_REPLACE
		}
		w.add(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|mode, r, t.index)
		if len(w.routes) < writeAtOnce {
			continue
		}
		if err := t.writeBatch(ctx, &w, &taken, &refused); err != nil {
			return nil, err
		}
	}
	if err := t.writeBatch(ctx, &w, &taken, &refused); err != nil {
		return nil, err
	}
	return taken, t.reroute(ctx, refused)
}

// writeBatch writes routes and empties the batch.
func (t *Table) writeBatch(ctx context.Context, w *batch, taken *[]desired.RouteKey, refused *[]desired.Route) error {
	defer w.reset()
	results, err := t.conn.Send(ctx, w.messages)
	if err != nil {
		return err
	}
	for i, r := range w.routes {
		k := r.Key()
		switch err := results[i]; {
		case err == nil:
			t.setActual(r)
			delete(t.occupied, k)
			delete(t.ousted, k)
			delete(t.told, k)
		case errors.Is(err, unix.EEXIST):
			*taken = append(*taken, k)
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV):
			t.waiting[k] = r.NextHops[0].Link // it went in this moment; its return wakes us
		case refusedInPlace(r, t.has(k), err):
			*refused = append(*refused, r)
		default:
			t.failures.Add(dataplane.KindRoute, k.String(), fmt.Errorf("add %s: %w", r, err))
		}
	}
	return nil
}

// batch is routes on their way to the kernel. Its memory is used again.
type batch struct {
	routes   []desired.Route
	messages []nlsock.Message
	bytes    []byte // of the messages
}

func (b *batch) add(kind, flags uint16, r desired.Route, index func(string) int) {
	start := len(b.bytes)
	b.bytes = appendRoute(b.bytes, r, index)
	b.routes = append(b.routes, r)
	b.messages = append(b.messages, nlsock.Message{Type: kind, Flags: flags, Body: b.bytes[start:len(b.bytes):len(b.bytes)]})
}

func (b *batch) reset() {
	clear(b.routes)
	b.routes, b.messages, b.bytes = b.routes[:0], b.messages[:0], b.bytes[:0]
}

// has tells whether a route of ours is in the kernel with the key.
func (t *Table) has(k desired.RouteKey) bool { return t.routes.Has(k) }

func (t *Table) remove(ctx context.Context) error {
	doubles := t.doubles
	t.doubles = nil
	var w batch
	for i := range doubles {
		w.addRemoval(doubles[i], t.index)
	}
	if err := t.removeBatch(ctx, &w, func(desired.RouteKey) {}); err != nil {
		return err
	}
	gone := func(k desired.RouteKey) {
		t.deleteActual(k)
		delete(t.dropped, k)
	}
	for k, r := range t.routes.Deletes() {
		if _, told := t.dropped[k]; !told && !t.whole {
			continue
		}
		if w.addRemoval(r, t.index); len(w.routes) < writeAtOnce {
			continue
		}
		if err := t.removeBatch(ctx, &w, gone); err != nil {
			return err
		}
	}
	if err := t.removeBatch(ctx, &w, gone); err != nil {
		return err
	}
	for k := range t.dropped {
		if !t.has(k) {
			delete(t.dropped, k)
		}
	}
	return nil
}

// removeBatch removes routes and empties the batch. What could not be removed is still to be removed.
func (t *Table) removeBatch(ctx context.Context, w *batch, gone func(desired.RouteKey)) error {
	defer w.reset()
	results, err := t.conn.Send(ctx, w.messages)
	if err != nil {
		return err
	}
	for i, r := range w.routes {
		k := r.Key()
		switch err := results[i]; {
		case err == nil, errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENODEV):
			gone(k)
		default:
			t.failures.Add(dataplane.KindRoute, k.String(), fmt.Errorf("remove %s: %w", r, err))
			if t.has(k) {
				t.dropped[k] = struct{}{}
			}
		}
	}
	return nil
}

func (b *batch) addRemoval(r desired.Route, index func(string) int) {
	b.add(unix.RTM_DELROUTE, 0, r, index)
	b.messages[len(b.messages)-1].Body[6] = unix.RT_SCOPE_NOWHERE // any scope: the key is enough to tell it from others
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

func (t *Table) missingLink(r *desired.Route) string {
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
	t.routes.SetActual(k, r)
	delete(t.suspects, k)
}

func (t *Table) deleteActual(k desired.RouteKey) { t.routes.DeleteActual(k) }
