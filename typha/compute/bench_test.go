package compute

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// benchPod is the n-th pod of a large cluster: 50 a node, 100 namespaces, labels as they are in practice.
func benchPod(n int) *api.WorkloadEndpoint {
	node, ns := fmt.Sprintf("node%04d", n/50), fmt.Sprintf("ns%03d", n%100)
	o := pod(node, ns, fmt.Sprintf("pod%06d", n), netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}).String(), map[string]string{
		"app": fmt.Sprintf("app%d", n%500), "tier": []string{"web", "db", "cache"}[n%3],
		"pod-template-hash": fmt.Sprintf("%08x", n/10), "version": fmt.Sprintf("v%d", n%7),
	})
	o.Spec.Profiles = []string{"kns." + ns}
	return o
}

// benchPolicy is the n-th policy: it selects one app in one namespace, and lets in another app.
func benchPolicy(n int) *api.NetworkPolicy {
	o := &api.NetworkPolicy{}
	o.Namespace, o.Name = fmt.Sprintf("ns%03d", n%100), fmt.Sprintf("p%d", n)
	o.Spec.Selector = fmt.Sprintf("app == 'app%d'", n%500)
	o.Spec.Types = []api.PolicyType{api.Ingress}
	o.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Selector: fmt.Sprintf("app == 'app%d' && tier != 'cache%d'", (n+1)%500, n)}}}
	return o
}

func benchProfiles() (out []cache.Change) {
	for n := range 100 {
		o := &api.Profile{}
		o.Name = fmt.Sprintf("kns.ns%03d", n)
		o.Spec.LabelsToApply = map[string]string{"pcns.projectcalico.org/name": o.Name[4:]}
		o.Spec.Ingress, o.Spec.Egress = []api.Rule{{Action: api.Allow}}, []api.Rule{{Action: api.Allow}}
		out = append(out, cache.Change{Key: api.KeyOf(o), Object: o})
	}
	return out
}

// BenchmarkLoad100k computes a cluster of 2,000 nodes, 100,000 endpoints and 5,000 policies from nothing.
func BenchmarkLoad100k(b *testing.B) {
	changes := benchProfiles()
	for n := range 100_000 {
		o := benchPod(n)
		changes = append(changes, cache.Change{Key: api.KeyOf(o), Object: o})
	}
	for n := range 5000 {
		o := benchPolicy(n)
		changes = append(changes, cache.Change{Key: api.KeyOf(o), Object: o})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		e, store := New(), views.NewStore()
		e.Apply(changes...)
		store.Commit(e.Flush())
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
		runtime.KeepAlive(e)
		runtime.KeepAlive(store)
		b.StartTimer()
	}
}

// BenchmarkEndpointUpdate changes the labels of one endpoint among 10,000, while one node needs the sets of 10,000
// selectors. The endpoint leaves and joins some of them, as told by the metric.
func BenchmarkEndpointUpdate(b *testing.B) {
	for _, shape := range []struct {
		name     string
		selector func(n int) string
	}{
		{"byNamespace", func(n int) string {
			return fmt.Sprintf("tier == 'web' && projectcalico.org/namespace == 'ns%03d' && version != '%d'", n%100, n)
		}},
		{"byApp", func(n int) string { return fmt.Sprintf("app == 'app%d' && x != '%d'", n%500, n) }},
		{"loose", func(n int) string { return fmt.Sprintf("app != 'app%d' && !has(app)", n) }},
	} {
		b.Run(shape.name, func(b *testing.B) {
			e, store := New(), views.NewStore()
			e.Apply(benchProfiles()...)
			for n := range 10_000 {
				put(e, benchPod(n))
			}
			o := &api.GlobalNetworkPolicy{}
			o.Name, o.Spec.Selector = "subject", "has(subject)"
			for n := range 10_000 {
				o.Spec.Ingress = append(o.Spec.Ingress, api.Rule{Action: api.Allow, Source: api.EntityRule{Selector: shape.selector(n)}})
			}
			put(e, o, pod("node0000", "ns000", "subject", "10.255.0.1", map[string]string{"subject": ""}))
			store.Commit(e.Flush())
			if len(e.index.selections) != 10_001 {
				b.Fatalf("%d selectors", len(e.index.selections))
			}
			two := [2]*api.WorkloadEndpoint{benchPod(10_501), benchPod(10_501)}
			two[1].Labels["version"] = "other"
			two[1].Labels["app"] = "app7"
			i, sets := 0, 0
			for b.Loop() {
				i++
				put(e, two[i%2])
				change := e.Flush()
				if d := change.Scopes[nodeView("node0000")]; d != nil {
					sets += len(d.Put)
				}
				store.Commit(change)
			}
			b.ReportMetric(float64(sets)/float64(i), "sets/op")
		})
	}
}

// BenchmarkCut1000 sends one endpoint's change to the 1,000 clients that need it.
func BenchmarkCut1000(b *testing.B) {
	e, store := New(), views.NewStore()
	e.Apply(benchProfiles()...)
	for n := range 1000 {
		o := benchPod(n * 50) // one a node
		put(e, o)
	}
	gnp := &api.GlobalNetworkPolicy{}
	gnp.Name = "all"
	gnp.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Selector: "has(app)"}}}
	put(e, gnp)
	change := e.Flush()
	change.InSync = true
	store.Commit(change)
	woken := 0
	var subs []*views.Subscription
	for n := range 1000 {
		sub := store.Subscribe(nodeView(fmt.Sprintf("node%04d", n)), nil, func() { woken++ })
		sub.Next()
		subs = append(subs, sub)
	}
	i := 0
	for b.Loop() {
		i++
		put(e, pod("node0000", "ns000", "extra", netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}).String(), map[string]string{"app": "x"}))
		store.Commit(e.Flush())
		for _, sub := range subs {
			if cut, ok := sub.Next(); !ok || cut.Updates[0].Key.Kind != view.KindIPSet {
				b.Fatal("nothing to send")
			}
		}
	}
	b.ReportMetric(float64(woken)/float64(i), "woken/op")
}

// BenchmarkServiceEndpoint has an endpoint of one of 10,000 services come and go among 1,000 nodes.
func BenchmarkServiceEndpoint(b *testing.B) {
	e, store := New(), views.NewStore()
	put(e, bgpConfig([]string{"10.0.0.0/8"}, nil, nil, ""))
	for i := range 1000 {
		put(e, announcer(fmt.Sprintf("n%d", i)))
	}
	for i := range 10_000 {
		name := fmt.Sprintf("s/%d", i)
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		e.SetService(name, &Service{Type: LoadBalancer, External: TrafficLocal, ClusterIPs: []netip.Addr{a}})
		e.SetEndpointSlice(name, &EndpointSlice{Service: name, Endpoints: []Endpoint{
			{Addresses: []netip.Addr{a}, Node: fmt.Sprintf("n%d", i%1000), Ready: true},
		}})
	}
	store.Commit(e.Flush())
	for n := 0; b.Loop(); n++ {
		e.SetEndpointSlice("s/7", &EndpointSlice{Service: "s/7", Endpoints: []Endpoint{
			{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, 7})}, Node: "n7", Ready: n%2 == 0},
		}})
		change := e.Flush()
		if len(change.Scopes) > 1 {
			b.Fatal("it concerns one node")
		}
		store.Commit(change)
	}
}
