// Package agent is felix's loop. It owns the node's state, lets package render decide what the kernel should hold, hands
// the difference to the drivers, and tells those who wait when it is done. Everything that happens comes in as an event;
// events that come while the kernel is being programmed are taken together in the next turn.
package agent

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/scope"
	"github.com/muslin-net/muslin/felix/state"
)

// routesPatience is how long routes that an earlier felix wrote are kept while bird has not told its paths: as long as BGP
// peers keep them for a speaker that restarts.
const routesPatience = 120 * time.Second

// Failed applies are tried again after retryFirst, doubling to retryLast; a full audit of the kernel runs every auditEvery.
const (
	retryFirst = 100 * time.Millisecond
	retryLast  = 5 * time.Second
	auditEvery = 60 * time.Second
)

// Kernel is what the agent drives: all drivers as one.
type Kernel interface {
	// Update takes changes of the desired state; memory only.
	Update(desired.Changes)
	// Apply makes the kernel agree, in an order that lets nothing pass before its rules are there. What failed is tried
	// again at the next Apply.
	Apply(ctx context.Context) error
	// Whole tells that everything but routes is known, so that what is not wanted may be removed.
	Whole()
	// RoutesWhole tells the same of routes: bird's paths come later than typha's view.
	RoutesWhole()
	// Resync has the next Apply read the kernel anew.
	Resync()
	// Forgotten waits until connections of addresses that left their workloads are deleted, beside the loop that calls the others.
	Forgotten(ctx context.Context, addrs []netip.Addr) error
	// Holds tells what of a local endpoint is not in the kernel as it should be; nothing means that it is programmed.
	Holds(e state.Endpoint) error
	// Entries lists everything, desired beside actual.
	Entries() []dataplane.Entry
	// ToldAs is what Update called a chain of rules that Entries names, "" if nothing.
	ToldAs(key string) string
	// Programmed tells whether a route with exactly this destination, to a workload or a block's blackhole, is in the
	// kernel as wanted.
	Programmed(dst netip.Prefix) bool
}

// Announcer is told which prefixes this node owns and has programmed: all of them, each time something changed.
type Announcer interface {
	Announce(prefixes []netip.Prefix)
}

// Events tell others what the agent did. All are called by the loop and must not block.
type Events struct {
	// LocalChanged is called with all local endpoints when one came, went or changed.
	LocalChanged func([]state.Endpoint)
	// Ready is called with why pods cannot be wired, with nothing when they can.
	Ready func(reasons []string)
	// MTU is called when the MTU for new pods changed.
	MTU func(mtu int)
	// Trouble is called when what the kernel refuses has become another matter: with the reason and the message of the
	// condition DataplaneProgrammed, or with nothing when all is programmed; nil: nobody asks.
	Trouble func(reason, message string)
	// Bearers is called with the interfaces of host endpoints that are found by their addresses, by the endpoint's name, when
	// they changed; nil: nobody asks.
	Bearers func(interfaces map[string][]string)
	// Peers is called with the addresses of the other nodes, sorted, when something of the nodes changed, and when a route to one
	// did (moved), as where bird learns them; nil: nobody asks.
	Peers func(addrs []netip.Addr, moved bool)
	// PolicySync is called with the directory of pods' policy-sync sockets when it changed, empty for none; nil: nobody asks.
	PolicySync func(home string)
}

// Agent is the loop. Its methods may be called from any goroutine.
type Agent struct {
	kernel   Kernel
	announce Announcer
	events   Events
	log      *slog.Logger

	inbox chan event
	wake  chan struct{} // the kernel was changed by someone else
	ended chan struct{} // closed when the loop ends; nobody is answered any more
	ready atomic.Pointer[[]string]
	// podsFollow says that typha tells of each pod.
	podsFollow atomic.Bool

	problems atomic.Pointer[[]render.Problem]
	troubles troubles

	// Owned by the loop:
	state   *state.State
	links   map[string]desired.WorkloadLink
	sysctls map[string]desired.Sysctl
	tunnels render.Tunnels
	rib     render.RIB
	fw      render.Firewall
	bearers map[string][]string
	mtu     int
	warned  []string // about MTUs that are asked for and do not fit
	host    bool     // the node's own network was read: without it tunnels have no parent, and would go
	whole   bool
	failed  bool         // the last turn did, in part
	peers   []netip.Addr // of the other nodes, sorted
	moved   bool         // a route to one of them was changed, and nobody was told
	// Routes are whole when bird has told all its paths and the way to each next hop was looked up.
	pathsKnown, routesWhole bool
	expected                map[string]state.Endpoint  // reported, and not there yet, by interface
	followers               map[*scope.Follower]func() // of pods' policy, with what wakes them
	policySync              string                     // directory of their sockets
	waiters                 []waiter
	askers                  []asker
	due                     []event  // whose callers wait for the present turn
	acks                    []func() // of batches that are not in the kernel yet
}

// event changes the state, or only looks at it.
type event struct {
	do   func(*state.State) state.Section
	done chan<- error // gets the outcome of the next turn; nil if nobody waits
	// holds judges a failed turn: what is wrong with what the event is about. Without it nothing is, also while the view is
	// not known: there is nothing of it in the kernel to wait for.
	holds func() error
	ack   func() // called after the first turn that succeeds; nil if nobody waits
}

// waiter waits for an endpoint to be as it should be.
type waiter struct {
	iface   string
	missing func(*state.State) error // what is not; nil: nothing
	done    chan<- error
	ctx     context.Context //nolint:containedctx // it bounds this one wait, and is how the loop knows that nobody waits any more
}

// New returns an agent for a node. local are the endpoints that an earlier felix left wired.
func New(node string, kernel Kernel, announce Announcer, local []state.Endpoint, events Events, log *slog.Logger) *Agent {
	a := &Agent{
		kernel: kernel, announce: announce, events: events, log: log,
		inbox: make(chan event, 64), wake: make(chan struct{}, 1), ended: make(chan struct{}), state: state.New(node),
		expected: map[string]state.Endpoint{}, followers: map[*scope.Follower]func(){},
	}
	for _, e := range local {
		a.state.SetLocal(e)
	}
	a.setReady([]string{a.unknown()})
	return a
}

// unknown tells what must be known before anything is programmed, and is not; empty if all is.
func (a *Agent) unknown() string {
	switch {
	case !a.state.Synced:
		return "typha has not sent the node's view, and there is no saved one that can be used"
	case !a.host:
		return "the node's own interfaces have not been read yet"
	}
	return ""
}

// Wake has the kernel looked at in the next turn. It never blocks.
func (a *Agent) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Ready tells why pods cannot be wired; nothing means that they can.
func (a *Agent) Ready() []string { return *a.ready.Load() }

func (a *Agent) setReady(reasons []string) {
	if old := a.ready.Swap(&reasons); old == nil || !slices.Equal(*old, reasons) {
		a.events.Ready(reasons)
	}
}

// Run is the loop; it ends with ctx. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.ended)
	audit, patience := time.NewTicker(auditEvery), time.NewTimer(routesPatience)
	defer audit.Stop()
	defer patience.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	wait := retryFirst
	touched := state.All // a first turn looks at everything
	a.report()
	for {
		idle := false
		select {
		case <-ctx.Done():
			return nil
		case e := <-a.inbox:
			touched |= a.take(e)
			touched |= a.drain()
			idle = touched == 0 && !a.owes()
		case <-a.wake:
		case <-retry.C:
		case <-audit.C:
			a.kernel.Resync()
		case <-patience.C:
			a.pathsKnown = true
		}
		if reason := a.unknown(); reason != "" {
			a.setReady([]string{reason})
			a.fail() // nothing is programmed before all is known: what an earlier felix left goes on working
			continue
		}
		if idle { // somebody only looked
			a.tellWaiters()
			continue
		}
		err := a.turn(ctx, touched)
		touched = 0
		if err != nil {
			a.log.Warn("part of the kernel could not be programmed, trying again", "within", wait, "error", err)
			retry.Reset(wait)
			wait = min(2*wait, retryLast)
			continue
		}
		wait = retryFirst
	}
}

// owes tells whether a turn is due although nothing was touched: somebody waits for its end, or the kernel is to be whole.
func (a *Agent) owes() bool {
	return len(a.due) > 0 || len(a.acks) > 0 || !a.whole || a.pathsKnown && !a.routesWhole
}

// report tells of all endpoints, those that are being made too.
func (a *Agent) report() {
	all := maps.Clone(a.state.Local)
	for iface, e := range a.expected {
		if _, there := all[iface]; !there {
			all[iface] = e
		}
	}
	a.events.LocalChanged(sorted(all))
}

// take applies one event to the state.
func (a *Agent) take(e event) state.Section {
	touched := e.do(a.state)
	if e.done != nil {
		a.due = append(a.due, e)
	}
	if e.ack != nil {
		a.acks = append(a.acks, e.ack)
	}
	return touched
}

// pathsAtOnce is how many of bird's paths are programmed in one turn, about: so that the kernel is at work while more come,
// and what a turn needs of memory does not grow with them.
const pathsAtOnce = 8192

// drain takes every event that is there already, so that a burst is programmed at once.
func (a *Agent) drain() (touched state.Section) {
	for a.state.PathsChanged() < pathsAtOnce {
		select {
		case e := <-a.inbox:
			touched |= a.take(e)
		default:
			return touched
		}
	}
	return touched
}

// turn makes the kernel agree with the state.
func (a *Agent) turn(ctx context.Context, touched state.Section) error {
	changes := a.changes(touched)
	a.kernel.Update(changes)
	if touched&state.Tunnels != 0 {
		a.peers = render.Peers(a.state)
	}
	a.moved = a.moved || leadsTo(changes.Routes, a.peers)
	if !a.whole {
		a.whole = true
		a.kernel.Whole()
	}
	if !a.routesWhole && a.pathsKnown && a.state.NextHopsKnown() {
		a.routesWhole = true
		a.kernel.RoutesWhole()
	}
	err := a.kernel.Apply(ctx)
	if ctx.Err() == nil {
		a.tellTrouble(a.troubles.note(err))
	}
	retried := a.failed
	a.failed = err != nil
	if touched&state.Routes != 0 || a.failed || retried {
		a.announce.Announce(slices.DeleteFunc(render.Announced(a.state), a.missing))
	}
	for _, e := range a.due {
		if err != nil && e.holds != nil {
			e.done <- e.holds()
			continue
		}
		e.done <- nil
	}
	a.due = nil
	if err == nil {
		for _, ack := range a.acks {
			ack()
		}
		a.acks = nil
	}
	a.tellWaiters()
	a.setReady(nil)
	a.tellMTU()
	a.tellPolicySync()
	a.tellProblems()
	if touched&state.Firewall != 0 && a.events.Bearers != nil {
		a.tellBearers()
	}
	if moved := a.moved && err == nil; a.events.Peers != nil && (moved || touched&state.Tunnels != 0) {
		a.events.Peers(a.peers, moved)
		a.moved = a.moved && !moved
	}
	return err
}

// leadsTo tells whether a route that changes is, or was, for one of some addresses, which are sorted.
func leadsTo(changed desired.Delta[desired.RouteKey, desired.Route], addrs []netip.Addr) bool {
	leads := func(to netip.Prefix) bool {
		i, _ := slices.BinarySearchFunc(addrs, to.Addr(), netip.Addr.Compare)
		return i < len(addrs) && to.Contains(addrs[i])
	}
	for _, keys := range []iter.Seq[desired.RouteKey]{maps.Keys(changed.Set), maps.Keys(changed.Removed)} {
		for k := range keys {
			if leads(k.Dst) {
				return true
			}
		}
	}
	return false
}

// tellMTU tells what pods' MTU has become, and warns of settings that ask for more than fits.
func (a *Agent) tellMTU() {
	if mtu := render.PodMTU(a.state); mtu != a.mtu {
		a.log.Info("MTU of pods", "mtu", mtu, "before", a.mtu, "network", render.HostMTU(a.state), "interfaces", render.Uplinks(a.state))
		a.mtu = mtu
		a.events.MTU(mtu)
	}
	warnings := render.MTUWarnings(a.state)
	for _, w := range warnings {
		if !slices.Contains(a.warned, w) {
			a.log.Warn("an MTU that does not fit", "what", w)
		}
	}
	a.warned = warnings
}

// tellBearers tells where host endpoints were found by their addresses.
func (a *Agent) tellBearers() {
	now := render.Bearers(a.state)
	if !maps.EqualFunc(a.bearers, now, slices.Equal) {
		a.bearers = now
		a.events.Bearers(now)
	}
}

// tellProblems tells which pools the node cannot serve.
func (a *Agent) tellProblems() {
	problems := render.Problems(a.state)
	old := a.problems.Swap(&problems)
	for _, p := range problems {
		if old == nil || !slices.Contains(*old, p) {
			a.log.Warn("a pool cannot be served", "why", p.Message, "detail", a.state.Capabilities.Lacks[p.Capability])
		}
	}
}

// tellTrouble tells what the kernel refuses, if there is something to tell.
func (a *Agent) tellTrouble(reason, message string, news bool) {
	if news && a.events.Trouble != nil {
		a.events.Trouble(reason, message)
	}
}

// missing tells whether a prefix of this node is not programmed, so that packets for it would get lost here. The
// addresses of its own tunnel devices have no route, as they are the node's.
func (a *Agent) missing(p netip.Prefix) bool {
	self := a.state.Nodes[a.state.Node]
	if p.IsSingleIP() && slices.Contains([]netip.Addr{self.IPIPAddr, self.VXLANAddr4, self.VXLANAddr6}, p.Addr()) {
		return false
	}
	return !a.kernel.Programmed(p)
}

// fail tells those who wait that nothing is programmed yet.
func (a *Agent) fail() {
	for _, e := range a.due {
		var err error
		if e.holds != nil {
			err = status.Error(codes.Unavailable, "felix is not in sync: "+a.Ready()[0])
		}
		e.done <- err
	}
	a.due = nil
}

// changes computes the sections that were touched and the difference to what was wanted before.
func (a *Agent) changes(touched state.Section) desired.Changes {
	var c desired.Changes
	if touched&state.Links != 0 {
		links := render.Links(a.state)
		c.Links = desired.Diff(a.links, links, equal)
		a.links = links
		sysctls := map[string]desired.Sysctl{}
		for _, s := range render.Sysctls(a.state) {
			sysctls[s.Path] = s
		}
		c.Sysctls = desired.Diff(a.sysctls, sysctls, equal)
		a.sysctls = sysctls
	}
	if touched&state.Tunnels != 0 {
		t := render.TunnelState(a.state)
		c.VXLANs = desired.Diff(a.tunnels.VXLAN, t.VXLAN, equal)
		c.Neighbors = desired.Diff(a.tunnels.Neighbors, t.Neighbors, equal)
		c.FDB = desired.Diff(a.tunnels.FDB, t.FDB, equal)
		c.IPIPs = desired.Diff(a.tunnels.IPIP, t.IPIP, equal)
		c.Decaps = desired.Diff(a.tunnels.Decaps, t.Decaps, equal)
		a.tunnels = t
	}
	if touched&state.Firewall != 0 {
		a.tellFollowers()
		c.Firewall = a.fw.Update(a.state)
		for iface, h := range c.Firewall.Hosts.Set {
			if h.ClosedBecause != "" {
				a.log.Warn("a host endpoint is closed but for failsafe ports and what is established", "endpoint", h.Endpoint, "interface", iface, "why", h.ClosedBecause)
			}
		}
	}
	if touched&(state.Routes|state.Paths) != 0 {
		c.Routes, c.Encaps = a.rib.Update(a.state, touched)
	}
	return c
}

func equal[T comparable](a, b T) bool { return a == b }

// tellWaiters answers those whose endpoint is as it should be, or gone, and forgets those who no longer wait.
func (a *Agent) tellWaiters() {
	a.tellAskers()
	a.waiters = slices.DeleteFunc(a.waiters, func(w waiter) bool {
		if w.ctx.Err() != nil {
			return true
		}
		_, there := a.state.Local[w.iface]
		why := w.missing(a.state)
		if there && why != nil {
			return false
		}
		w.done <- why
		return true
	})
}

// localEndpoints are the endpoints on the node in the order of their interfaces.
func localEndpoints(s *state.State) []state.Endpoint { return sorted(s.Local) }

func sorted(endpoints map[string]state.Endpoint) []state.Endpoint {
	out := make([]state.Endpoint, 0, len(endpoints))
	for _, name := range slices.Sorted(maps.Keys(endpoints)) {
		out = append(out, endpoints[name])
	}
	return out
}
