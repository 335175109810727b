package reflector_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/reflector"
)

type world struct {
	t       *testing.T
	store   datastore.Client
	changes datastore.Watcher // of the BGP configuration
}

func (w world) create(o api.Object) {
	w.t.Helper()
	_, err := w.store.Create(w.t.Context(), o)
	require.NoError(w.t, err)
}

func (w world) config(change func(*api.BGPConfiguration)) *api.BGPConfiguration {
	w.t.Helper()
	for {
		o, err := w.store.Get(w.t.Context(), api.Key{Kind: "BGPConfiguration", Name: "default"})
		require.NoError(w.t, err)
		c := o.(*api.BGPConfiguration)
		if change == nil {
			return c
		}
		change(c)
		if _, err = w.store.Update(w.t.Context(), c); err == nil {
			return c
		}
		require.ErrorIs(w.t, err, datastore.ErrConflict)
	}
}

func (w world) connected(node string, is metav1.ConditionStatus) {
	w.t.Helper()
	o, err := w.store.Get(w.t.Context(), api.Key{Kind: "Node", Name: node})
	require.NoError(w.t, err)
	o.(*api.Node).Status.Conditions = []metav1.Condition{{Type: api.ConditionConnected, Status: is, Reason: "Test", LastTransitionTime: metav1.Now()}}
	_, err = w.store.Update(w.t.Context(), o)
	require.NoError(w.t, err)
}

// until waits for a reflection, beginning after the one that was waited for last.
func (w world) until(what string, ok func(*api.Reflection) bool) {
	w.t.Helper()
	var last *api.Reflection
	late := time.After(time.Minute)
	for { // none is missed, however short
		select {
		case e := <-w.changes.Events():
			config, is := e.Object.(*api.BGPConfiguration)
			if !is {
				continue
			}
			last = nil
			if s := config.Status; s != nil {
				last = s.Reflection
			}
			if ok(last) {
				return
			}
		case <-late:
			require.FailNow(w.t, "it did not come", "%s: %+v", what, last)
		}
	}
}

// TestLife follows a cluster from the mesh to reflectors, through the loss of one, and back.
func TestLife(t *testing.T) {
	c, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	w := world{t: t, store: datastore.Validating(c)}
	for i := range 6 {
		n := &api.Node{}
		n.Name, n.Labels = fmt.Sprint("n", i), map[string]string{"topology.kubernetes.io/zone": fmt.Sprint("z", i%2)}
		n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.0.0.%d/24", i+1)}
		w.create(n)
	}
	config := &api.BGPConfiguration{}
	config.Name = "default"
	w.create(config)
	w.changes, err = w.store.Watch(t.Context(), "BGPConfiguration", datastore.WatchOptions{})
	require.NoError(t, err)
	t.Cleanup(w.changes.Stop)
	lead := func() (stop func()) {
		store := loop.NewStore(w.store, nil, slog.New(slog.DiscardHandler))
		controller := reflector.New(store, reflector.Options{Overlap: 300 * time.Millisecond, Lost: 300 * time.Millisecond}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- controller.Run(ctx) }()
		return func() { cancel(); require.ErrorIs(t, <-done, context.Canceled) }
	}
	stop := lead()

	least, count := int32(6), int32(2)
	w.config(func(c *api.BGPConfiguration) {
		c.Spec.RouteReflectors = &api.RouteReflectors{Mode: api.ReflectorsAuto, MinNodes: &least, Count: &count}
	})
	w.until("they reflect while the mesh is up", func(r *api.Reflection) bool { return r != nil && r.Mesh && len(r.Reflectors) == 2 })
	stop() // in the middle, and another goes on
	middle := w.config(nil).Status.Reflection.Mesh
	began := time.Now()
	stop = lead()
	defer func() { stop() }()
	var first []string
	w.until("the mesh goes", func(r *api.Reflection) bool {
		if r != nil {
			first = r.Reflectors
		}
		return r != nil && !r.Mesh && len(r.Reflectors) == 2
	})
	if middle { // else this test rested for too long to stop it before
		require.Greater(t, time.Since(began), 200*time.Millisecond)
	}

	w.connected(first[0], metav1.ConditionFalse)
	w.until("another one besides", func(r *api.Reflection) bool { return r != nil && !r.Mesh && len(r.Reflectors) == 3 })
	w.until("in place of the lost", func(r *api.Reflection) bool {
		return r != nil && !r.Mesh && len(r.Reflectors) == 2 && !slices.Contains(r.Reflectors, first[0]) && slices.Contains(r.Reflectors, first[1])
	})
	w.connected(first[0], metav1.ConditionTrue)

	w.config(func(c *api.BGPConfiguration) { c.Spec.RouteReflectors.Mode = api.ReflectorsManual })
	w.until("the mesh is back", func(r *api.Reflection) bool { return r != nil && r.Mesh && len(r.Reflectors) == 2 })
	w.until("and no trace is left", func(r *api.Reflection) bool { return r == nil })
}
