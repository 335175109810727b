package intake

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// rig is everything from a real datastore to the views, with one client on node n1.
type rig struct {
	t      *testing.T
	ctx    context.Context
	client datastore.Client
	intake *Intake
	cache  *cache.Cache
	loop   *Loop
	store  *views.Store
	sub    *views.Subscription
	wake   chan struct{}
	view   map[view.Key]view.Item
}

func start(t *testing.T, objects ...api.Object) *rig {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	quiet := slog.New(slog.DiscardHandler)
	client, err := embedded.Open(ctx, embedded.Config{Dir: t.TempDir(), Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	r := &rig{t: t, ctx: ctx, client: client, cache: cache.New(), store: views.NewStore(), wake: make(chan struct{}, 1), view: map[view.Key]view.Item{}}
	for _, o := range objects {
		r.create(o)
	}
	r.intake = New(client, r.cache, Options{Logger: quiet})
	r.loop = NewLoop(r.intake, compute.New(), r.store)
	r.sub = r.store.Subscribe(views.Scope{Node: "n1", View: views.NodeView}, nil, func() {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	})
	run, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- r.loop.Run(run) }()
	t.Cleanup(func() {
		stop()
		require.ErrorIs(t, <-done, context.Canceled)
	})
	return r
}

func (r *rig) create(o api.Object) api.Object {
	r.t.Helper()
	stored, err := r.client.Create(r.ctx, o)
	require.NoError(r.t, err)
	return stored
}

func (r *rig) update(o api.Object) api.Object {
	r.t.Helper()
	stored, err := r.client.Update(r.ctx, o)
	require.NoError(r.t, err)
	return stored
}

// until takes cuts until the client's view meets a condition.
func (r *rig) until(what string, met func() bool) {
	r.t.Helper()
	for {
		cut, _ := r.sub.Next()
		for _, e := range cut.All() {
			r.view[e.Key] = e.Item()
		}
		for _, k := range cut.Removes {
			delete(r.view, k)
		}
		if met() {
			return
		}
		select {
		case <-r.wake:
		case <-r.ctx.Done():
			r.t.Fatalf("never came: %s; the view is %v", what, r.view)
		}
	}
}

func (r *rig) endpoint(id string) (view.WorkloadEndpoint, bool) {
	it, ok := r.view[view.Key{Kind: view.KindWorkloadEndpoint, ID: id}].(view.WorkloadEndpoint)
	return it, ok
}

func workload(t *testing.T, node, container, address string) *api.WorkloadEndpoint {
	o := &api.WorkloadEndpoint{}
	o.Namespace = "default"
	o.Spec = api.WorkloadEndpointSpec{
		Node: node, Orchestrator: api.OrchestratorCNI, ContainerID: container, Endpoint: "eth0",
		InterfaceName: "cali" + container, IPNetworks: []string{address + "/32"}, Profiles: []string{"net"},
	}
	o.Default()
	require.NoError(t, o.Validate())
	return o
}

func profile() *api.Profile {
	o := &api.Profile{}
	o.Name = "net"
	o.Spec.Egress = []api.Rule{{Action: api.Allow}}
	return o
}

func deny(name, selector string) *api.GlobalNetworkPolicy {
	o := &api.GlobalNetworkPolicy{}
	o.Name = name
	o.Spec.Tier, o.Spec.Selector, o.Spec.Types = "default", selector, []api.PolicyType{api.Ingress}
	return o
}

func has(view map[view.Key]view.Item, kind view.Kind, id string) bool {
	for k := range view {
		if k.Kind == kind && k.ID == id {
			return true
		}
	}
	return false
}

// TestFromDatastoreToView follows objects from a real etcd to a client: what was there before, what comes, changes and
// goes.
func TestFromDatastoreToView(t *testing.T) {
	r := start(t, profile(), workload(t, "n1", "c1", "10.0.0.1"), workload(t, "n2", "c2", "10.0.0.2"))
	r.until("the first view", func() bool { return len(r.view) > 0 })
	_, own := r.endpoint("cni/default/c1/eth0")
	_, others := r.endpoint("cni/default/c2/eth0")
	require.True(t, own, "the first cut is whole")
	require.False(t, others)
	checkpoint, inSync := r.store.Checkpoint()
	require.True(t, inSync)
	require.NotZero(t, checkpoint["etcd"])

	policy := r.create(deny("p", "all()"))
	r.until("a policy", func() bool { return has(r.view, view.KindPolicy, "gnp/p") })
	policy.(*api.GlobalNetworkPolicy).Spec.Selector = "has(nothing)"
	r.update(policy)
	r.until("a policy that applies no more", func() bool { return !has(r.view, view.KindPolicy, "gnp/p") })

	_, err := r.client.Delete(r.ctx, api.KeyOf(profile()), datastore.Precondition{})
	require.NoError(t, err)
	r.until("an endpoint closed for want of its profile", func() bool {
		ep, _ := r.endpoint("cni/default/c1/eth0")
		return len(ep.Incomplete) == 1 && ep.Incomplete[0] == "profile net"
	})
}

// TestInvalidIsAbsent has objects that fail validation handled as if they were not there, and reported.
func TestInvalidIsAbsent(t *testing.T) {
	bad := deny("p", "has(")
	r := start(t, profile(), workload(t, "n1", "c1", "10.0.0.1"), bad)
	r.until("the first view", func() bool { return len(r.view) > 0 })
	require.False(t, has(r.view, view.KindPolicy, "gnp/p"))
	key := api.KeyOf(bad)
	require.Contains(t, r.intake.Invalid(), key)
	require.Nil(t, r.cache.Snapshot().Get(key))
	require.Equal(t, 1.0, testutil.ToFloat64(r.intake.opts.Metrics.invalid.WithLabelValues("GlobalNetworkPolicy")))

	stored, err := r.client.Get(r.ctx, key)
	require.NoError(t, err)
	good := stored.(*api.GlobalNetworkPolicy)
	good.Spec.Selector = "all()"
	stored = r.update(good)
	r.until("the corrected policy", func() bool { return has(r.view, view.KindPolicy, "gnp/p") })
	require.Empty(t, r.intake.Invalid())

	broken := stored.(*api.GlobalNetworkPolicy)
	broken.Spec.Selector = "!"
	stored = r.update(broken)
	r.until("the broken policy gone", func() bool { return !has(r.view, view.KindPolicy, "gnp/p") })

	_, err = r.client.Delete(r.ctx, api.KeyOf(stored), datastore.Precondition{})
	require.NoError(t, err)
	r.create(deny("after", "all()")) // of the same kind, so told after the deletion
	r.until("what came after", func() bool { return has(r.view, view.KindPolicy, "gnp/after") })
	require.Empty(t, r.intake.Invalid(), "what is gone is not at fault")
}

// TestInvalidPolicyFailsClosed has a policy that cannot be understood deny everything to its endpoint, in the place of what it
// says, while others go on.
func TestInvalidPolicyFailsClosed(t *testing.T) {
	bad := deny("p", "all()")
	bad.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Nets: []string{"10.0.0.0/8", "fd00::/8"}}}}
	r := start(t, profile(), workload(t, "n1", "c1", "10.0.0.1"), bad, deny("q", "all()"))
	r.until("both policies", func() bool { return has(r.view, view.KindPolicy, "gnp/p") && has(r.view, view.KindPolicy, "gnp/q") })
	got := r.view[view.Key{Kind: view.KindPolicy, ID: "gnp/p"}].(view.Policy)
	require.Equal(t, []view.Rule{{Action: view.Deny}}, got.Ingress)
	require.Contains(t, r.intake.Invalid(), api.KeyOf(bad))
}

// TestWhatChangesNothingGoesNoFurther writes an object unchanged: its revision moves, nothing else.
func TestWhatChangesNothingGoesNoFurther(t *testing.T) {
	r := start(t, profile(), workload(t, "n1", "c1", "10.0.0.1"))
	r.until("the first view", func() bool { return len(r.view) > 0 })
	stored, err := r.client.Get(r.ctx, api.KeyOf(profile()))
	require.NoError(t, err)
	r.update(stored)
	other := profile()
	other.Name = "other"
	r.create(other)
	counts := r.intake.opts.Metrics.updates
	for testutil.ToFloat64(counts.WithLabelValues("Profile", "changed")) < 2 {
		require.NoError(t, r.intake.Wake(r.ctx))
	}
	require.Equal(t, 1.0, testutil.ToFloat64(counts.WithLabelValues("Profile", "unchanged")))
	require.Equal(t, 2.0, testutil.ToFloat64(r.intake.opts.Metrics.objects.WithLabelValues("Profile")))
	require.Empty(t, r.wake, "no client was woken")
}

// TestReports has felix's reports count until the datastore shows the same.
func TestReports(t *testing.T) {
	r := start(t, profile())
	ep := workload(t, "n1", "c1", "10.0.0.1")
	broken := workload(t, "n1", "c9", "10.0.0.9")
	broken.Spec.InterfaceName = ""
	require.NoError(t, r.intake.Report(r.ctx, "n1", []*api.WorkloadEndpoint{ep, broken, workload(t, "n2", "c8", "10.0.0.8")}))
	r.until("the reported endpoint", func() bool { _, ok := r.endpoint("cni/default/c1/eth0"); return ok })
	_, ok := r.endpoint("cni/default/c9/eth0")
	require.False(t, ok, "invalid reports are left out")
	require.Equal(t, 1, r.cache.Snapshot().Len("WorkloadEndpoint"), "and so are those of other nodes")

	// The datastore has an older word: it does not count.
	old := ep.DeepCopy()
	old.Spec.IPNetworks = []string{"10.0.0.7/32"}
	stored := r.create(old).(*api.WorkloadEndpoint)
	r.create(deny("marker", "all()"))
	r.until("the marker", func() bool { return has(r.view, view.KindPolicy, "gnp/marker") })
	got, _ := r.endpoint("cni/default/c1/eth0")
	require.Equal(t, "10.0.0.1", got.Addresses[0].String())

	// It shows the report, with a label that only it knows: now it counts, and so does what it says later.
	stored.Spec = ep.Spec
	stored.Labels = map[string]string{"app": "web"}
	stored = r.update(stored).(*api.WorkloadEndpoint)
	r.create(deny("web", "app == 'web'"))
	r.until("the label", func() bool { return has(r.view, view.KindPolicy, "gnp/web") })
	require.NoError(t, r.intake.Report(r.ctx, "n1", []*api.WorkloadEndpoint{ep}), "the same again changes nothing")
	stored.Spec.MAC = "ee:ee:ee:00:00:01"
	r.update(stored)
	r.until("the change", func() bool {
		got, _ := r.endpoint("cni/default/c1/eth0")
		return got.MAC == "ee:ee:ee:00:00:01"
	})

	// A report that the datastore never shows ends with the report that leaves it out.
	second := workload(t, "n1", "c2", "10.0.0.2")
	require.NoError(t, r.intake.Report(r.ctx, "n1", []*api.WorkloadEndpoint{ep, second}))
	r.until("the second endpoint", func() bool { _, ok := r.endpoint("cni/default/c2/eth0"); return ok })
	require.NoError(t, r.intake.Report(r.ctx, "n1", nil))
	r.until("the second endpoint gone", func() bool { _, ok := r.endpoint("cni/default/c2/eth0"); return !ok })
	_, ok = r.endpoint("cni/default/c1/eth0")
	require.True(t, ok, "what is stored goes only from the datastore")
}

func TestRunEndsWithTheError(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	client, err := embedded.Open(ctx, embedded.Config{Dir: t.TempDir(), Logger: quiet})
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	broken := errors.New("cannot go on")
	in := New(client, cache.New(), Options{Logger: quiet})
	require.ErrorIs(t, in.Run(ctx, func(Batch) error { return broken }), broken)
}
