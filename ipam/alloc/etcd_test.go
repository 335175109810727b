package alloc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/block"
)

// etcd is a real etcd with a raw client to look at the values.
type etcd struct {
	datastore.Client
	raw *clientv3.Client
	t   testing.TB
}

func newEtcd(t testing.TB) etcd {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	c, err := s.Client(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, raw.Close()) })
	return etcd{c, raw, t}
}

// load stores those keys of Calico's data that pass.
func (e etcd) load(pass func(key string) bool) {
	for key, value := range calicoData(e.t) {
		if pass(key) {
			_, err := e.raw.Put(e.t.Context(), key, string(value))
			require.NoError(e.t, err)
		}
	}
}

// ipam returns all IPAM keys with their values in one canonical spelling, numbers exact.
func (e etcd) ipam() map[string]string {
	resp, err := e.raw.Get(e.t.Context(), "/calico/ipam/", clientv3.WithPrefix())
	require.NoError(e.t, err)
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		out[string(kv.Key)] = canonical(e.t, kv.Value)
	}
	return out
}

func canonical(t testing.TB, value []byte) string {
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.UseNumber()
	var v any
	require.NoError(t, dec.Decode(&v))
	out, err := json.Marshal(v)
	require.NoError(t, err)
	return string(out)
}

func calicoData(t testing.TB) map[string]json.RawMessage {
	text, err := os.ReadFile("testdata/calico.json")
	require.NoError(t, err)
	var data map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &data))
	return data
}

func isIPAM(key string) bool { return strings.HasPrefix(key, "/calico/ipam/") }

// TestWritesWhatCalicoWrites repeats what a Calico cluster went through (three pods on worker-1, three on worker-3, one of
// them deleted, both families) and compares every key and value with what Calico left behind.
func TestWritesWhatCalicoWrites(t *testing.T) {
	e, c := newEtcd(t), newClock()
	e.load(func(key string) bool { return !isIPAM(key) })
	a := New(e, Options{Now: c.Now})
	// When each block was made, and each pod's timestamp, are Calico's.
	made := map[string][2]int64{
		"worker-1": {1795202260163054319, 1795202260171256798},
		"worker-3": {1795202260712582111, 1795202260723469111},
	}
	for _, pod := range []struct{ node, id, timestamp string }{
		{"worker-1", "1", "2026-11-20 19:17:40.15259408 +0000 UTC"},
		{"worker-1", "2", "2026-11-20 19:17:40.281773038 +0000 UTC"},
		{"worker-1", "3", "2026-11-20 19:17:40.455609818 +0000 UTC"},
		{"worker-3", "1", "2026-11-20 19:17:40.690793333 +0000 UTC"},
		{"worker-3", "2", "of a pod that is deleted again"},
		{"worker-3", "3", "2026-11-20 19:17:41.035095284 +0000 UTC"},
	} {
		for i, family := range []int{4, 6} {
			c.now = time.Unix(0, made[pod.node][i]).UTC()
			got, err := a.AutoAssign(t.Context(), Request{
				Node: pod.node, Family: family, Count: 1, Use: api.UseWorkload,
				Handle:     "k8s-pod-network.c-" + pod.node + "-" + pod.id,
				Attributes: map[string]string{api.OwnerNode: pod.node, api.OwnerTimestamp: pod.timestamp},
			})
			require.NoError(t, err)
			require.NoError(t, got.Shortfall())
		}
	}
	released, err := a.ReleaseByHandle(t.Context(), "k8s-pod-network.c-worker-3-2")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{addr("192.168.97.193"), addr("fd00:77::8bfb:736f:425f:4a81")}, released)
	want := map[string]string{}
	for key, value := range calicoData(t) {
		if isIPAM(key) {
			want[key] = canonical(t, value)
		}
	}
	require.Equal(t, want, e.ipam())
}

// TestContinuesCalicosBlocks goes on where Calico stopped.
func TestContinuesCalicosBlocks(t *testing.T) {
	e, c := newEtcd(t), newClock()
	e.load(func(string) bool { return true })
	a := New(e, Options{Now: c.Now})
	before := e.ipam()

	got, err := a.AutoAssign(t.Context(), Request{
		Node: "worker-3", Family: 4, Count: 1, Handle: "k8s-pod-network.new", Use: api.UseWorkload,
		Attributes: map[string]string{api.OwnerNode: "worker-3"},
	})
	require.NoError(t, err)
	assert.Equal(t, []netip.Prefix{prefix("192.168.97.195/26")}, got.Addrs, "the front of the free list; the freed .193 is at its end")
	key := "/calico/ipam/v2/assignment/ipv4/block/192.168.97.192-26"
	want := before[key]
	for _, change := range [][2]string{
		{`[0,null,1,null,`, `[0,null,1,2,`},
		{`"unallocated":[3,`, `"unallocated":[`},
		{`"timestamp":"2026-11-20 19:17:41.035095284 +0000 UTC"}}]`, `"timestamp":"2026-11-20 19:17:41.035095284 +0000 UTC"}},{"handle_id":"k8s-pod-network.new","secondary":{"node":"worker-3"}}]`},
		{`"sequenceNumber":1795202260712582115`, `"sequenceNumber":1795202260712582116`},
		{`"2":1795202260712582113}`, `"2":1795202260712582113,"3":1795202260712582115}`},
	} {
		require.Contains(t, want, change[0])
		want = strings.Replace(want, change[0], change[1], 1)
	}
	after := e.ipam()
	assert.Equal(t, want, after[key])
	assert.Equal(t, `{"block":{"192.168.97.192/26":1},"deleted":false}`, after["/calico/ipam/v2/handle/k8s-pod-network.new"])

	// Calico's own pods are released, and known, by what Calico wrote.
	has, err := a.Address(t.Context(), addr("192.168.226.65"))
	require.NoError(t, err)
	assert.Equal(t, "k8s-pod-network.c-worker-1-2", has.Handle)
	released, err := a.ReleaseByHandle(t.Context(), "k8s-pod-network.c-worker-1-2")
	require.NoError(t, err)
	assert.Equal(t, []netip.Addr{addr("192.168.226.65"), addr("fd00:77::9905:f003:c7bd:fb01")}, released)
	_, err = a.ReleaseByHandle(t.Context(), "k8s-pod-network.new")
	require.NoError(t, err)
	after = e.ipam()
	assert.NotContains(t, after, "/calico/ipam/v2/handle/k8s-pod-network.c-worker-1-2")
	assert.Contains(t, after["/calico/ipam/v2/assignment/ipv4/block/192.168.226.64-26"], `"allocations":[0,null,1,null,`)
	assert.Contains(t, after["/calico/ipam/v2/assignment/ipv4/block/192.168.226.64-26"], `62,63,1]`)
	assert.Contains(t, after[key], `62,63,1,3]`)

	// Removing the node takes its name off the blocks, and leaves Calico's other pods where they are.
	require.NoError(t, a.ReleaseNode(t.Context(), "worker-1", false))
	after = e.ipam()
	assert.Contains(t, after["/calico/ipam/v2/assignment/ipv4/block/192.168.226.64-26"], `{"affinity":null,"allocations":[0,null,1,null,`)
	assert.NotContains(t, after, "/calico/ipam/v2/host/worker-1/ipv4/block/192.168.226.64-26")
	addrs, err := a.ByHandle(t.Context(), "k8s-pod-network.c-worker-1-3")
	require.NoError(t, err)
	assert.Equal(t, []netip.Prefix{prefix("192.168.226.66/26"), prefix("fd00:77::9905:f003:c7bd:fb02/122")}, addrs)
}

// TestOldSpellings reads what older Calico versions have left: an affinity without a value, a block with hostAffinity.
func TestOldSpellings(t *testing.T) {
	e := newEtcd(t)
	e.load(func(key string) bool { return !isIPAM(key) })
	for key, value := range map[string]string{
		"/calico/ipam/v2/host/worker-3/ipv4/block/192.168.0.64-26": "",
		"/calico/ipam/v2/assignment/ipv4/block/192.168.0.64-26": `{"cidr":"192.168.0.64/26","hostAffinity":"worker-3","allocations":[` +
			strings.Repeat("null,", 63) + `null],"unallocated":[7],"attributes":[]}`,
	} {
		_, err := e.raw.Put(t.Context(), key, value)
		require.NoError(t, err)
	}
	got, err := New(e, Options{}).AutoAssign(t.Context(), Request{Node: "worker-3", Family: 4, Count: 1, Use: api.UseWorkload})
	require.NoError(t, err)
	assert.Equal(t, []string{"192.168.0.71"}, texts(got.Addrs))
}

// TestManyWritersOnEtcd races real goroutines on a real etcd, without any order imposed.
func TestManyWritersOnEtcd(t *testing.T) {
	t.Parallel()
	e := newEtcd(t)
	for _, o := range []api.Object{aPool("p", "10.0.0.0/27", 29), aNode("node-a"), aNode("node-b"), aNode("node-c"), aNode("node-d")} {
		_, err := e.Create(t.Context(), o)
		require.NoError(t, err)
	}
	book := &ledger{holder: map[netip.Addr]string{}}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		name, node := fmt.Sprint("writer-", i), "node-"+string(rune('a'+i%4))
		a, r := New(e, Options{}), rand.New(rand.NewPCG(uint64(i), 9))
		wg.Go(func() {
			for range thorough.Rounds(8, 25) {
				got, err := a.AutoAssign(context.Background(), Request{
					Node: node, Family: 4, Count: 1 + r.IntN(4), Handle: name, Use: api.UseWorkload, Attributes: map[string]string{api.OwnerNode: node},
				})
				if err != nil {
					errs[i] = errors.Join(errs[i], err)
					return
				}
				book.take(name, got.Addrs)
				if r.IntN(3) == 0 {
					var back []block.Release
					for _, p := range got.Addrs {
						back = append(back, block.Release{Addr: p.Addr(), Handle: name})
						book.give(p.Addr())
					}
					_, err = a.Release(context.Background(), back...)
				} else {
					book.giveAll(name)
					_, err = a.ReleaseByHandle(context.Background(), name)
				}
				if err != nil && !errors.Is(err, datastore.ErrNotFound) {
					errs[i] = errors.Join(errs[i], err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.NoError(t, errors.Join(book.errs...))

	// The same look at the whole as in the tests without etcd.
	f := newFake()
	for _, kind := range []string{kindBlock, kindAffinity, kindHandle} {
		l, err := e.List(t.Context(), kind, datastore.ListOptions{})
		require.NoError(t, err)
		for _, o := range l.Items {
			f.put(o)
		}
	}
	require.NoError(t, f.broken())
	require.Empty(t, f.surplus())
}

// BenchmarkAssign assigns addresses, one for a pod and as many as a node holds ahead, and releases them, on a datastore in memory
// (what the allocator itself costs) and on etcd. `make bench BENCH=cni` prints it.
func BenchmarkAssign(b *testing.B) {
	objects := []api.Object{aPool("p", "10.0.0.0/16", 26), aNode("n")}
	for name, open := range map[string]func() Datastore{
		"memory": func() Datastore { return newFake(objects...) },
		"etcd": func() Datastore {
			e := newEtcd(b)
			for _, o := range objects {
				_, err := e.Create(b.Context(), o)
				require.NoError(b, err)
			}
			return e
		},
	} {
		for _, count := range []int{1, 64} {
			b.Run(fmt.Sprint(name, count), func(b *testing.B) {
				a := New(open(), Options{})
				for b.Loop() {
					got, err := a.AutoAssign(b.Context(), Request{Node: "n", Family: 4, Count: count, Handle: "h", Use: api.UseWorkload})
					require.NoError(b, err)
					require.Len(b, got.Addrs, count)
					_, err = a.ReleaseByHandle(b.Context(), "h")
					require.NoError(b, err)
				}
				b.ReportMetric(float64(count*b.N)/b.Elapsed().Seconds(), "addresses/s")
			})
		}
	}
}
