package alloc

import (
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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc/leak"
)

// felix is a node that makes and ends pods, loses releases, and reports.
type felix struct {
	*actor
	store *fake
	of    map[netip.Addr]string // handles of the pods
}

// handle is one that no pod has. Handles come again, as those of containers do whose ADD is repeated.
func (n *felix) handle() string {
	for i := 0; ; i++ {
		h := fmt.Sprint(n.name, ".", i)
		if !slices.Contains(slices.Collect(maps.Values(n.of)), h) {
			return h
		}
	}
}

func (n *felix) act(ctx context.Context) {
	attrs := map[string]string{api.OwnerNode: n.node, api.OwnerEndpoint: "e"}
	switch n.random.IntN(9) {
	case 0, 1, 2: // ADD
		handle := n.handle()
		got, err := n.AutoAssign(ctx, Request{Node: n.node, Family: 4, Count: 1, Handle: handle, Attributes: attrs, Use: api.UseWorkload})
		n.unexpected("assign", err, ErrBlockLimit)
		if n.random.IntN(4) == 0 { // it dies in between, and the pod is never made
			return
		}
		n.ledger.take(handle, got.Addrs)
		n.has(handle, got.Addrs)
	case 3: // reserve and settle
		handle := n.handle()
		warm := Request{Node: n.node, Family: 4, Count: 1, Handle: "warm-" + n.node + "-1", Use: api.UseWorkload, Attributes: map[string]string{api.OwnerNode: n.node, api.OwnerType: api.TypeWarmPool}}
		got, err := n.AutoAssign(ctx, warm)
		n.unexpected("reserve", err, ErrBlockLimit)
		for _, p := range got.Addrs {
			n.ledger.take(warm.Handle, got.Addrs) // lent to a pod, which only this node knows
			n.has(handle, got.Addrs)
			n.unexpected("settle", n.Reassign(ctx, p.Addr(), warm.Handle, block.Owner{Handle: handle, Attributes: attrs}))
		}
	case 4, 5, 6: // DEL
		if len(n.held) == 0 {
			return
		}
		gone := n.held[0]
		n.held = n.held[1:]
		n.ledger.give(gone.Addr())
		handle := n.of[gone.Addr()]
		delete(n.of, gone.Addr())
		if n.random.IntN(2) == 0 { // and the release is lost
			return
		}
		_, err := n.Release(ctx, block.Release{Addr: gone.Addr(), Handle: handle})
		n.unexpected("release", err)
	default:
		n.report(ctx)
	}
}

func (n *felix) has(handle string, addrs []netip.Prefix) {
	for _, p := range addrs {
		n.held = append(n.held, p)
		n.of[p.Addr()] = handle
	}
}

// report brings the stored endpoints to what there is, and answers the question that was there before.
func (n *felix) report(ctx context.Context) {
	o, err := n.store.Get(ctx, api.Key{Kind: kindNode, Name: n.node})
	n.unexpected("node", err)
	question := o.GetAnnotations()[api.AnnotationEndpointsAsked]
	l, err := n.store.List(ctx, "WorkloadEndpoint", datastore.ListOptions{NamePrefix: n.node})
	n.unexpected("endpoints", err)
	there := map[string]bool{}
	for _, o := range l.Items {
		there[o.GetName()] = true
	}
	for _, p := range n.held {
		name := n.node + "-" + p.Addr().String()
		if !there[name] {
			ep := &api.WorkloadEndpoint{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.WorkloadEndpointSpec{Node: n.node, IPNetworks: []string{p.Addr().String() + "/32"}}}
			_, err := n.store.Create(ctx, ep)
			n.unexpected("create endpoint", err)
		}
		delete(there, name)
	}
	for name := range there {
		_, err := n.store.Delete(ctx, api.Key{Kind: "WorkloadEndpoint", Name: name}, datastore.Precondition{})
		n.unexpected("delete endpoint", err)
	}
	if question == "" {
		return
	}
	now := o.(*api.Node)
	now.Annotations[api.AnnotationEndpointsTold] = question
	_, err = n.store.Update(ctx, now)
	n.unexpected("answer", err, datastore.ErrConflict)
}

// gc is the collector: it reads everything, each kind at another moment, and does what package leak says.
type gc struct {
	*Allocator
	store     *fake
	clock     *clock
	memory    leak.Memory
	random    *rand.Rand
	collected int
	errs      []error
}

func (g *gc) act(ctx context.Context) {
	s := leak.State{Nodes: map[string]*api.Node{}}
	used := map[netip.Addr]bool{}
	kinds := []string{kindNode, kindBlock, "WorkloadEndpoint"}
	g.random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] }) // watches lag as they like
	for _, kind := range kinds {
		l, err := g.store.List(ctx, kind, datastore.ListOptions{})
		g.errs = append(g.errs, err)
		for _, o := range l.Items {
			switch o := o.(type) {
			case *api.Node:
				s.Nodes[o.Name] = o
			case *api.IPAMBlock:
				b, err := block.Of(o)
				g.errs = append(g.errs, err)
				s.Blocks = append(s.Blocks, b)
			case *api.WorkloadEndpoint:
				used[netip.MustParsePrefix(o.Spec.IPNetworks[0]).Addr()] = true
			}
		}
	}
	s.Owners = leak.Reported{Nodes: s.Nodes, Endpoints: used}
	plan := g.memory.Look(s, leak.Rules{Grace: 2 * time.Minute, Fence: time.Minute, Again: time.Minute}, g.clock.Now(), func() string { return fmt.Sprint(g.random.Uint64()) })
	for name, question := range plan.Ask {
		n := s.Nodes[name]
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[api.AnnotationEndpointsAsked] = question
		if _, err := g.store.Update(ctx, n); !errors.Is(err, datastore.ErrConflict) {
			g.errs = append(g.errs, err)
		}
	}
	for _, e := range plan.Surplus {
		if err := g.ReleaseAffinity(ctx, e.Node, e.CIDR, true); !errors.Is(err, ErrNotEmpty) {
			g.errs = append(g.errs, err)
		}
	}
	if len(plan.Lost) == 0 {
		return
	}
	// Endpoints may have been read before the node's answer. So they are looked at once more, as the controller does.
	l, err := g.store.List(ctx, "WorkloadEndpoint", datastore.ListOptions{})
	g.errs = append(g.errs, err)
	for _, o := range l.Items {
		used[netip.MustParsePrefix(o.(*api.WorkloadEndpoint).Spec.IPNetworks[0]).Addr()] = true
	}
	for _, a := range plan.Lost {
		if used[a.Addr] {
			continue
		}
		unknown, err := g.Release(ctx, block.Release{Addr: a.Addr, Handle: a.Handle, Sequence: &a.Sequence})
		if _, changed := errors.AsType[*block.ConflictError](err); !changed {
			g.errs = append(g.errs, err)
		}
		if err == nil && len(unknown) == 0 {
			g.collected++
		}
	}
}

// inUse returns who has lost an address that he has: after whichever write, each address of the ledger is given out.
func (f *fake) inUse(l *ledger) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, by := range l.holder {
		given := false
		for _, obj := range all[*api.IPAMBlock](f) {
			b, err := block.Of(obj.DeepCopy())
			if err != nil {
				return err
			}
			if has, ok := b.Lookup(a); ok && !has.Cooling() {
				given = true
			}
		}
		if !given {
			return fmt.Errorf("%s has %s, which was collected", by, a)
		}
	}
	return nil
}

// TestNoInterleavingCollectsWhatIsInUse runs the collector beside three nodes that make and end pods, one datastore call at
// a time. After every single write all that pods have is given out; in the end, when all nodes have reported and the time
// has passed, nothing else is. Two collectors believe that they lead.
func TestNoInterleavingCollectsWhatIsInUse(t *testing.T) {
	collected := 0
	for seed := range uint64(thorough.Rounds(10, 500)) {
		synctest.Test(t, func(t *testing.T) {
			what := fmt.Sprintf("seed %d", seed)
			objects := []api.Object{aPool("p", "10.0.0.0/29", 31)}
			nodes := []string{"node-a", "node-b", "node-c"}
			for _, n := range nodes {
				objects = append(objects, aNode(n))
			}
			f, c := newFake(objects...), newClock()
			s := &schedule{random: rand.New(rand.NewPCG(seed, 0)), clock: c}
			f.before = s.wait
			book := &ledger{holder: map[netip.Addr]string{}}
			var broken []error
			f.check = func() { broken = append(broken, f.broken(), f.inUse(book)) }
			var collectors [2]*gc // one of them leads no more, and does not know it yet
			for i := range collectors {
				collectors[i] = &gc{Allocator: New(f, Options{Now: c.Now}), store: f, clock: c, random: rand.New(rand.NewPCG(seed, uint64(90+i)))}
			}
			var felixes []*felix
			var wg sync.WaitGroup
			run := func(name string, steps int, act func(context.Context)) {
				wg.Go(func() {
					for range steps {
						act(context.WithValue(context.Background(), actorKey{}, name))
					}
				})
			}
			for i, node := range nodes {
				n := &felix{store: f, of: map[netip.Addr]string{}, actor: &actor{
					Allocator: New(f, Options{Now: c.Now}), ledger: book, name: node, node: node, random: rand.New(rand.NewPCG(seed, uint64(i+1))),
				}}
				felixes = append(felixes, n)
				run(node, 12, n.act)
			}
			for i, g := range collectors {
				run(fmt.Sprint("collector-", i), 16, g.act)
			}
			s.run()
			wg.Wait()
			f.before = nil
			g := collectors[0]
			for range 5 { // missing, due, asked, answered, collected; and again for those that were not due
				g.act(t.Context())
				for _, n := range felixes {
					n.report(t.Context())
				}
				c.Advance(3 * time.Minute)
			}
			g.act(t.Context())
			require.NoError(t, errors.Join(broken...), what)
			require.NoError(t, errors.Join(book.errs...), what)
			for _, g := range collectors {
				collected += g.collected
				require.NoError(t, errors.Join(g.errs...), what)
			}
			living := map[string]bool{}
			for _, n := range felixes {
				require.NoError(t, errors.Join(n.errs...), what)
				for _, handle := range n.of {
					living[handle] = true
				}
			}
			for _, obj := range all[*api.IPAMBlock](f) {
				b, err := block.Of(obj)
				require.NoError(t, err)
				for a := range b.All() {
					require.True(t, living[a.Handle], "%s: %s of %s", what, a.Addr, a.Handle) // a pod's, or an earlier one's of the same handle
				}
			}
			require.Empty(t, f.surplus(), what)
		})
	}
	require.Greater(t, collected, 20, "there was something to collect")
}
