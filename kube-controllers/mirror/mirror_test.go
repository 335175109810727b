package mirror

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// table is what Kubernetes has of a kind.
type table[T any] struct {
	mu      sync.Mutex // guards the following
	all     map[string]*T
	changed func(bool)
}

func (c *table[T]) Follow(ctx context.Context, changed func(bool)) error {
	c.mu.Lock()
	c.changed = changed
	c.mu.Unlock()
	changed(true)
	<-ctx.Done()
	return ctx.Err()
}

func (c *table[T]) All() map[string]*T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.all)
}

func (c *table[T]) set(name string, o *T) {
	c.mu.Lock()
	if c.all[name] = o; o == nil {
		delete(c.all, name)
	}
	tell := c.changed
	c.mu.Unlock()
	if tell != nil {
		tell(false)
	}
}

func profile(name, team string) *api.Profile {
	p := &api.Profile{Spec: api.ProfileSpec{LabelsToApply: map[string]string{"pcns.team": team}}}
	p.Name = name
	return p
}

// TestMirrors keeps profiles and labels of endpoints in a real etcd. One object that is not valid is in nobody's way.
func TestMirrors(t *testing.T) {
	client, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	store := loop.NewStore(datastore.Validating(client), nil, slog.New(slog.DiscardHandler))
	create := func(o api.Object) {
		t.Helper()
		_, err := store.Create(t.Context(), o)
		require.NoError(t, err)
	}
	create(profile("kns.stale", "x"))
	create(profile("mine", "x"))
	ep := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: "n", Pod: "web", Endpoint: "eth0", InterfaceName: "cali1", MAC: "ee:ee:ee:ee:ee:ee"}}
	ep.Namespace, ep.Labels = "shop", map[string]string{"app": "old"}
	ep.Default()
	create(ep)

	spaces := &table[api.Profile]{all: map[string]*api.Profile{"shop": profile("kns.shop", "a"), "bad": profile("kns.bad", "not a label value!")}}
	pods := &table[map[string]string]{all: map[string]*map[string]string{"shop/web": {"app": "web"}, "shop/none": {"app": "x"}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	log := slog.New(slog.DiscardHandler)
	go func() { done <- Profiles("namespace", "kns.", spaces).Run(ctx, store, time.Minute, log) }()
	go func() { done <- EndpointLabels(pods).Run(ctx, store, time.Minute, log) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.ErrorIs(t, <-done, context.Canceled)
	})
	stored := func() map[string]string {
		l, err := store.List(t.Context(), "Profile", datastore.ListOptions{})
		require.NoError(t, err)
		out := map[string]string{}
		for _, o := range l.Items {
			if o.GetName() != api.ProfileDefaultAllow {
				out[o.GetName()] = o.(*api.Profile).Spec.LabelsToApply["pcns.team"]
			}
		}
		return out
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, time.Minute, 5*time.Millisecond, what)
	}
	soon("what is wanted", func() bool { return maps.Equal(stored(), map[string]string{"kns.shop": "a", "mine": "x"}) })
	spaces.set("shop", profile("kns.shop", "b"))
	spaces.set("new", profile("kns.new", "c"))
	soon("changes", func() bool {
		return maps.Equal(stored(), map[string]string{"kns.shop": "b", "kns.new": "c", "mine": "x"})
	})
	spaces.set("shop", nil)
	soon("what is gone", func() bool { return maps.Equal(stored(), map[string]string{"kns.new": "c", "mine": "x"}) })

	endpoint := func() *api.WorkloadEndpoint {
		o, err := store.Get(t.Context(), api.KeyOf(ep))
		require.NoError(t, err)
		return o.(*api.WorkloadEndpoint)
	}
	soon("labels of the pod", func() bool { return maps.Equal(endpoint().Labels, map[string]string{"app": "web"}) })
	require.Equal(t, ep.Spec, endpoint().Spec)
	pods.set("shop/web", nil)
	spaces.set("last", profile("kns.last", "d"))
	soon("something later", func() bool { return stored()["kns.last"] == "d" })
	require.Equal(t, map[string]string{"app": "web"}, endpoint().Labels, "an endpoint outlives its pod until its node says otherwise")
}
