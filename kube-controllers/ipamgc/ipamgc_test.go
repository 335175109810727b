package ipamgc_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/alloc"
)

// TestLostAddressIsReleased once its node has answered, and no other, by a leader.
func TestLostAddressIsReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a")
	living, lost := w.assign("a", "c1"), w.assign("a", "c2")
	w.create(endpoint("a", "c1", living))
	foreign := w.request("a", "net.c3", map[string]string{api.OwnerNode: "a"}) // of another plugin
	warm := w.request("a", "warm-a-1", map[string]string{api.OwnerNode: "a", api.OwnerType: api.TypeWarmPool})
	c := w.collect(quick, w.guarded())
	asked := func() string {
		o, err := w.store.Get(t.Context(), api.Key{Kind: "Node", Name: "a"})
		require.NoError(t, err)
		return o.(*api.Node).Annotations[api.AnnotationEndpointsAsked]
	}
	w.eventually("the node is asked", func() bool { return asked() != "" })
	require.Len(t, w.assigned(), 4, "nothing is proven yet")
	require.True(t, w.answer("a"))
	w.eventually("the lost one is released", func() bool { return len(w.assigned()) < 4 })
	require.Equal(t, map[string]string{
		living.String(): "net.c1", foreign.String(): "net.c3", warm.String(): "warm-a-1",
	}, w.assigned())
	w.eventually("its handle is gone", func() bool { return len(w.names("IPAMHandle")) == 3 })
	require.True(t, c.log.has("releasing an address that nobody has", lost.String(), "node=a", "handle=net.c2"), c.log)
	require.False(t, w.answer("a"), "nothing more to ask")
}

// TestNodeThatIsGone leaves nothing behind: endpoints, addresses of all kinds, affinities, blocks.
func TestNodeThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a", "b")
	pod := w.assign("a", "c1")
	w.create(endpoint("a", "c1", pod))
	w.request("a", "warm-a-1", map[string]string{api.OwnerNode: "a", api.OwnerType: api.TypeWarmPool})
	_, err := w.alloc.EnsureTunnels(t.Context(), "a", map[alloc.Tunnel]netip.Addr{alloc.TunnelIPIP: {}})
	require.NoError(t, err)
	borrowed := pod.Next().Next().Next().Next()
	require.NoError(t, w.alloc.AssignIP(t.Context(), alloc.Specific{Addr: borrowed, Node: "b", Handle: "net.c9", Attributes: map[string]string{api.OwnerNode: "b"}}))
	w.collect(quick, w.guarded())
	_, err = w.store.Delete(t.Context(), api.Key{Kind: "Node", Name: "a"}, datastore.Precondition{})
	require.NoError(t, err)
	w.eventually("what it had is released", func() bool { return len(w.assigned()) == 1 && len(w.names("BlockAffinity")) == 0 })
	require.Equal(t, map[string]string{borrowed.String(): "net.c9"}, w.assigned(), "another node's")
	require.Empty(t, w.names("WorkloadEndpoint"))
	require.Equal(t, []string{"net.c9"}, w.names("IPAMHandle"))
	blocks := w.list("IPAMBlock")
	require.Len(t, blocks, 1)
	require.Nil(t, blocks[0].(*api.IPAMBlock).Spec.Affinity)
	_, err = w.alloc.ReleaseByHandle(t.Context(), "net.c9")
	require.NoError(t, err)
	require.Empty(t, w.names("IPAMBlock"), "goes with its last address")
}

// lagging is a datastore whose watches of endpoints tell nothing.
type lagging struct{ datastore.Client }

func (l lagging) Watch(ctx context.Context, kind string, opts datastore.WatchOptions) (datastore.Watcher, error) {
	if kind != "WorkloadEndpoint" {
		return l.Client.Watch(ctx, kind, opts)
	}
	events := make(chan datastore.Event)
	context.AfterFunc(ctx, func() { close(events) })
	return silent(events), nil
}

type silent chan datastore.Event

func (s silent) Events() <-chan datastore.Event { return s }
func (silent) Err() error                       { return nil }
func (silent) Stop()                            {}

// TestLooksOnceMore: what the collector believes may be old. It looks at the datastore itself before it releases anything.
func TestLooksOnceMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a", "b", "c")
	first := w.assign("a", "c1")
	late := w.assign("a", "c2")
	w.assign("b", "c3") // lost
	w.create(endpoint("a", "c1", first))
	c := w.collect(quick, lagging{w.store})
	w.eventually("the watches have begun", func() bool {
		n, err := testutil.GatherAndCount(c.metrics, "ipam_ippool_size")
		return err == nil && n == 1
	})
	w.create(endpoint("a", "c2", late)) // which the collector is not told
	w.eventually("the lost one is released", func() bool {
		w.answer("a")
		w.answer("b")
		return len(w.assigned()) == 2
	})
	require.Contains(t, w.assigned(), late.String())
	require.False(t, c.log.has("releasing", late.String()), c.log)
}

// TestDryRun tells, and does nothing.
func TestDryRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a", "b")
	lost, gone := w.assign("a", "c1"), w.assign("b", "c2")
	w.create(endpoint("b", "c2", gone))
	_, err := w.store.Delete(t.Context(), api.Key{Kind: "Node", Name: "b"}, datastore.Precondition{})
	require.NoError(t, err)
	o := quick
	o.DryRun = true
	c := w.collect(o)
	for _, what := range [][]string{
		{"dry run: releasing an address that nobody has", lost.String()},
		{"dry run: releasing an address that nobody has", gone.String()},
		{"dry run: deleting an endpoint of a node that is gone", "default/b-cni-c2-eth0"},
		{"dry run: releasing the blocks of a node that is gone", "node=b"},
	} {
		w.eventually(strings.Join(what, " "), func() bool { w.answer("a"); return c.log.has(what...) })
	}
	c.stop()
	require.Len(t, w.assigned(), 2)
	require.Len(t, w.names("WorkloadEndpoint"), 1)
	require.Len(t, w.names("BlockAffinity"), 2)
}

// TestOff: nothing is collected while the datastore is locked, or where the controller has no stanza.
func TestOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a", "b")
	w.assign("a", "c1")
	require.NoError(t, datastore.Init(t.Context(), w.store))
	change := func(key api.Key, change func(api.Object)) {
		for {
			o, err := w.store.Get(t.Context(), key)
			require.NoError(t, err)
			change(o)
			if _, err = w.store.Update(t.Context(), o); !errors.Is(err, datastore.ErrConflict) {
				require.NoError(t, err)
				return
			}
		}
	}
	info, config := api.Key{Kind: "ClusterInformation", Name: "default"}, api.Key{Kind: "KubeControllersConfiguration", Name: "default"}
	lock := func(ready bool) {
		change(info, func(o api.Object) { o.(*api.ClusterInformation).Spec.DatastoreReady = &ready })
	}
	lock(false)
	_, err := w.store.Delete(t.Context(), api.Key{Kind: "Node", Name: "a"}, datastore.Precondition{})
	require.NoError(t, err)
	c := w.collect(quick)
	seen := func() bool {
		n, err := testutil.GatherAndCount(c.metrics, "ipam_blocks")
		return err == nil && n == 1
	}
	w.eventually("it looks", seen)
	change(config, func(o api.Object) { o.(*api.KubeControllersConfiguration).Spec.Controllers.Node = nil })
	lock(true)
	w.node("c")
	w.assign("c", "c2")
	w.eventually("it looks at what was changed since", func() bool {
		n, err := testutil.GatherAndCount(c.metrics, "ipam_blocks")
		return err == nil && n == 2
	})
	require.Len(t, w.assigned(), 2)
	change(config, func(o api.Object) {
		o.(*api.KubeControllersConfiguration).Spec.Controllers.Node = api.NewKubeControllersConfiguration().Spec.Controllers.Node
	})
	w.eventually("node a is collected", func() bool { return len(w.assigned()) == 1 })
}

// TestMetrics compares all of them.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a", "b")
	w.create(&api.IPReservation{ObjectMeta: metav1.ObjectMeta{Name: "keep"}, Spec: api.IPReservationSpec{ReservedCIDRs: []string{"10.0.0.0/30"}}})
	living := w.assign("a", "c1")
	w.create(endpoint("a", "c1", living))
	w.assign("a", "c2") // missing
	w.request("a", "warm-a-1", map[string]string{api.OwnerNode: "a", api.OwnerType: api.TypeWarmPool})
	require.NoError(t, w.alloc.AssignIP(t.Context(), alloc.Specific{
		Addr: living.Next().Next().Next().Next(), Node: "b", Handle: "net.c9", Attributes: map[string]string{api.OwnerNode: "b"},
	}))
	c := w.collect(quick)
	const want = `
# HELP ipam_allocations_borrowed Addresses given to a node out of a block that is not its own.
# TYPE ipam_allocations_borrowed gauge
ipam_allocations_borrowed{ippool="p",node="b"} 1
# HELP ipam_allocations_borrowed_per_node Addresses given to a node out of blocks that are not its own.
# TYPE ipam_allocations_borrowed_per_node gauge
ipam_allocations_borrowed_per_node{node="b"} 1
# HELP ipam_allocations_gc_candidates Addresses that nothing seems to have, and that are not proven to be lost.
# TYPE ipam_allocations_gc_candidates gauge
ipam_allocations_gc_candidates{ippool="p",node="a"} 1
# HELP ipam_allocations_in_use Addresses that are given out, those of warm pools included.
# TYPE ipam_allocations_in_use gauge
ipam_allocations_in_use{ippool="p",node="a"} 3
ipam_allocations_in_use{ippool="p",node="b"} 1
# HELP ipam_allocations_per_node Addresses given to a node.
# TYPE ipam_allocations_per_node gauge
ipam_allocations_per_node{node="a"} 3
ipam_allocations_per_node{node="b"} 1
# HELP ipam_allocations_warm Addresses that a node holds ready for pods.
# TYPE ipam_allocations_warm gauge
ipam_allocations_warm{ippool="p",node="a"} 1
# HELP ipam_blocks Blocks of a node, or of nobody (no_affinity).
# TYPE ipam_blocks gauge
ipam_blocks{ippool="p",node="a"} 1
# HELP ipam_blocks_per_node Blocks of a node.
# TYPE ipam_blocks_per_node gauge
ipam_blocks_per_node{node="a"} 1
# HELP ipam_ippool_reserved Addresses of a pool that IPReservations keep from being given out.
# TYPE ipam_ippool_reserved gauge
ipam_ippool_reserved{ippool="p"} 4
# HELP ipam_ippool_size Addresses of a pool.
# TYPE ipam_ippool_size gauge
ipam_ippool_size{ippool="p"} 64
`
	var err error
	w.eventually("the metrics", func() bool {
		err = testutil.GatherAndCompare(c.metrics, strings.NewReader(want))
		return err == nil
	})
	require.NoError(t, err)
	w.eventually("one is released, and counted", func() bool {
		w.answer("a")
		return testutil.GatherAndCompare(c.metrics, strings.NewReader(`
# HELP ipam_allocations_gc_reclamations Lost addresses that were released.
# TYPE ipam_allocations_gc_reclamations counter
ipam_allocations_gc_reclamations{ippool="p",node="a"} 1
`), "ipam_allocations_gc_reclamations") == nil
	})
}

// TestSurplusBlocksAreGivenBack to whoever needs them.
func TestSurplusBlocksAreGivenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a")
	for range 9 { // one block and a bit
		w.request("a", "warm-a-1", map[string]string{api.OwnerNode: "a", api.OwnerType: api.TypeWarmPool})
	}
	require.Len(t, w.names("IPAMBlock"), 2)
	w.collect(quick)
	_, err := w.alloc.ReleaseByHandle(t.Context(), "warm-a-1")
	require.NoError(t, err)
	w.eventually("one block is given back", func() bool { return len(w.names("IPAMBlock")) == 1 && len(w.names("BlockAffinity")) == 1 })
}

// TestBesideNodesAtWork runs the collector beside nodes that make and end pods, lose releases, and report when it suits
// them. No pod ever loses its address, and in the end nothing is left but what pods have.
func TestBesideNodesAtWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a", "b", "c")
	w.collect(quick, w.guarded())
	all := map[string]map[string]netip.Addr{"a": {}, "b": {}, "c": {}} // node → pod → address; each node's its own goroutine's
	report := func(node string) {
		question := ""
		if o, err := w.store.Get(t.Context(), api.Key{Kind: "Node", Name: node}); err == nil {
			question = o.(*api.Node).Annotations[api.AnnotationEndpointsAsked]
		}
		for pod, addr := range all[node] {
			_, _ = w.store.Create(t.Context(), endpoint(node, pod, addr)) // there already, mostly
		}
		for _, o := range w.list("WorkloadEndpoint") {
			ep := o.(*api.WorkloadEndpoint)
			if _, lives := all[node][ep.Spec.ContainerID]; ep.Spec.Node == node && !lives {
				_, err := w.store.Delete(t.Context(), api.KeyOf(ep), datastore.Precondition{})
				require.NoError(t, err)
			}
		}
		if o, err := w.store.Get(t.Context(), api.Key{Kind: "Node", Name: node}); err == nil && question != "" {
			n := o.(*api.Node)
			n.Annotations[api.AnnotationEndpointsTold] = question
			_, _ = w.store.Update(t.Context(), n) // asked anew meanwhile: next time
		}
	}
	var wg sync.WaitGroup
	for i, node := range []string{"a", "b", "c"} {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(i)))
			for step := range thorough.Rounds(40, 120) {
				pods := all[node]
				switch n := r.IntN(10); {
				case n < 4 && len(pods) < 15:
					pod := strings.Repeat(node, 3) + "-" + time.Duration(step).String()
					pods[pod] = w.assign(node, pod)
				case n < 8:
					for pod, addr := range pods {
						delete(pods, pod)
						if r.IntN(2) == 0 {
							released, err := w.alloc.ReleaseByHandle(t.Context(), "net."+pod)
							require.NoError(t, err)
							require.Equal(t, []netip.Addr{addr}, released)
						}
						break
					}
				default:
					report(node)
				}
				for pod, addr := range pods {
					has, err := w.alloc.Address(t.Context(), addr)
					require.NoError(t, err, "address of pod %s", pod)
					require.Equal(t, "net."+pod, has.Handle)
				}
			}
		})
	}
	wg.Wait()
	want := map[string]string{}
	for _, pods := range all {
		for pod, addr := range pods {
			want[addr.String()] = "net." + pod
		}
	}
	w.eventually("all that is lost is collected", func() bool {
		for node := range all {
			report(node)
		}
		return len(w.assigned()) == len(want)
	})
	require.Equal(t, want, w.assigned())
}
