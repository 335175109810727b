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
// change of an endpoint's label, of a rule, and of which policies there are. `make bench BENCH=policy` prints it.
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
	b.Run("policy", func(b *testing.B) { // on 1,000 endpoints of all nodes
		o := benchPolicy(0)
		o.Name, o.Spec.Selector = "more", "has(app)"
		step(b, 2, func(int) {
			put(e, o)
			store.Commit(e.Flush())
			remove(e, o)
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
