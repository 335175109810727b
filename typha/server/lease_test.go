package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	felix "github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/uplink"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/ipam/lease"
	"github.com/muslin-net/muslin/ipam/lease/sim"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// mortal is a datastore that dies after some writes.
type mortal struct {
	datastore.Client
	left *atomic.Int64 // writes; the last one is done, but nobody hears of it
}

var errDead = errors.New("the datastore is gone")

func (m mortal) write(do func() (api.Object, error)) (api.Object, error) {
	switch n := m.left.Add(-1); {
	case n < 0:
		return nil, errDead
	case n == 0:
		_, _ = do()
		return nil, errDead
	}
	return do()
}

func (m mortal) Create(ctx context.Context, o api.Object) (api.Object, error) {
	return m.write(func() (api.Object, error) { return m.Client.Create(ctx, o) })
}

func (m mortal) Update(ctx context.Context, o api.Object) (api.Object, error) {
	return m.write(func() (api.Object, error) { return m.Client.Update(ctx, o) })
}

func (m mortal) Delete(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	return m.write(func() (api.Object, error) { return m.Client.Delete(ctx, key, pre) })
}

// whole is more writes than any test does.
const whole = 1 << 40

// played is a real typha on a real etcd, in the place of the simulator's model.
type played struct {
	*world
	nodes map[string]*client.Client
	alloc *alloc.Allocator
	left  *atomic.Int64
}

func newPlayed(t *testing.T) *played {
	w := newWorld(t)
	p := &played{world: w, nodes: map[string]*client.Client{}, alloc: alloc.New(w.store, alloc.Options{}), left: &atomic.Int64{}}
	p.left.Store(whole)
	r := w.typha(func(c *server.Config) {
		c.Datastore = mortal{c.Datastore, p.left}
		c.Alloc = alloc.New(c.Datastore, alloc.Options{})
	})
	w.create(pool("default", "10.0.0.0/27", func(s *api.IPPoolSpec) { s.BlockSize = 30 }))
	for _, name := range []string{"n0", "n1", "n2"} {
		p.nodes[name] = w.node(name, r.address)
	}
	return p
}

func (p *played) die(writes int) (heal func()) {
	p.left.Store(int64(writes))
	return func() { p.left.Store(whole) }
}

func (p *played) Node(name string) sim.Calls {
	return playedNode{uplink.Authority{Typha: p.nodes[name]}, p.nodes[name]}
}

func (p *played) Register(node string) {
	n := &api.Node{}
	n.Name = node
	if _, err := p.store.Create(p.t.Context(), n); !errors.Is(err, datastore.ErrExists) {
		require.NoError(p.t, err)
	}
}

func (p *played) Remove(node string) {
	_, err := p.store.Delete(p.t.Context(), api.Key{Kind: "Node", Name: node}, datastore.Precondition{})
	if !errors.Is(err, datastore.ErrNotFound) {
		require.NoError(p.t, err)
	}
	var list []block.Release
	for a := range p.all {
		if a.Owner[api.OwnerNode] == node {
			list = append(list, block.Release{Addr: a.Addr})
		}
	}
	_, err = p.alloc.Release(p.t.Context(), list...)
	require.NoError(p.t, err)
}

func (p *played) Forget(node string) {
	_, err := p.store.Delete(p.t.Context(), api.Key{Kind: "Node", Name: node}, datastore.Precondition{})
	if errors.Is(err, datastore.ErrNotFound) {
		return
	}
	require.NoError(p.t, err)
	p.Register(node)
}

// all are the addresses in use.
func (p *played) all(yield func(block.Allocation) bool) {
	l, err := p.store.List(p.t.Context(), "IPAMBlock", datastore.ListOptions{})
	require.NoError(p.t, err)
	for _, o := range l.Items {
		b, err := block.Of(o.(*api.IPAMBlock))
		require.NoError(p.t, err)
		for a := range b.All() {
			if !a.Cooling() && !yield(a) {
				return
			}
		}
	}
}

func (p *played) SetFit(fit bool) {
	for {
		o := get[*api.IPPool](p.world, "IPPool", "default")
		o.Spec.Disabled = !fit
		_, err := p.store.Update(p.t.Context(), o)
		if !errors.Is(err, datastore.ErrConflict) { // typha writes the pool's conditions
			require.NoError(p.t, err)
			return
		}
	}
}

func (p *played) SetCooldown(time.Duration) {} // the simulator's time is not the datastore's

func (p *played) Collect(handle string) {
	_, err := p.alloc.ReleaseByHandle(p.t.Context(), handle)
	if !errors.Is(err, datastore.ErrNotFound) {
		require.NoError(p.t, err)
	}
}

func (p *played) Holders() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for a := range p.all {
		out[a.Addr] = a.Handle
	}
	return out
}

type playedNode struct {
	uplink.Authority
	client *client.Client
}

func (n playedNode) Assign(ctx context.Context, handle string) (netip.Addr, error) {
	got, err := n.client.Reserve(ctx, client.Reserve{Count4: 1, Owner: &client.Owner{Handle: handle}})
	if err != nil {
		return netip.Addr{}, err
	}
	return got[0].Address, nil
}

// The courses that the simulator plays with its model, with a real typha and a real etcd that fails at any write.
func TestSimulatedNodesOnARealDatastore(t *testing.T) {
	t.Parallel()
	for seed := range thorough.Rounds(3, 30) {
		model, err := sim.Run(sim.Options{Seed: uint64(seed), Steps: sim.Steps})
		require.NoError(t, err, "seed %d with the model", seed)
		p := newPlayed(t)
		var trace []string
		w, err := sim.Run(sim.Options{Seed: uint64(seed), Steps: sim.Steps, Typha: p, Die: p.die, Trace: &trace})
		require.NoError(t, err, "seed %d\n%s", seed, strings.Join(trace, "\n"))
		require.Equal(t, model.Events, w.Events, "seed %d: another course than the model's", seed)
		t.Logf("seed %d: %d addresses lent, %d got from typha", seed, w.Lent, w.Assigned)
		counted := map[string]int{}
		for _, h := range p.Holders() {
			counted[h]++
		}
		l, err := p.store.List(t.Context(), "IPAMHandle", datastore.ListOptions{})
		require.NoError(t, err)
		for _, o := range l.Items { // they may count too many, after the deaths; never too few
			h := o.(*api.IPAMHandle)
			n := 0
			for _, in := range h.Spec.Block {
				n += in
			}
			require.GreaterOrEqual(t, n, counted[h.Name], h.Name)
			delete(counted, h.Name)
		}
		require.Empty(t, slices.Collect(func(yield func(string) bool) {
			for h := range counted {
				if !yield(h) {
					return
				}
			}
		}), "addresses without a handle's count")
	}
}

// Where a pool is for certain namespaces, each pod gets the pool that its namespace has, whatever its node holds in reserve: also when
// the pool becomes so while the reserve is full.
func TestThePoolOfANamespaceComesBeforeTheReserve(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	w.create(pool("a-prod", "10.1.0.0/16", func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseWorkload} }))
	w.create(pool("b-default", "10.2.0.0/16"))
	w.create(pool("six", "fd00:77::/64"))
	for _, env := range []string{"prod", "test"} {
		p := &api.Profile{Spec: api.ProfileSpec{LabelsToApply: map[string]string{"pcns.env": env}}}
		p.Name = "kns." + env
		w.create(p)
	}
	n1 := w.node("n1", r.address)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("192.0.2.1/24")})
	eventually(t, "typha knows all this", func() bool {
		now := r.state.Snapshot()
		return now.Len("IPPool") == 3 && now.Get(api.Key{Kind: "Profile", Name: "kns.test"}) != nil && now.Node("n1") != nil
	})
	log, dir := slog.New(slog.DiscardHandler), t.TempDir()
	held, err := lease.Open(lease.Config{
		Dir: dir, Witness: filepath.Join(dir, "witness"), Terms: lease.DefaultTerms(), Typha: uplink.Authority{Typha: n1}, Log: log,
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- held.Run(ctx) }()
	defer func() {
		cancel()
		require.NoError(t, errors.Join(<-ended, held.Close()))
	}()
	remote := &assigning{Client: n1}
	reserve := uplink.NewReserve(held, uplink.IPAM{Typha: remote}, log)
	pods := 0
	start := func(want felix.Want) netip.Addr {
		t.Helper()
		pods++
		want.Handle = fmt.Sprint("net.c", pods)
		got, _, err := reserve.Assign(t.Context(), want)
		require.NoError(t, err)
		return got[0]
	}
	prod, other, six := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:77::/64")
	warm := func(of netip.Prefix) (n int) {
		for a, slot := range held.Slots() {
			if slot.Phase == lease.Warm && of.Contains(a) {
				n++
			}
		}
		return n
	}
	start(felix.Want{Namespace: "prod", IPv4: true})
	start(felix.Want{Namespace: "prod", IPv6: true})
	eventually(t, "the reserve is filled", func() bool { return warm(prod) > 0 && warm(six) > 0 })
	before := remote.assigns.Load()
	for _, namespace := range []string{"prod", "test"} {
		require.True(t, prod.Contains(start(felix.Want{Namespace: namespace, IPv4: true})))
	}
	require.Equal(t, before, remote.assigns.Load(), "where no pool is for namespaces, nobody is asked")

	modify(w, "IPPool", "a-prod", func(p *api.IPPool) { p.Spec.NamespaceSelector = "env == 'prod'" })
	eventually(t, "what is in reserve goes back", func() bool {
		held.Ask()
		return warm(prod) == 0
	})
	for range 3 {
		for namespace, of := range map[string]netip.Prefix{"prod": prod, "test": other} {
			got := start(felix.Want{Namespace: namespace, IPv4: true})
			require.True(t, of.Contains(got), "a pod of %s has %s", namespace, got)
		}
	}
	require.Zero(t, warm(prod)+warm(other), "nothing is held of which nobody knows for which pods it is")

	before = remote.assigns.Load()
	require.True(t, six.Contains(start(felix.Want{Namespace: "test", IPv6: true})))
	require.Equal(t, before, remote.assigns.Load(), "the other family has nothing to do with it")
	require.True(t, other.Contains(start(felix.Want{Namespace: "prod", IPv4: true, Pools4: []string{"b-default"}})))
	eventually(t, "pods that name a pool have their reserve", func() bool { return warm(other) > 0 })
}

// assigning counts the requests for pods' addresses.
type assigning struct {
	*client.Client
	assigns atomic.Int64
}

func (a *assigning) Reserve(ctx context.Context, r client.Reserve) ([]client.Reservation, error) {
	a.assigns.Add(1)
	return a.Client.Reserve(ctx, r)
}
