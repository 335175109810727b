package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/bird/policy"
)

// openAnyway is how long after the start sessions are opened without felix. What felix would announce is announced from
// memory of before the restart; a felix that is back later sweeps it.
const openAnyway = 10 * time.Second

// retryFirst and retryMost bound the wait before what the engine refused is tried again.
const (
	retryFirst = time.Second
	retryMost  = 30 * time.Second
)

// Speaker is a BGP speaker. It is made by New, and works while Run does.
type Speaker struct {
	log      *slog.Logger
	started  time.Time
	engine   Engine
	best     *bestTable
	sessions *sessions
	losses   losses
	guards   [kindsOfEvidence]Guard // set before there is a configuration
	wake     chan struct{}          // Run has something to look at
	settled  chan struct{}          // closed when the peers have told what they have

	mu         sync.Mutex // guards the following
	config     *policy.Config
	tagger     *policy.Tagger // of config
	configured time.Time
	names      map[netip.Addr]string // of config's sessions; replaced, never changed
	open       bool                  // the engine runs
	everOpen   bool                  // it has run: later starts are no restarts of the process
	restarted  bool                  // peers may keep routes of a process before this one, which the kernel still has
	ready      bool                  // sessions may be opened
	trouble    error
	heard      map[netip.Addr]struct{} // peers that have sent all they have; nil once settled is closed
	drain      policy.Drain
	reflected  []netip.Addr   // peers of the mesh that have been reflectors while this one was, sorted; replaced, never changed
	letOut     []netip.Prefix // inside which routes have been let out, sorted; replaced, never changed
	drainTimer *time.Timer
	drainDone  chan struct{} // closed when the drain under way ends; nil without one
	running    running
	locals     locals
}

// running is what the engine was told.
type running struct {
	global    Global
	peers     map[netip.Addr]Neighbor
	program   policy.Program
	announced map[netip.Prefix]Announcement
}

// New makes a speaker on the engine that start returns; start is given the speaker as the receiver of events.
func New(log *slog.Logger, start func(Events) (Engine, error)) (*Speaker, error) {
	s := &Speaker{
		log: log, started: time.Now(), best: newBestTable(keptRemovals), sessions: newSessions(), wake: make(chan struct{}, 1),
		settled: make(chan struct{}), heard: map[netip.Addr]struct{}{},
		running: running{peers: map[netip.Addr]Neighbor{}, announced: map[netip.Prefix]Announcement{}},
		locals:  newLocals(),
		losses:  losses{byPeer: map[netip.Addr]*loss{}},
	}
	s.best.detours = s.poke
	var err error
	s.engine, err = start(s)
	return s, err
}

// Run opens the sessions when their time has come, and repeats what failed, until ctx ends. Sessions then stay as they are:
// the end of the process must look like a crash to peers, so that they keep our routes (RFC 4724).
func (s *Speaker) Run(ctx context.Context) error {
	anyway := time.NewTimer(openAnyway)
	defer anyway.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	wait := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-anyway.C:
			s.allowOpen("felix did not announce in time")
		case <-s.wake:
		case <-retry.C:
		}
		if err := s.settle(); err != nil {
			s.log.Warn("not all of the configuration runs; trying again", "error", err, "in", wait)
			retry.Reset(wait)
			wait = min(2*wait, retryMost)
		} else {
			wait = retryFirst
		}
	}
}

func (s *Speaker) allowOpen(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready {
		s.ready = true
		s.log.Info("sessions may open", "because", why)
	}
}

// poke makes Run look.
func (s *Speaker) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Speaker) settle() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.reconcile()
	return err
}

// Changes says what an Apply did, by names of sessions.
type Changes struct {
	Added, Removed, Refreshed []string
	Restarted                 []string // each with the reason: "Node_10_0_0_1 (password)"
}

// ErrInvalid is wrapped by errors about the configuration itself; nothing was changed.
var ErrInvalid = errors.New("configuration not applied")

// Apply makes c the configuration. An error that wraps ErrInvalid leaves everything as it was; after any other the
// configuration is c, and what failed is tried again.
func (s *Speaker) Apply(c policy.Config) (Changes, error) {
	c.Normalize()
	if err := c.Validate(); err != nil {
		return Changes{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sameConfig(&c) {
		s.config.Generation = c.Generation
		return Changes{}, s.trouble
	}
	s.configured = time.Now()
	for _, w := range c.Warnings() {
		s.log.Warn("configuration", "warning", w)
	}
	s.config, s.tagger, s.names = &c, c.Tagger(), map[netip.Addr]string{}
	for _, p := range c.Active() {
		s.names[p.Address] = p.Name
	}
	s.reflected = slices.Compact(slices.SortedFunc(slices.Values(slices.Concat(s.reflected, c.Reflectors())), netip.Addr.Compare))
	s.letOut = slices.Compact(slices.SortedFunc(slices.Values(slices.Concat(s.letOut, c.Exported())), netip.Prefix.Compare))
	s.best.fix(c.StaticRoutes, c.Export.Unrouted)
	s.watch(&c)
	changes, err := s.reconcile()
	s.poke()
	return changes, err
}

// sameConfig compares all but the generation.
func (s *Speaker) sameConfig(c *policy.Config) bool {
	if s.config == nil {
		return false
	}
	old := *s.config
	old.Generation = c.Generation
	return reflect.DeepEqual(old, *c)
}

// reconcile brings the engine to what is configured. Whoever calls holds mu.
func (s *Speaker) reconcile() (Changes, error) {
	var changes Changes
	if s.config == nil || !s.ready {
		return changes, nil
	}
	s.trouble = s.startEngine(&changes)
	if s.trouble == nil {
		s.trouble = s.reconcileEngine(&changes)
	}
	return changes, s.trouble
}

// startEngine opens the listeners, or opens them anew when what concerns all sessions changes.
func (s *Speaker) startEngine(changes *Changes) error {
	want := Global{
		ASNumber: s.config.ASNumber, RouterID: s.config.RouterID, Port: s.config.ListenPort,
		Addresses: s.config.ListenAddresses,
	}
	if s.open && reflect.DeepEqual(want, s.running.global) {
		return nil
	}
	if s.open {
		s.log.Info("restarting all sessions: AS number, router id or listeners change")
		for a, n := range s.running.peers {
			s.sessions.fail(a, reconfigured("AS number, router id or listeners of the node"))
			changes.Restarted = append(changes.Restarted, n.Name+" (AS number, router id or listeners of the node)")
		}
		slices.Sort(changes.Restarted)
		if err := s.engine.Stop(); err != nil {
			return err
		}
		s.open = false
		s.running = running{peers: map[netip.Addr]Neighbor{}, announced: map[netip.Prefix]Announcement{}}
	}
	if err := s.engine.Start(want); err != nil {
		return err
	}
	s.open, s.running.global = true, want
	if !s.everOpen {
		time.AfterFunc(s.config.RestartDeferral, s.stopWaiting)
	}
	return nil
}

// Settled is closed when the best paths are what they were before the process restarted, as far as anyone will tell: each
// peer has sent all that it has, or the deferral time is over. Until then a path that is missing may just not be back yet.
func (s *Speaker) Settled() <-chan struct{} { return s.settled }

func (s *Speaker) stopWaiting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard != nil {
		s.heard = nil
		close(s.settled)
	}
}

// EndOfRIB is called by the engine.
func (s *Speaker) EndOfRIB(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard != nil {
		s.heard[peer] = struct{}{}
		s.checkSettled()
	}
}

func (s *Speaker) checkSettled() {
	if s.heard == nil {
		return
	}
	for a := range s.running.peers {
		if _, heard := s.heard[a]; !heard {
			return
		}
	}
	s.heard = nil
	close(s.settled)
}

// reconcileEngine applies the difference: peers that go, policy, own routes, peers that change or come, refreshes. In that
// order no peer ever is sent what neither the old nor the new configuration lets it have. What fails is reported, and
// the rest goes on.
func (s *Speaker) reconcileEngine(changes *Changes) error {
	var errs []error
	note := func(err error) bool {
		errs = append(errs, err)
		return err == nil
	}
	errs = append(errs, s.dropLost())
	want := map[netip.Addr]Neighbor{}
	for _, p := range s.config.Active() {
		want[p.Address] = s.neighbor(p)
	}
	for address, n := range s.running.peers {
		if _, stays := want[address]; !stays && note(s.engine.DeletePeer(address)) {
			delete(s.running.peers, address)
			changes.Removed = append(changes.Removed, n.Name)
		}
	}
	s.sessions.retain(func(a netip.Addr) bool {
		_, wanted := want[a]
		_, runs := s.running.peers[a]
		return wanted || runs
	})
	before, after := s.running.program, s.config.Compile(s.context())
	same := reflect.DeepEqual(before, after)
	if !same {
		if !note(s.engine.SetProgram(after)) {
			return errors.Join(errs...) // to go on would let peers have what they must not
		}
		s.running.program = after
	}
	errs = append(errs, s.announceAll())

	addresses := make([]netip.Addr, 0, len(want))
	for a := range want {
		addresses = append(addresses, a)
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	for _, a := range addresses {
		if s.losses.hold(a) {
			continue // found later
		}
		if note(s.reconcilePeer(want[a], changes)) && !same {
			errs = append(errs, s.refresh(want[a], before, after, changes))
		}
	}
	s.everOpen = true
	s.checkSettled()
	slices.Sort(changes.Removed)
	return errors.Join(errs...)
}

func (s *Speaker) reconcilePeer(n Neighbor, changes *Changes) error {
	old, there := s.running.peers[n.Address]
	if !there {
		s.sessions.add(n.Address)
		if err := s.engine.AddPeer(n); err != nil {
			return err
		}
		s.running.peers[n.Address] = n
		if !slices.ContainsFunc(changes.Restarted, func(r string) bool { return len(r) > len(n.Name) && r[:len(n.Name)+1] == n.Name+" " }) {
			changes.Added = append(changes.Added, n.Name)
		}
		return nil
	}
	change, why := policy.Compare(&old.Peer, &n.Peer)
	switch {
	case change == policy.Restarted:
	case old.Client != n.Client:
		change, why = policy.Restarted, "reflector client"
	case old.ClusterID != n.ClusterID && n.Client:
		change, why = policy.Restarted, "cluster id"
	case old.AllPaths != n.AllPaths:
		change, why = policy.Restarted, "number of paths sent"
	}
	if change == policy.Unchanged {
		s.running.peers[n.Address] = n
		return nil
	}
	n.Restarting = false
	if change == policy.Restarted {
		s.sessions.fail(n.Address, reconfigured(why))
	}
	if err := s.engine.UpdatePeer(n); err != nil {
		return err
	}
	s.running.peers[n.Address] = n
	if change == policy.Restarted {
		changes.Restarted = append(changes.Restarted, fmt.Sprintf("%s (%s)", n.Name, why))
	}
	return nil
}

// refresh has routes judged again where the policy that concerns the peer has changed, whatever is known of its session: what comes
// up is told of later, and has brought routes by then, and a peer that is away and expected back has left some.
func (s *Speaker) refresh(n Neighbor, before, after policy.Program, changes *Changes) error {
	var errs []error
	if !policy.SameFor(before, after, n.Address, false) {
		errs = append(errs, s.engine.RefreshIn(n.Address))
	}
	if !policy.SameFor(before, after, n.Address, true) {
		errs = append(errs, s.engine.RefreshOut(n.Address))
	}
	if len(errs) > 0 && s.sessions.get(n.Address).State == Established {
		changes.Refreshed = append(changes.Refreshed, n.Name)
	}
	return errors.Join(errs...)
}

func (s *Speaker) neighbor(p policy.Peer) Neighbor {
	n := Neighbor{
		Peer: p, LocalAS: p.Local(s.config), Internal: p.Internal(s.config), Client: p.ReflectorClient, ClusterID: s.config.ClusterID,
		AllPaths: p.AllPaths(s.config), Restarting: s.restarted && !s.everOpen, Deferral: s.config.RestartDeferral,
	}
	if p.Switches(s.config) { // its role may come and go, but the session stays
		n.Client, n.ClusterID = true, s.config.RouterID
	}
	return n
}

func (s *Speaker) context() policy.Context {
	return policy.Context{Unreachable: s.best.unreachable(), Drain: s.drain, Reflected: s.reflected, LetOut: s.letOut}
}

// Best is called by the engine.
func (s *Speaker) Best(prefix netip.Prefix, paths []Path) { s.best.set(prefix, lastChoices(paths)) }

// lastChoices leaves out the paths of peers that are away for long if there are others (RFC 9494 section 4.3): to the engine,
// which ranks them last, all are equally good nevertheless.
func lastChoices(paths []Path) []Path {
	stale := func(p Path) bool { return policy.IsLongLivedStale(p.Communities) }
	if len(paths) < 2 || stale(paths[0]) || !slices.ContainsFunc(paths, stale) {
		return paths
	}
	return slices.DeleteFunc(slices.Clone(paths), stale)
}

// Ready tells whether a configuration runs, or why not.
func (s *Speaker) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.config == nil:
		return errors.New("no configuration yet; confd brings it")
	case !s.ready:
		return errors.New("waiting for felix to announce this node's routes")
	}
	return s.trouble
}
