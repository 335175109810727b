package loadbalancer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/loadbalancer/assign"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// cluster is Kubernetes as far as services see one.
type cluster struct {
	mu       sync.Mutex // guards the following
	services map[string]*assign.Service
	changed  func(bool)
}

func (c *cluster) Follow(ctx context.Context, changed func(bool)) error {
	c.mu.Lock()
	c.changed = changed
	c.mu.Unlock()
	changed(true)
	<-ctx.Done()
	return ctx.Err()
}

func (c *cluster) All() map[string]*assign.Service {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.services)
}

func (c *cluster) Service(_ context.Context, namespace, name string) (*assign.Service, error) {
	return c.All()[namespace+"/"+name], nil
}

func (c *cluster) ShowService(_ context.Context, of *assign.Service, ingress []string, wrong error) error {
	if c.All()["shop/"+of.Name] == nil {
		return nil // it was deleted meanwhile
	}
	c.set(of.Name, func(s *assign.Service) {
		s.Ingress, s.Complaint = ingress, ""
		if wrong != nil {
			s.Complaint = wrong.Error()
		}
	})
	return nil
}

// set changes a service, which it makes if there is none; nil deletes it.
func (c *cluster) set(name string, change func(*assign.Service)) {
	c.mu.Lock()
	before, now := c.services["shop/"+name], &assign.Service{Namespace: "shop", Name: name, UID: name, LoadBalancer: true, Families: []int{4}}
	if before != nil {
		*now = *before
	}
	if change == nil {
		delete(c.services, "shop/"+name)
	} else {
		change(now)
		c.services["shop/"+name] = now
	}
	same := before != nil && change != nil && slices.Equal(before.Ingress, now.Ingress) && before.Complaint == now.Complaint && maps.Equal(before.Annotations, now.Annotations)
	tell := c.changed
	c.mu.Unlock()
	if tell != nil && !same {
		tell(false)
	}
}

func (c *cluster) shown(name string) *assign.Service {
	if s := c.All()["shop/"+name]; s != nil {
		return s
	}
	return &assign.Service{}
}

// TestAddresses goes through the life of addresses on a real etcd, with one who leads after another.
func TestAddresses(t *testing.T) {
	client, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	store := loop.NewStore(datastore.Validating(client), nil, slog.New(slog.DiscardHandler))
	for name, cidr := range map[string]string{"a": "10.0.0.0/29", "b": "10.1.0.0/29"} {
		p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr, BlockSize: 29, AllowedUses: []api.IPPoolUse{api.UseLoadBalancer}}}
		p.Name = name
		_, err := store.Create(t.Context(), p)
		require.NoError(t, err)
	}
	c := &cluster{services: map[string]*assign.Service{}}
	run := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, store, c, c, api.AssignAllServices, slog.New(slog.DiscardHandler)) }()
		return func() {
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
		}
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, time.Minute, 5*time.Millisecond, what)
	}
	within := func(name, cidr string) func() bool {
		return func() bool {
			list := c.shown(name).Ingress
			return len(list) == 1 && netip.MustParsePrefix(cidr).Contains(netip.MustParseAddr(list[0]))
		}
	}
	allocator := alloc.New(store, alloc.Options{})
	free := func(addr string) func() bool {
		return func() bool {
			_, err := allocator.Address(t.Context(), netip.MustParseAddr(addr))
			return errors.Is(err, alloc.ErrNotAssigned)
		}
	}
	stop := run()
	c.set("web", func(*assign.Service) {})
	soon("an address", within("web", "10.0.0.0/29"))
	first := c.shown("web").Ingress[0]
	has, err := allocator.Address(t.Context(), netip.MustParseAddr(first))
	require.NoError(t, err)
	require.Equal(t, "service shop/web", has.Whom())
	require.Equal(t, c.shown("web").Handle(), has.Handle)
	b, err := store.List(t.Context(), "IPAMBlock", datastore.ListOptions{})
	require.NoError(t, err)
	require.Equal(t, "virtual:load-balancer", *b.Items[0].(*api.IPAMBlock).Spec.Affinity)

	stop()
	stop = run()
	c.set("other", func(*assign.Service) {})
	soon("the next one leads", within("other", "10.0.0.0/29"))
	require.Equal(t, []string{first}, c.shown("web").Ingress, "what a service has it keeps")

	c.set("web", func(s *assign.Service) { s.Annotations = map[string]string{assign.AnnotationPools4: `["b"]`} })
	soon("one of the other pool", within("web", "10.1.0.0/29"))
	soon("the first is given back", free(first))

	named := map[string]string{assign.AnnotationAddresses: `["10.0.0.6"]`}
	c.set("named", func(s *assign.Service) { s.Annotations = named })
	soon("the one that was asked for", func() bool { return slices.Equal(c.shown("named").Ingress, []string{"10.0.0.6"}) })
	c.set("late", func(s *assign.Service) { s.Annotations = named })
	soon("a reason", func() bool { return c.shown("late").Complaint != "" })
	require.Empty(t, c.shown("late").Ingress)
	stop()
	c.set("named", nil) // while nobody leads
	stop = run()
	soon("it gets it when it is free", func() bool { return slices.Equal(c.shown("late").Ingress, []string{"10.0.0.6"}) })
	require.Empty(t, c.shown("late").Complaint)
	c.set("late", func(s *assign.Service) { s.Class = "other" })
	soon("another serves it now", func() bool { return len(c.shown("late").Ingress) == 0 })
	soon("its address is free", free("10.0.0.6"))
	for _, name := range []string{"web", "other"} {
		c.set(name, nil)
	}
	soon("all is given back", func() bool { // a process that is stopped may leave a handle that has nothing
		l, err := store.List(t.Context(), "IPAMBlock", datastore.ListOptions{})
		if err != nil {
			return false
		}
		for _, o := range l.Items {
			b, err := block.Of(o.(*api.IPAMBlock))
			require.NoError(t, err)
			for a := range b.All() {
				if !a.Cooling() {
					return false
				}
			}
		}
		return true
	})
	stop()
}
