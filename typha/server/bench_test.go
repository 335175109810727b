package server_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
	"github.com/muslin-net/muslin/typha/views"
)

// clusterSize is what the views of a benchmark hold: each node knows all nodes and their blocks, and has pods whose
// policies reach a number of sets.
type clusterSize struct {
	nodes, podsPerNode, policies, sets, members int
}

// fill commits the views of a cluster.
func (r *replica) fill(size clusterSize) {
	c := views.Change{Scopes: map[views.Scope]*views.Delta{}, Checkpoint: at(1), Floor: at(1), InSync: true}
	var shared []*views.Entry
	for i := range size.sets {
		s := view.IPSet{ID: fmt.Sprintf("s:%d", i), Type: view.SetNet}
		version := view.EmptySet(view.SetNet)
		for j := range size.members {
			m := view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)}), 32)}
			s.Members, version = append(s.Members, m), version.AddMember(m)
		}
		shared = append(shared, views.NewSet(s, version, nil, nil, nil))
	}
	var ids []string
	for i := range size.policies {
		p := view.Policy{ID: fmt.Sprintf("np/shop/policy-%d", i), Tier: "default", Ingress: []view.Rule{{
			Action: view.Allow, Protocol: 6,
			Source:      view.Match{Sets: []string{fmt.Sprintf("s:%d", i%size.sets)}},
			Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}}},
		}}}
		ids, shared = append(ids, p.ID), append(shared, views.NewEntry(p))
	}
	list := view.PolicyList{ID: "l:1", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: ids}}}
	shared = append(shared, views.NewEntry(list))
	for i := range size.nodes {
		name, a := nodeNumber(i), netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
		c.Common[views.NodeView].Put = append(c.Common[views.NodeView].Put,
			views.NewEntry(view.Node{Name: name, IPv4: netip.PrefixFrom(a, 16), VXLANAddr4: block.Addr(), VXLANMAC4: macOf(name)}),
			views.NewEntry(view.Route{Dst: block, Type: view.RouteBlock, Node: name, Pool: "default", Send: view.TunnelVXLAN, Receive: []view.Tunnel{view.TunnelVXLAN}}))
		d := &views.Delta{Put: shared}
		for j := range size.podsPerNode {
			d.Put = append(slices.Clip(d.Put), views.NewEntry(view.WorkloadEndpoint{
				ID: view.EndpointID{Orchestrator: "k8s", Workload: fmt.Sprintf("shop/pod-%d-%d", i, j), Endpoint: "eth0"}, UID: fmt.Sprintf("%d-%d", i, j),
				Interface: fmt.Sprintf("cali%d", j), MAC: "ee:ee:ee:ee:ee:ee", Addresses: []netip.Addr{block.Addr()}, PolicyList: list.ID,
			}))
		}
		c.Scopes[views.Scope{Node: name, View: views.NodeView}] = d
	}
	r.views.Commit(c)
}

func nodeNumber(i int) string { return fmt.Sprintf("node-%04d", i) }

// arrival tells when a client's view was whole.
type arrival struct {
	once sync.Once
	done func()
}

func (a *arrival) OnBatch(b client.Batch) {
	b.Applied()
	if b.InSync && !b.Saved {
		a.once.Do(a.done)
	}
}

func (a *arrival) OnQuery(context.Context, client.Question, func([]byte) error) error {
	return client.ErrUnserved
}

// crowd follows the views of n nodes at once and returns how long it took until the last was in sync.
func crowd(b *testing.B, address string, files []rpc.Files, path func(i int) string) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	var running, missing sync.WaitGroup
	missing.Add(len(files))
	var clients []*client.Client
	for i := range files {
		c, err := client.New(client.Config{
			Addresses: []string{address}, Files: files[i], Node: nodeNumber(i), View: client.NodeView, StatePath: path(i), SaveDelay: time.Hour, Log: quiet,
		})
		require.NoError(b, err)
		clients = append(clients, c)
	}
	begin := time.Now()
	for _, c := range clients {
		running.Go(func() {
			if err := c.Run(ctx, &arrival{done: missing.Done}); err != nil {
				b.Errorf("Run: %v", err)
			}
		})
	}
	missing.Wait()
	took := time.Since(begin)
	cancel()
	running.Wait()
	for _, c := range clients {
		require.NoError(b, c.Close())
	}
	return took
}

// BenchmarkInSync measures how long clients that come all at once wait for their views, over mutual TLS and all on this
// machine, and then how long and how much it takes when all come back with what they have. The clients' own work, which
// is most of it, is done on the same cores.
func BenchmarkInSync(b *testing.B) {
	for _, clients := range []int{200, 1000} {
		w := newWorld(b)
		r := w.replica(func(c *server.Config) { c.Log = quiet })
		r.fill(clusterSize{nodes: clients, podsPerNode: 30, policies: 50, sets: 20, members: 500})
		var files []rpc.Files
		for i := range clients {
			files = append(files, w.files(pki.Node(nodeNumber(i))))
		}
		dir := b.TempDir()
		path := func(i int) string { return fmt.Sprintf("%s/%d/view", dir, i) }
		run := func(name string, path func(int) string) {
			b.Run(fmt.Sprintf("%s%d", name, clients), func(b *testing.B) {
				var took time.Duration
				before := metric(b, r, "typha_bytes_sent_total")
				for b.Loop() {
					took += crowd(b, r.address, files, path)
				}
				b.ReportMetric(took.Seconds()/float64(b.N), "s")
				b.ReportMetric((metric(b, r, "typha_bytes_sent_total")-before)/float64(b.N*clients), "bytes/client")
			})
		}
		run("insync", func(int) string { return "" })
		crowd(b, r.address, files, path) // saves the views
		run("reconnect", path)
	}
}
