package etcd_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
)

// endpoint is an object of the size that is most common in a cluster.
func endpoint(i int) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{}
	w.SetNamespace(fmt.Sprint("ns-", i%50))
	w.SetName(fmt.Sprintf("node--%d-k8s-web--%d-eth0", i%100, i))
	w.SetLabels(map[string]string{"app": "web", "projectcalico.org/namespace": w.GetNamespace(), "projectcalico.org/orchestrator": "k8s"})
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: fmt.Sprint("node-", i%100), Pod: fmt.Sprint("web-", i), Endpoint: "eth0",
		ContainerID: fmt.Sprintf("%064d", i), InterfaceName: fmt.Sprintf("cali%011d", i),
		IPNetworks: []string{fmt.Sprintf("10.%d.%d.%d/32", i>>16&255, i>>8&255, i&255)}, Profiles: []string{"kns.shop"},
	}
	return w
}

// loaded is a datastore with n endpoints.
func loaded(b *testing.B, n int) *embedded.Client {
	b.Helper()
	c, err := embedded.Open(b.Context(), embedded.Config{Dir: b.TempDir(), Logger: quiet()})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, c.Close()) })
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{c.Endpoint()}, Logger: zap.NewNop()})
	require.NoError(b, err)
	defer raw.Close()
	var ops []clientv3.Op
	for i := range n {
		o := endpoint(i)
		value, err := api.Encode(o)
		require.NoError(b, err)
		ops = append(ops, clientv3.OpPut("/calico/resources/v3/projectcalico.org/workloadendpoints/"+o.GetNamespace()+"/"+o.GetName(), string(value)))
		if len(ops) == 100 || i == n-1 {
			_, err := raw.Txn(b.Context()).Then(ops...).Commit()
			require.NoError(b, err)
			ops = nil
		}
	}
	return c
}

// BenchmarkList reads 20,000 endpoints.
func BenchmarkList(b *testing.B) {
	const n = 20_000
	c := loaded(b, n)
	b.ReportAllocs()
	for b.Loop() {
		l, err := c.List(b.Context(), "WorkloadEndpoint", datastore.ListOptions{})
		require.NoError(b, err)
		require.Len(b, l.Items, n)
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

// BenchmarkWatch replays the creation of 20,000 endpoints.
func BenchmarkWatch(b *testing.B) {
	const n = 20_000
	c := loaded(b, n)
	b.ReportAllocs()
	for b.Loop() {
		w, err := c.Watch(b.Context(), "WorkloadEndpoint", datastore.WatchOptions{Revision: "1"})
		require.NoError(b, err)
		for range n {
			<-w.Events()
		}
		w.Stop()
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkUpdate writes one endpoint again and again.
func BenchmarkUpdate(b *testing.B) {
	c := loaded(b, 1)
	o, err := c.Get(b.Context(), api.KeyOf(endpoint(0)))
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		o, err = c.Update(b.Context(), o)
		require.NoError(b, err)
	}
}

// BenchmarkBlock reads and writes a full block, as an assignment of an address does.
func BenchmarkBlock(b *testing.B) {
	c := loaded(b, 0)
	var o api.Object = fullBlock()
	o, err := c.Create(b.Context(), o)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		o, err = c.Get(b.Context(), api.KeyOf(o))
		require.NoError(b, err)
		_, err = c.Update(b.Context(), o)
		require.NoError(b, err)
	}
}

func fullBlock() *api.IPAMBlock {
	block := &api.IPAMBlock{Spec: api.IPAMBlockSpec{CIDR: "10.9.0.0/26", Unallocated: []int{}, SequenceNumber: 1795202260163054322, SequenceNumberForAllocation: map[string]uint64{}}}
	block.SetName("10.9.0.0/26")
	owner := "host:node-a"
	block.Spec.Affinity = &owner
	for i := range 64 {
		handle := fmt.Sprintf("k8s-pod-network.%064d", i)
		block.Spec.Allocations = append(block.Spec.Allocations, &i)
		block.Spec.SequenceNumberForAllocation[fmt.Sprint(i)] = 1795202260163054322
		block.Spec.Attributes = append(block.Spec.Attributes, api.AllocationAttribute{
			HandleID: &handle,
			Owner:    map[string]string{"namespace": "shop", "node": "node-a", "pod": fmt.Sprint("web-", i), "timestamp": "2026-08-22 10:00:01.5 +0000 UTC"},
		})
	}
	return block
}
