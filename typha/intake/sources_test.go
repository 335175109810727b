package intake

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// script is a source that tells what a test has it tell.
type script struct {
	services chan Told[compute.Service]
	slices   chan Told[compute.EndpointSlice]
	secrets  chan secretValue

	mu     sync.Mutex // guards wanted
	wanted []compute.SecretRef
}

func newScript() *script {
	return &script{
		services: make(chan Told[compute.Service]), slices: make(chan Told[compute.EndpointSlice]), secrets: make(chan secretValue),
	}
}

func pass[T any](ctx context.Context, from chan T, tell func(T) error) error {
	for {
		select {
		case v := <-from:
			if err := tell(v); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *script) Services(ctx context.Context, tell func(Told[compute.Service]) error) error {
	return pass(ctx, s.services, tell)
}

func (s *script) EndpointSlices(ctx context.Context, tell func(Told[compute.EndpointSlice]) error) error {
	return pass(ctx, s.slices, tell)
}

func (s *script) Run(ctx context.Context, tell func(compute.SecretRef, []byte) error) error {
	return pass(ctx, s.secrets, func(v secretValue) error { return tell(v.ref, v.value) })
}

func (s *script) Want(refs []compute.SecretRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = slices.Clone(refs)
}

func (s *script) wants() []compute.SecretRef {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

// quiet is a datastore in which every kind has what a test says, for good.
type quiet struct{ objects map[string][]api.Object }

func (q quiet) Get(context.Context, api.Key) (api.Object, error) { return nil, datastore.ErrNotFound }

func (q quiet) List(_ context.Context, kind string, _ datastore.ListOptions) (datastore.List, error) {
	return datastore.List{Items: q.objects[kind], Revision: "7"}, nil
}

func (q quiet) Watch(ctx context.Context, _ string, _ datastore.WatchOptions) (datastore.Watcher, error) {
	s := silence{make(chan datastore.Event)}
	context.AfterFunc(ctx, func() { close(s.events) })
	return s, nil
}

type silence struct{ events chan datastore.Event }

func (s silence) Events() <-chan datastore.Event { return s.events }
func (s silence) Err() error                     { return nil }
func (s silence) Stop()                          {}

// TestSources has views wait for what comes beside the datastore, and follow it.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := &api.BGPConfiguration{}
		config.Name = api.DefaultName
		config.Spec.ServiceExternalIPs = []api.ServiceIPBlock{{CIDR: "172.20.0.0/16"}}
		config.Spec.NodeMeshPassword = &api.BGPPassword{SecretKeyRef: &api.SecretKeySelector{Name: "s", Key: "k"}}
		node := &api.Node{}
		node.Name = "n1"
		node.Spec.BGP = &api.NodeBGPSpec{IPv4Address: "10.0.0.1/24"}
		data := quiet{map[string][]api.Object{"Node": {node}, "BGPConfiguration": {config}}}
		source, store := newScript(), views.NewStore()
		in := New(data, cache.New(), Options{Logger: slog.New(slog.DiscardHandler), Services: source, Secrets: source})
		l := NewLoop(in, compute.New(), store)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()

		inSync := func() bool {
			synctest.Wait()
			_, ok := store.Checkpoint()
			return ok
		}
		has := func(what string, items ...string) {
			t.Helper()
			synctest.Wait()
			var have []string
			for _, e := range store.View(views.Scope{Node: "n1", View: views.BGPView}) {
				switch it := e.Item().(type) {
				case view.Origination:
					have = append(have, it.Prefix.String())
				case view.Secret:
					have = append(have, string(it.Value))
				}
			}
			slices.Sort(have)
			require.Equal(t, items, have, what)
		}
		require.False(t, inSync(), "nothing is known of Services")
		source.services <- Told[compute.Service]{
			Changes: map[string]*compute.Service{"a/web": {
				Type: compute.ClusterIP, External: compute.TrafficLocal,
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, ExternalIPs: []netip.Addr{netip.MustParseAddr("172.20.0.1")},
			}},
			Seen: 12, Reached: 20, InSync: true,
		}
		source.slices <- Told[compute.EndpointSlice]{Reached: 20, InSync: true}
		require.False(t, inSync(), "the password has not been looked up")
		ref := compute.SecretRef{Name: "s", Key: "k"}
		require.Equal(t, []compute.SecretRef{ref}, source.wants())
		source.secrets <- secretValue{ref, []byte("one")}
		require.True(t, inSync())
		has("all at once", "172.20.0.0/16", "one")
		checkpoint, _ := store.Checkpoint()
		require.Equal(t, view.Checkpoint{"etcd": 7, "Service": 12}, checkpoint)
		require.True(t, store.Reached(view.Checkpoint{"etcd": 7, "Service": 20, "EndpointSlice": 20}))
		require.False(t, store.Reached(view.Checkpoint{"Service": 21}))

		endpoints := &compute.EndpointSlice{Service: "a/web", Endpoints: []compute.Endpoint{
			{Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, Node: "n1", Ready: true},
		}}
		source.slices <- Told[compute.EndpointSlice]{Changes: map[string]*compute.EndpointSlice{"a/1": endpoints}, Seen: 21, Reached: 21}
		has("an endpoint", "172.20.0.0/16", "172.20.0.1/32", "one")
		source.slices <- Told[compute.EndpointSlice]{Changes: map[string]*compute.EndpointSlice{"a/1": nil}, Seen: 22, Reached: 22}
		has("no endpoint", "172.20.0.0/16", "one")
		checkpoint, _ = store.Checkpoint()
		require.Equal(t, uint64(22), checkpoint["EndpointSlice"])

		source.secrets <- secretValue{ref, nil}
		time.Sleep(vanishedFor - time.Second)
		has("a secret that vanished may be back in a moment", "172.20.0.0/16", "one")
		source.secrets <- secretValue{ref, []byte("two")}
		time.Sleep(2 * vanishedFor)
		has("it was", "172.20.0.0/16", "two")
		source.secrets <- secretValue{ref, nil}
		time.Sleep(vanishedFor + time.Second)
		has("it is gone", "172.20.0.0/16")
		source.secrets <- secretValue{ref, []byte("three")}
		has("it is back", "172.20.0.0/16", "three")
		source.secrets <- secretValue{ref, nil} // is waited for when all ends
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}
