package compute

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// BenchmarkPolicy100k is what a cluster of 2,000 nodes, 100,000 endpoints and 10,000 policies costs: from nothing, and by
// change of an endpoint's label, of a rule, of which policies there are, and of what they depend on. `make bench BENCH=policy` prints it.
func BenchmarkPolicy100k(b *testing.B) {
	changes := benchProfiles()
	add := func(o api.Object) { changes = append(changes, cache.Change{Key: api.KeyOf(o), Object: o}) }
	for n := range 100_000 {
		add(benchPod(n))
	}
	for n := range 10_000 {
		add(benchPolicy(n))
	}
	var e *Engine
	var store *views.Store
	load := func() {
		e, store = New(), views.NewStore()
		e.Apply(changes...)
		store.Commit(e.Flush())
	}
	b.Run("load", func(b *testing.B) {
		e, store = nil, nil
		before := heap()
		for b.Loop() {
			load()
		}
		perSecond(b, len(changes), "objects/s")
		b.ReportMetric((heap()-before)/1e6, "MB")
	})
	if e == nil {
		load()
	}
	step := func(b *testing.B, changes int, change func(i int)) {
		for i := 0; b.Loop(); i++ {
			change(i)
			store.Commit(e.Flush())
		}
		perSecond(b, changes, "updates/s")
	}
	b.Run("endpoint", func(b *testing.B) { // it joins and leaves sets and policies
		step(b, 1, func(i int) {
			o := benchPod(i * 37 % 100_000)
			o.Labels["app"] = fmt.Sprintf("app%d", i%500)
			put(e, o)
		})
	})
	b.Run("rule", func(b *testing.B) {
		step(b, 1, func(i int) {
			o := benchPolicy(i % 10_000)
			o.Spec.Ingress[0].Destination.NotPorts = []api.Port{api.SinglePort(uint16(1 + i%60_000))}
			tcp := api.ProtocolTCP
			o.Spec.Ingress[0].Protocol = &tcp
			put(e, o)
		})
	})
	// A policy that comes and goes, two changes.
	policy := func(name, selector string, global bool) {
		var o api.Object
		np, gnp := benchPolicy(0), &api.GlobalNetworkPolicy{}
		if np.Name, np.Spec.Selector, o = "more", selector, np; global {
			gnp.Name, gnp.Spec.NetworkPolicySpec, o = "more", np.Spec, gnp
		}
		b.Run(name, func(b *testing.B) {
			step(b, 2, func(int) {
				put(e, o)
				store.Commit(e.Flush())
				remove(e, o)
			})
		})
	}
	policy("policy", "has(app)", false)                             // on 1,000 endpoints of as many nodes; all 100,000 have the label
	policy("policyOfAll", "all()", false)                           // on the same, by nothing that is theirs
	policy("policyOfFew", "app == 'app7' && version == 'v1'", true) // on 29, of all namespaces
	policy("policyOfNew", "pod-template-hash == '00000007'", true)  // on 10, by a label that nobody asks for
	policy("policyOfNone", "!has(app)", true)                       // which takes a look at all
	b.Run("namespace", func(b *testing.B) {                         // a label for its 1,000 endpoints
		step(b, 1, func(i int) {
			o := benchProfiles()[0].Object.(*api.Profile)
			o.Spec.LabelsToApply["pcns.team"] = fmt.Sprint(i)
			put(e, o)
		})
	})
	b.Run("tier", func(b *testing.B) { // its order, with a policy on 1,000 endpoints
		o := benchPolicy(0)
		o.Name, o.Spec.Tier, o.Spec.Selector = "tiered", "more", "all()"
		put(e, o)
		step(b, 1, func(i int) {
			o, order := &api.Tier{}, float64(i)
			o.Name, o.Spec.Order = "more", &order
			put(e, o)
		})
	})
	b.Run("networkSet", func(b *testing.B) { // one of its 10,000 nets, in 20 sets
		step(b, 1, func(i int) {
			o := &api.NetworkSet{}
			o.Namespace, o.Name, o.Labels = "ns000", "nets", map[string]string{"app": "app1"}
			for n := range 10_000 {
				o.Spec.Nets = append(o.Spec.Nets, fmt.Sprintf("20.%d.%d.0/24", n>>8, n&255))
			}
			o.Spec.Nets[7] = fmt.Sprintf("21.%d.0.0/24", i%200)
			put(e, o)
		})
	})
	b.Run("address", func(b *testing.B) { // of an endpoint, in a set of all that 1,000 nodes have
		o := benchPolicy(0)
		o.Name, o.Spec.Selector, o.Spec.Ingress[0].Source = "open", "all()", api.EntityRule{Selector: "has(app)", NamespaceSelector: "all()"}
		put(e, o)
		store.Commit(e.Flush())
		step(b, 1, func(i int) {
			o := benchPod(77)
			o.Spec.IPNetworks = []string{fmt.Sprintf("11.0.0.%d/32", i%200)}
			put(e, o)
		})
	})
}

func perSecond(b *testing.B, each int, unit string) {
	b.ReportMetric(float64(each*b.N)/b.Elapsed().Seconds(), unit)
}

// heap is how many bytes are in use.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
