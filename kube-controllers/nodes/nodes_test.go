package nodes

import (
	"context"
	"errors"
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

// cluster is Kubernetes as far as nodes see one. What the API server says itself may be newer than what is followed.
type cluster struct {
	mu      sync.Mutex // guards the following
	nodes   map[string]*Node
	newer   map[string]bool
	changed func(bool)
}

func (c *cluster) Follow(ctx context.Context, changed func(bool)) error {
	c.mu.Lock()
	c.changed = changed
	c.mu.Unlock()
	changed(true)
	<-ctx.Done()
	return ctx.Err()
}

func (c *cluster) All() map[string]*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.nodes)
}

func (c *cluster) HasNode(_ context.Context, name string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newer[name] || c.nodes[name] != nil, nil
}

// TestANodeGoes with what is its own, on a real etcd, and no other does.
func TestANodeGoes(t *testing.T) {
	client, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	store := loop.NewStore(datastore.Validating(client), nil, slog.New(slog.DiscardHandler))
	create := func(o api.Object, name string) {
		t.Helper()
		o.SetName(name)
		_, err := store.Create(t.Context(), o)
		require.NoError(t, err)
	}
	for _, name := range []string{"gone", "here", "back"} {
		create(&api.Node{Spec: api.NodeSpec{OrchRefs: []api.OrchRef{{Orchestrator: "k8s", NodeName: name}}}}, name)
	}
	create(&api.Node{}, "outside")
	create(&api.BGPPeer{Spec: api.BGPPeerSpec{Node: "gone", PeerIP: "10.0.0.1", ASNumber: 65001}}, "peer")
	create(&api.FelixConfiguration{}, "node.gone")
	create(&api.FelixConfiguration{}, "node.here")
	create(&api.HostEndpoint{Spec: api.HostEndpointSpec{Node: "gone", InterfaceName: "eth0"}}, "host")

	c := &cluster{nodes: map[string]*Node{"here": {Labels: map[string]string{"zone": "z1"}}}, newer: map[string]bool{"back": true}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, store, c, c, Options{Labels: true, Wait: 50 * time.Millisecond}, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { cancel(); require.ErrorIs(t, <-done, context.Canceled) })
	has := func(kind, name string) bool {
		_, err := store.Get(t.Context(), api.Key{Kind: kind, Name: name})
		if !errors.Is(err, datastore.ErrNotFound) {
			require.NoError(t, err)
		}
		return err == nil
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, time.Minute, 5*time.Millisecond, what)
	}
	soon("it goes", func() bool { return !has("Node", "gone") })
	for kind, name := range map[string]string{"BGPPeer": "peer", "FelixConfiguration": "node.gone", "HostEndpoint": "host"} {
		require.False(t, has(kind, name), "what is its own goes before it")
	}
	soon("labels", func() bool {
		o, err := store.Get(t.Context(), api.Key{Kind: "Node", Name: "here"})
		return err == nil && o.(*api.Node).Labels["zone"] == "z1"
	})
	require.True(t, has("FelixConfiguration", "node.here"))
	require.True(t, has("Node", "back"), "the API server itself has it")
	require.True(t, has("Node", "outside"))
}
