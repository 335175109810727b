package ipamgc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc"
	"github.com/muslin-net/muslin/kube-controllers/leader"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// quick are options with which a test does not wait for long.
var quick = ipamgc.Options{Gather: 5 * time.Millisecond, Fence: 100 * time.Millisecond, LeastGrace: time.Millisecond, Retry: 100 * time.Millisecond}

// world is a real etcd with a pool, and an allocator.
type world struct {
	t     *testing.T
	store datastore.Client
	alloc *alloc.Allocator
}

func newWorld(t *testing.T, nodes ...string) world {
	c, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	w := world{t, datastore.Validating(c), nil}
	w.alloc = alloc.New(w.store, alloc.Options{})
	w.create(&api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: api.IPPoolSpec{CIDR: "10.0.0.0/26", BlockSize: 29, IPIPMode: api.IPIPAlways}})
	config := api.NewKubeControllersConfiguration()
	config.Spec.Controllers.Node.LeakGracePeriod.Duration = 200 * time.Millisecond
	w.create(config)
	for _, n := range nodes {
		w.node(n)
	}
	return w
}

func (w world) create(o api.Object) {
	w.t.Helper()
	_, err := w.store.Create(w.t.Context(), o)
	require.NoError(w.t, err)
}

func (w world) node(name string) {
	w.t.Helper()
	n := &api.Node{}
	n.Name = name
	w.create(n)
}

// assign gives a pod an address, as felix and typha do.
func (w world) assign(node, pod string) netip.Addr {
	w.t.Helper()
	return w.request(node, "net."+pod, map[string]string{api.OwnerNode: node, api.OwnerEndpoint: "cni/default/" + pod + "/eth0"})
}

func (w world) request(node, handle string, attributes map[string]string) netip.Addr {
	w.t.Helper()
	got, err := w.alloc.AssignAll(w.t.Context(), alloc.Request{
		Node: node, Family: 4, Count: 1, Handle: handle, Attributes: attributes, Use: api.UseWorkload,
	})
	require.NoError(w.t, err)
	return got[0].Addrs[0].Addr()
}

func endpoint(node, pod string, addr netip.Addr) *api.WorkloadEndpoint {
	ep := &api.WorkloadEndpoint{}
	ep.Namespace = "default"
	ep.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "cni", Node: node, ContainerID: pod, Endpoint: "eth0", InterfaceName: "cali" + pod,
		IPNetworks: []string{netip.PrefixFrom(addr, addr.BitLen()).String()}, Profiles: []string{"net"},
	}
	ep.Default()
	return ep
}

// answer has a node answer if it has been asked, and tells whether it was.
func (w world) answer(node string) bool {
	w.t.Helper()
	for {
		o, err := w.store.Get(w.t.Context(), api.Key{Kind: "Node", Name: node})
		require.NoError(w.t, err)
		n := o.(*api.Node)
		if n.Annotations[api.AnnotationEndpointsAsked] == n.Annotations[api.AnnotationEndpointsTold] {
			return false
		}
		n.Annotations[api.AnnotationEndpointsTold] = n.Annotations[api.AnnotationEndpointsAsked]
		if _, err = w.store.Update(w.t.Context(), n); err == nil {
			return true
		}
		require.ErrorIs(w.t, err, datastore.ErrConflict)
	}
}

// assigned are the addresses that are given out, with their handles.
func (w world) assigned() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, o := range w.list("IPAMBlock") {
		b, err := block.Of(o.(*api.IPAMBlock))
		require.NoError(w.t, err)
		for a := range b.All() {
			out[a.Addr.String()] = a.Handle
		}
	}
	return out
}

func (w world) list(kind string) []api.Object {
	w.t.Helper()
	l, err := w.store.List(w.t.Context(), kind, datastore.ListOptions{})
	require.NoError(w.t, err)
	return l.Items
}

func (w world) names(kind string) []string {
	out := []string{}
	for _, o := range w.list(kind) {
		out = append(out, o.GetName())
	}
	return out
}

func (w world) eventually(what string, ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, time.Minute, 5*time.Millisecond, what)
}

// collector is a running controller.
type collector struct {
	metrics *prometheus.Registry
	log     *lines
	stop    func()
}

// collect runs a controller, by default on the whole datastore, until the test ends.
func (w world) collect(o ipamgc.Options, through ...datastore.Client) collector {
	w.t.Helper()
	store := w.store
	if len(through) > 0 {
		store = through[0]
	}
	c := collector{metrics: prometheus.NewRegistry(), log: &lines{}}
	log := slog.New(slog.NewTextHandler(c.log, nil))
	controller := ipamgc.New(loop.NewStore(store, nil, log), o, log, c.metrics)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- controller.Run(ctx) }()
	var once sync.Once
	c.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				w.t.Errorf("the controller ended with %v", err)
			}
		})
	}
	w.t.Cleanup(c.stop)
	return c
}

// guarded is the datastore as a leader has it.
func (w world) guarded() datastore.Client {
	w.t.Helper()
	l := leader.New(leader.Config{
		Store: w.store, Name: "test", Identity: "test", Lease: time.Hour, Retry: time.Minute, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- l.Run(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	}()
	w.t.Cleanup(func() { cancel(); <-done })
	w.eventually("leading", l.Held)
	return l.Guard()
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		found := true
		for _, p := range parts {
			found = found && strings.Contains(line, p)
		}
		if found {
			return true
		}
	}
	return false
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.text.String())
}
