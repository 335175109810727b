package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/internal/prefixes"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// LocalRoute is a route of this node that is programmed.
type LocalRoute struct {
	Prefix    netip.Prefix
	Metric    uint32 // 0: the ordinary one
	Interface string // outgoing interface, empty for a blackhole
}

// Path is one way to a prefix.
type Path struct {
	NextHop     netip.Addr
	Peer        string // session it came from
	PeerAddress netip.Addr
	Preference  uint32
	Metric      uint32 // for the kernel
	ASPath      []uint32
	Communities []string
	MED         uint32
	Origin      string
	Stale       bool // the peer restarts, and the path is kept for it
}

// Best is the outcome of path selection for a prefix; no paths means that the prefix is gone.
type Best struct {
	Prefix netip.Prefix
	Paths  []Path
}

// Update is what changed since the last update.
type Update struct {
	Best []Best // each prefix once, in no order; prefixes with the same paths may share them
	// NextHops are all that bird wants judged by Routes.NextHop, sorted: those of all present paths, and those that were
	// called unreachable, whose paths bird keeps back until they are reachable again.
	NextHops []netip.Addr
	Synced   bool   // bird has told all that it knew when the stream began; once true it stays
	Sequence uint64 // for Applied
}

// Reconnection waits from reconnectFirst to reconnectMost, plus or minus half.
const (
	reconnectFirst = 200 * time.Millisecond
	reconnectMost  = 5 * time.Second
)

// Routes is felix's exchange of routes with bird. What felix says is remembered, and said again after a reconnection; what
// bird says is passed on as plain changes, whatever happens to the connection: routes stay while bird is away, and after it
// is back only differences are told. Methods may be called from several goroutines, before and during Run.
type Routes struct {
	client *Client
	log    *slog.Logger

	mu       sync.Mutex // guards the following
	locals   map[netip.Prefix]LocalRoute
	hops     map[netip.Addr]nextHop
	complete bool // SnapshotEnd was called
	applied  uint64
	todo     *outbox // what the present stream must still send; nil without a stream
	wake     chan struct{}
}

type nextHop struct {
	reachable bool
	metric    uint32
}

// outbox holds each thing to send once, however slow bird reads.
type outbox struct {
	locals   map[netip.Prefix]struct{}
	hops     map[netip.Addr]struct{}
	complete bool
	applied  bool
}

// Routes prepares an exchange. A bird has one at a time.
func (c *Client) Routes(log *slog.Logger) *Routes {
	return &Routes{
		client: c, log: log, locals: map[netip.Prefix]LocalRoute{}, hops: map[netip.Addr]nextHop{}, wake: make(chan struct{}, 1),
	}
}

// Announce says that a route is programmed.
func (r *Routes) Announce(l LocalRoute) {
	r.say(func(o *outbox) { o.locals[l.Prefix] = struct{}{} }, func() { r.locals[l.Prefix] = l })
}

// Withdraw says that a route is programmed no more.
func (r *Routes) Withdraw(p netip.Prefix) {
	r.say(func(o *outbox) { o.locals[p] = struct{}{} }, func() { delete(r.locals, p) })
}

// NextHop answers for a next hop of bird's: whether the kernel has a route to it over an interface that is up, and its metric.
func (r *Routes) NextHop(a netip.Addr, reachable bool, metric uint32) {
	r.say(func(o *outbox) { o.hops[a] = struct{}{} }, func() { r.hops[a] = nextHop{reachable, metric} })
}

// SnapshotEnd says that all that was programmed at the start has been announced. bird then withdraws what an earlier felix
// announced and this one did not.
func (r *Routes) SnapshotEnd() {
	r.say(func(o *outbox) { o.complete = true }, func() { r.complete = true })
}

// Applied says that an update is in the kernel.
func (r *Routes) Applied(sequence uint64) {
	r.say(func(o *outbox) { o.applied = true }, func() { r.applied = sequence })
}

func (r *Routes) say(todo func(*outbox), remember func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	remember()
	if r.todo == nil {
		return
	}
	todo(r.todo)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run keeps the exchange up until ctx ends, and then returns nil. handle is called by one goroutine at a time; while it is at
// work changes gather, each prefix with its newest value.
func (r *Routes) Run(ctx context.Context, handle func(Update)) error {
	in := newInbox()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-in.wake:
				if u, ok := in.take(); ok {
					u.NextHops = r.judged(u.NextHops)
					handle(u)
				}
			}
		}
	})
	group.Go(func() error {
		wait := reconnectFirst
		for {
			began := time.Now()
			err := r.stream(ctx, in)
			if ctx.Err() != nil {
				return nil
			}
			if time.Since(began) > reconnectMost {
				wait = reconnectFirst
			}
			pause := wait/2 + rand.N(wait)
			r.log.Warn("bird is away; routes stay as they are", "error", err, "again", pause.Round(time.Millisecond))
			wait = min(2*wait, reconnectMost)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
	})
	return group.Wait()
}

// judged adds the next hops that were called unreachable to those in use.
func (r *Routes) judged(inUse []netip.Addr) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, h := range r.hops {
		if !h.reachable {
			inUse = append(inUse, a)
		}
	}
	slices.SortFunc(inUse, netip.Addr.Compare)
	return slices.Compact(inUse)
}

// stream is one connection's worth.
func (r *Routes) stream(ctx context.Context, in *inbox) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.client.bird.Routes(ctx)
	if err != nil {
		return err
	}
	instance, sequence := in.position()
	hello := &birdv1.RoutesHello{Instance: instance, Sequence: sequence}
	if err := s.Send(&birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	r.begin()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer cancel()
		for {
			m, err := s.Recv()
			if err != nil {
				return err
			}
			if err := in.put(m); err != nil {
				return err
			}
		}
	})
	group.Go(func() error {
		for {
			for _, m := range r.pending() {
				if err := s.Send(m); err != nil {
					return nil // Recv tells why
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-r.wake:
			}
		}
	})
	return group.Wait()
}

// begin puts all that felix has said into the outbox.
func (r *Routes) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.todo = &outbox{locals: map[netip.Prefix]struct{}{}, hops: map[netip.Addr]struct{}{}, complete: r.complete}
	for p := range r.locals {
		r.todo.locals[p] = struct{}{}
	}
	for a := range r.hops {
		r.todo.hops[a] = struct{}{}
	}
}

// pending empties the outbox. The end of the snapshot comes after what was said before it.
func (r *Routes) pending() []*birdv1.RoutesRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*birdv1.RoutesRequest
	for p := range r.todo.locals {
		l, there := r.locals[p]
		out = append(out, &birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_Local{Local: &birdv1.LocalRoute{
			Prefix:    &birdv1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())},
			Withdrawn: !there, Metric: l.Metric, Interface: l.Interface,
		}}})
	}
	for a := range r.todo.hops {
		h := r.hops[a]
		out = append(out, &birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_NextHop{NextHop: &birdv1.NextHop{
			Address: a.AsSlice(), Reachable: h.reachable, Metric: h.metric,
		}}})
	}
	if r.todo.complete {
		out = append(out, &birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_SnapshotEnd{SnapshotEnd: true}})
	}
	if r.todo.applied {
		out = append(out, &birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_Applied{Applied: r.applied}})
	}
	clear(r.todo.locals)
	clear(r.todo.hops)
	r.todo.complete, r.todo.applied = false, false
	return out
}

// inbox gathers what bird says, and turns a new snapshot into differences from what felix was told before.
type inbox struct {
	wake chan struct{}

	mu       sync.Mutex // guards the following
	instance string
	sequence uint64
	known    prefixes.Map[*[]netip.Addr] // prefixes with paths, as told, and their next hops, shared by many
	hops     map[netip.Addr]int          // how many paths have it
	fresh    *prefixes.Map[struct{}]     // those told in the snapshot under way; nil if none is
	changed  prefixes.Map[[]Path]
	synced   bool
	news     bool
}

func newInbox() *inbox {
	return &inbox{wake: make(chan struct{}, 1), hops: map[netip.Addr]int{}}
}

func (in *inbox) position() (string, uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fresh != nil { // broken off within a snapshot: what is missing is not known
		return "", 0
	}
	return in.instance, in.sequence
}

func (in *inbox) put(m *birdv1.RoutesResponse) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sequence = m.GetSequence()
	switch m := m.GetResponse().(type) {
	case *birdv1.RoutesResponse_Welcome:
		in.instance = m.Welcome.GetInstance()
		if !m.Welcome.GetResumed() {
			in.fresh = &prefixes.Map[struct{}]{}
		}
		return nil
	case *birdv1.RoutesResponse_Best:
		for _, g := range m.Best.GetGroups() {
			if err := in.setAll(g); err != nil {
				return err
			}
		}
	case *birdv1.RoutesResponse_SnapshotEnd:
		if in.fresh != nil {
			for prefix := range in.known.All() {
				if !in.fresh.Has(prefix) {
					in.set(prefix, nil, nil)
				}
			}
			in.fresh = nil
		}
		in.synced, in.news = true, true
	default:
		return errors.New("bird sent what this version does not know")
	}
	select {
	case in.wake <- struct{}{}:
	default:
	}
	return nil
}

// setAll takes in prefixes that have the same paths. They share them in memory.
func (in *inbox) setAll(g *birdv1.BestPaths) error {
	paths := pathsOf(g.GetPaths())
	var hops []netip.Addr
	for _, p := range paths {
		hops = append(hops, p.NextHop)
	}
	for _, family := range []struct {
		packed []byte
		size   int
	}{{g.GetPrefixes4(), 4}, {g.GetPrefixes6(), 16}} {
		for b := family.packed; len(b) > 0; {
			if len(b) <= family.size {
				return errors.New("bird sent a list of prefixes that is cut short")
			}
			addr, _ := netip.AddrFromSlice(b[:family.size])
			prefix := netip.PrefixFrom(addr, int(b[family.size]))
			if !prefix.IsValid() {
				return fmt.Errorf("bird sent a prefix that is none: %s/%d", addr, b[family.size])
			}
			in.set(prefix, paths, &hops)
			b = b[family.size+1:]
		}
	}
	return nil
}

func (in *inbox) set(prefix netip.Prefix, paths []Path, hops *[]netip.Addr) {
	in.changed.Set(prefix, paths)
	in.news = true
	if old, there := in.known.Get(prefix); there {
		for _, a := range *old {
			if in.hops[a]--; in.hops[a] == 0 {
				delete(in.hops, a)
			}
		}
	}
	if len(paths) == 0 {
		in.known.Delete(prefix)
		if in.fresh != nil {
			in.fresh.Delete(prefix)
		}
		return
	}
	for _, a := range *hops {
		in.hops[a]++
	}
	in.known.Set(prefix, hops)
	if in.fresh != nil {
		in.fresh.Set(prefix, struct{}{})
	}
}

func (in *inbox) take() (Update, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.news {
		return Update{}, false
	}
	u := Update{Synced: in.synced, Sequence: in.sequence, Best: make([]Best, 0, in.changed.Len())}
	for prefix, paths := range in.changed.All() {
		u.Best = append(u.Best, Best{prefix, paths})
	}
	for a := range in.hops {
		u.NextHops = append(u.NextHops, a)
	}
	in.changed, in.news = prefixes.Map[[]Path]{}, false
	return u, true
}

func pathsOf(list []*birdv1.Path) []Path {
	var out []Path
	for _, p := range list {
		out = append(out, Path{
			NextHop: address(p.GetNextHop()), Peer: p.GetPeer(), PeerAddress: address(p.GetPeerAddress()),
			Preference: p.GetLocalPreference(), Metric: p.GetMetric(), ASPath: p.GetAsPath(), Communities: p.GetCommunities(),
			MED: p.GetMed(), Origin: p.GetOrigin(), Stale: p.GetStale(),
		})
	}
	return out
}
