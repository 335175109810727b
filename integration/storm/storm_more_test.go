//go:build storm || secondkernel

package storm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/integration/storm/link"
	"github.com/muslin-net/muslin/integration/storm/slope"
	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// fat is a policy of some 400 KB on the wire, which one node alone gets.
func fat(node string) *thing {
	content := func(mark uint64) api.Object {
		p := &api.GlobalNetworkPolicy{}
		p.Name = "fat-" + node
		p.Spec.Selector = "fat == '" + node + "'"
		for i := range 160 {
			r := api.Rule{Action: api.Allow}
			for j := range 250 {
				r.Source.Nets = append(r.Source.Nets, fmt.Sprintf("10.%d.%d.%d/32", mark%250, i, j))
			}
			p.Spec.Ingress = append(p.Spec.Ingress, r)
		}
		return p
	}
	return &thing{key: api.KeyOf(content(1)), content: content}
}

// fatPod is the pod that the fat policy is for.
func fatPod(node string) *thing {
	spec := api.WorkloadEndpointSpec{
		Orchestrator: api.OrchestratorKubernetes, Node: node, Pod: "fat." + node, Endpoint: "eth0",
		IPNetworks: []string{"10.255.255.1/32"}, InterfaceName: "califat", Profiles: []string{"kns." + namespaceName(0)},
	}
	content := func(uint64) api.Object {
		e := &api.WorkloadEndpoint{Spec: spec}
		e.Namespace, e.Labels = namespaceName(0), map[string]string{"fat": node}
		e.Default()
		return e
	}
	return &thing{key: api.KeyOf(content(1)), content: content}
}

// lazyClients has one client that never acknowledges and one that reads a byte a second, on nodes of their own, while megabytes
// are for them. All others must not notice, and typha's memory is bounded by what it may have under way to them.
func (s *storms) lazyClients() {
	nodes := s.World.Nodes()[len(s.Followers):]
	deaf, dull := nodes[0], nodes[1]
	h := s.World.hands[0]
	policies := []*thing{fat(deaf), fat(dull)}
	for _, t := range append([]*thing{fatPod(deaf), fatPod(dull)}, policies...) {
		require.NoError(s.t, h.put(s.ctx, t))
	}
	r := s.replicas[0]
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream := s.raw(ctx, deaf, r)
	var got atomic.Int64 // bytes of items
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			for _, b := range m.GetChunk().GetItems() {
				got.Add(int64(len(b)))
			}
		}
	}()
	narrow := link.New()
	defer narrow.Close()
	narrow.Set(link.State{BytesPerSecond: 1 << 20})
	slow, err := s.follower(dull, narrow)
	require.NoError(s.t, err)
	slow.run()
	defer slow.stop()
	require.NoError(s.t, s.until(s.ctx, "the slow client follows", func() bool { return slow.last().Synced }))
	narrow.Set(link.State{BytesPerSecond: 1})
	memory := r.metrics(s.ctx)["process_resident_memory_bytes"]
	before := s.marks()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 14 {
			for _, t := range policies {
				if h.put(ctx, t) != nil {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	<-done
	require.NoError(s.t, s.until(s.ctx, "typha tells of the client that does not acknowledge", func() bool {
		return r.metrics(s.ctx)["typha_clients_behind"] >= 1
	}))
	s.t.Logf("%d bytes went to the client that never acknowledges", got.Load())
	assert.LessOrEqual(s.t, got.Load(), int64(4<<20), "more than the window was sent")
	grown := r.metrics(s.ctx)["process_resident_memory_bytes"] - memory
	s.t.Logf("resident memory of %s grew by %.0f MB", r.Name, grown/1e6)
	for f, n := range before {
		assert.Zero(s.t, f.broken(n), "%s lost its stream over another client's laziness", f.node)
	}
	cancel()
	narrow.Close()
	slow.stop()
	assert.Empty(s.t, slow.history.Faults())
	for _, t := range append(policies, fatPod(deaf), fatPod(dull)) {
		require.NoError(s.t, h.remove(s.ctx, t))
	}
}

// raw is a stream of a node that says nothing after its hello.
func (s *storms) raw(ctx context.Context, node string, r *Replica) typhav1.SyncService_SyncClient {
	files, err := s.issue(node, pki.Node(node))
	require.NoError(s.t, err)
	host, _, _ := strings.Cut(r.address, ":")
	config, err := rpc.ClientTLS(files, host)
	require.NoError(s.t, err)
	conn, err := rpc.Dial(r.address, config)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { conn.Close() })
	stream, err := typhav1.NewSyncServiceClient(conn).Sync(ctx)
	require.NoError(s.t, err)
	require.NoError(s.t, stream.Send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{
		Hello: &typhav1.Hello{Node: node, View: typhav1.View_VIEW_NODE},
	}}))
	return stream
}

// memory has a replica go on with less memory than it takes by itself.
func (s *storms) memory() {
	r := s.replicas[0]
	used := r.metrics(s.ctx)["process_resident_memory_bytes"]
	limit := int(used / 2)
	before := s.marks()
	s.churning(func() {
		r.End(syscall.SIGTERM)
		r.Env = []string{fmt.Sprintf("GOMEMLIMIT=%d", limit)}
		require.NoError(s.t, r.Start())
		require.NoError(s.t, s.ready(s.ctx))
		s.network.Drop()
		s.back(before)
		s.pause(3 * time.Second)
	})
	s.populate(0)
	now := r.metrics(s.ctx)["process_resident_memory_bytes"]
	s.t.Logf("limit %d MB, took %.0f MB without, takes %.0f MB", limit>>20, used/1e6, now/1e6)
	r.End(syscall.SIGTERM)
	r.Env = nil
}

// populate has clients choose anew until a replica has some. Where they are few, typha takes them for balanced while one has none.
func (s *storms) populate(replica int) {
	s.t.Helper()
	require.NoError(s.t, s.until(s.ctx, s.replicas[replica].Name+" has clients", func() bool {
		if s.load()[replica] > 0 {
			return true
		}
		before := s.marks()
		s.network.Drop()
		s.back(before)
		return s.load()[replica] > 0
	}))
}

// leaks watches typha under churn, with clients that come and go.
func (s *storms) leaks() {
	watch := map[string]slope.Allowance{
		"process_resident_memory_bytes": {Share: 0.15, Amount: 10e6},
		"go_goroutines":                 {Share: 0.05, Amount: 10},
		"process_open_fds":              {Share: 0.05, Amount: 5},
	}
	points := map[string][]slope.Point{}
	s.churning(func() {
		begin := time.Now()
		pause := max(500*time.Millisecond, *watched/600)
		for look := 1; time.Since(begin) < *watched; look++ {
			s.pause(pause)
			if look%10 == 0 {
				s.network.Drop()
				s.pause(pause)
				require.NoError(s.t, s.synced(s.ctx))
			}
			at := time.Since(begin)
			for _, r := range s.replicas {
				got := r.metrics(s.ctx)
				if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.PID())); err == nil {
					got["process_open_fds"] = float64(len(entries))
				}
				for name := range watch {
					if v, ok := got[name]; ok {
						key := r.Name + " " + name
						points[key] = append(points[key], slope.Point{At: at, Value: v})
					}
				}
			}
		}
	})
	require.Len(s.t, points, len(watch)*len(s.replicas))
	for key, list := range points {
		_, name, _ := strings.Cut(key, " ")
		trend, err := slope.Judge(key, list, watch[name])
		s.t.Logf("%s: level %.0f, %+.0f an hour, noise %.0f, %d measurements", key, trend.Level, trend.PerHour, trend.Noise, len(list))
		assert.NoError(s.t, err)
	}
}
