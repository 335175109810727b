package alloc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/block"
)

// schedule lets goroutines run one datastore call at a time, in an order drawn from a seed. Between two calls all of them
// stand still, so that every interleaving of reads and writes can come up, and a seed always gives the same one.
type schedule struct {
	random *rand.Rand
	clock  *clock

	mu      sync.Mutex
	waiting []ticket
}

type ticket struct {
	actor string
	call  call
	run   chan struct{}
}

type actorKey struct{}

// wait is the fake's before hook.
func (s *schedule) wait(ctx context.Context, c call) error {
	actor, _ := ctx.Value(actorKey{}).(string)
	t := ticket{actor, c, make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, t)
	s.mu.Unlock()
	<-t.run
	return nil
}

// run lets calls through until nobody wants any more.
func (s *schedule) run() {
	for {
		synctest.Wait()
		s.mu.Lock()
		if len(s.waiting) == 0 {
			s.mu.Unlock()
			return
		}
		slices.SortFunc(s.waiting, func(x, y ticket) int {
			return cmp.Or(cmp.Compare(x.actor, y.actor), cmp.Compare(x.call.key.String(), y.call.key.String()), cmp.Compare(x.call.op, y.call.op))
		})
		i := s.random.IntN(len(s.waiting))
		next := s.waiting[i]
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.mu.Unlock()
		if s.random.IntN(4) == 0 {
			s.clock.Advance(time.Duration(s.random.IntN(40)) * time.Second)
		}
		close(next.run)
	}
}

// ledger is who believes to hold which address.
type ledger struct {
	mu     sync.Mutex
	holder map[netip.Addr]string
	errs   []error
}

func (l *ledger) take(actor string, addrs []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range addrs {
		if by := l.holder[p.Addr()]; by != "" {
			l.errs = append(l.errs, fmt.Errorf("%s was given %s, which %s holds", actor, p, by))
		}
		l.holder[p.Addr()] = actor
	}
}

func (l *ledger) give(addrs ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addrs {
		delete(l.holder, a)
	}
}

func (l *ledger) giveAll(actor string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.holder, func(_ netip.Addr, by string) bool { return by == actor })
}

// actor is one process that does random things.
type actor struct {
	*Allocator
	name, node string
	random     *rand.Rand
	ledger     *ledger
	held       []netip.Prefix
	errs       []error
}

func (a *actor) unexpected(what string, err error, allowed ...error) {
	if err == nil || slices.ContainsFunc(allowed, func(e error) bool { return errors.Is(err, e) }) {
		return
	}
	if _, taken := errors.AsType[*block.TakenError](err); !taken {
		a.errs = append(a.errs, fmt.Errorf("%s: %s: %w", a.name, what, err))
	}
}

func (a *actor) act(ctx context.Context) {
	handle := a.name // own handle; sometimes one that all share
	attrs := map[string]string{api.OwnerNode: a.node}
	switch a.random.IntN(11) {
	case 0, 1, 2, 3:
		shared := a.random.IntN(4) == 0
		if shared {
			handle = "shared"
		}
		got, err := a.AutoAssign(ctx, Request{
			Node: a.node, Family: 4, Count: 1 + a.random.IntN(3), Handle: handle, Attributes: attrs, Use: api.UseWorkload,
		})
		a.unexpected("assign", err, ErrBlockLimit)
		if !shared {
			a.ledger.take(a.name, got.Addrs)
			a.held = append(a.held, got.Addrs...)
		}
	case 4:
		want := prefix("10.0.0.0/29").Addr()
		for range a.random.IntN(8) {
			want = want.Next()
		}
		err := a.AssignIP(ctx, Specific{Addr: want, Node: a.node, Handle: handle, Attributes: attrs})
		a.unexpected("assign specific", err, ErrStrictAffinity)
		if err == nil {
			got := []netip.Prefix{netip.PrefixFrom(want, 31)}
			a.ledger.take(a.name, got)
			a.held = append(a.held, got...)
		}
	case 5:
		var back []block.Release
		for range min(len(a.held), 1+a.random.IntN(3)) {
			back = append(back, block.Release{Addr: a.held[0].Addr(), Handle: handle})
			a.ledger.give(a.held[0].Addr())
			a.held = a.held[1:]
		}
		unknown, err := a.Release(ctx, back...)
		a.unexpected("release", err)
		if len(unknown) > 0 {
			a.errs = append(a.errs, fmt.Errorf("%s: lost %v", a.name, unknown))
		}
	case 6:
		for _, p := range a.held {
			a.ledger.give(p.Addr())
		}
		a.held = nil
		_, err := a.ReleaseByHandle(ctx, handle)
		a.unexpected("release by handle", err, datastore.ErrNotFound)
	case 7:
		_, err := a.ReleaseByHandle(ctx, "shared")
		a.unexpected("release shared handle", err, datastore.ErrNotFound)
	case 8:
		err := a.ReleaseNode(ctx, []string{"node-a", "node-b"}[a.random.IntN(2)], a.random.IntN(2) == 0)
		a.unexpected("release node", err, ErrNotEmpty)
	case 9: // reserve, then settle, as nodes with a warm pool do
		got, err := a.AutoAssign(ctx, Request{Node: a.node, Family: 4, Count: 1, Handle: "warm-" + a.name, Attributes: attrs, Use: api.UseWorkload})
		a.unexpected("reserve", err, ErrBlockLimit)
		a.ledger.take(a.name, got.Addrs)
		for _, p := range got.Addrs {
			a.unexpected("settle", a.Reassign(ctx, p.Addr(), "warm-"+a.name, block.Owner{Handle: handle, Attributes: attrs}))
			a.held = append(a.held, p)
		}
	case 10:
		_, err := a.Collect(ctx)
		a.unexpected("collect", err)
	}
}

// interleave runs actors under one seed and returns the world as they leave it.
func interleave(t *testing.T, seed uint64, steps int, objects ...api.Object) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(objects...), newClock()
		s := &schedule{random: rand.New(rand.NewPCG(seed, 0)), clock: c}
		f.before = s.wait
		var broken []error
		f.check = func() {
			if err := f.broken(); err != nil {
				broken = append(broken, err)
			}
		}
		book := &ledger{holder: map[netip.Addr]string{}}
		var actors []*actor
		var wg sync.WaitGroup
		for i, node := range []string{"node-a", "node-a", "node-b", "node-c"} {
			a := &actor{
				Allocator: New(f, Options{Now: c.Now}), ledger: book,
				name: fmt.Sprint("actor-", i), node: node, random: rand.New(rand.NewPCG(seed, uint64(i+1))),
			}
			switch i { // what a process knows is old, or wrong altogether
			case 1:
				a.Allocator = New(f, Options{Now: c.Now, Known: knowing(objects...)})
			case 2:
				a.Allocator = New(f, Options{Now: c.Now, Known: knowing(aPool("p", "10.0.0.0/28", 30), aNode("node-b"))})
			}
			actors = append(actors, a)
			wg.Go(func() {
				for range steps {
					a.act(context.WithValue(context.Background(), actorKey{}, a.name))
				}
			})
		}
		s.run()
		wg.Wait()
		what := fmt.Sprintf("seed %d", seed)
		require.NoError(t, errors.Join(broken...), what)
		require.NoError(t, errors.Join(book.errs...), what)
		require.Empty(t, f.surplus(), what)
		for _, a := range actors {
			require.NoError(t, errors.Join(a.errs...), what)
			f.before = nil
			stored, err := a.ByHandle(t.Context(), a.name)
			require.NoError(t, err)
			require.ElementsMatch(t, a.held, stored, "%s: what %s holds", what, a.name)
		}
	})
}

// TestNoInterleavingAssignsTwice races processes of three nodes for eight addresses in four blocks: they claim, borrow,
// reclaim and release all at once. After every single write nothing may be broken, nobody may be given what another
// holds, and at the end everyone still has all that he was given and the handles count exactly.
func TestNoInterleavingAssignsTwice(t *testing.T) {
	pool, nodes := aPool("p", "10.0.0.0/29", 31), []api.Object{aNode("node-a"), aNode("node-b"), aNode("node-c")}
	for name, more := range map[string][]api.Object{
		"borrowing": nil,
		"strict":    {aConfig(strict)},
		"cooling":   {aConfig(func(s *api.IPAMConfigurationSpec) { s.IPCooldownSeconds = 20 }), aReservation("10.0.0.3")},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range thorough.Rounds(50, 1500) { // the goroutines run one at a time
				interleave(t, uint64(seed), 6, append(append([]api.Object{pool}, nodes...), more...)...)
			}
		})
	}
}
