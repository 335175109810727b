//go:debug multipathtcp=0

package server_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	birdclient "github.com/muslin-net/muslin/bird/client"
	birdserver "github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// bird is a whole bird on loopback, and a client of its socket.
type bird struct {
	*birdclient.Client
	stop func()
}

func startBird(t *testing.T, config *birdv1.Config, blocks ...string) *bird {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log, dir := slog.New(slog.DiscardHandler), t.TempDir()
	var engine *gobgp.Engine
	s, err := speaker.New(log, func(events speaker.Events) (_ speaker.Engine, err error) {
		engine, err = gobgp.New(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	saved, err := birdserver.OpenSaved(dir)
	require.NoError(t, err)
	service := birdserver.New(log, &slog.LevelVar{}, s, saved, "one", "v1.2.3")
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	running.Go(func() { _ = birdserver.Serve(ctx, filepath.Join(dir, "bird.sock"), service.Register) })
	c, err := birdclient.New(filepath.Join(dir, "bird.sock"))
	require.NoError(t, err)
	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
		_ = engine.Stop()
	})
	t.Cleanup(func() { stop(); c.Close() })
	feed := s.Feed()
	for _, b := range blocks {
		feed.Announce(speaker.LocalRoute{Prefix: netip.MustParsePrefix(b)})
	}
	feed.SnapshotEnd()
	eventually(t, "bird serves", func() bool { _, err := c.Peers(t.Context(), ""); return err == nil })
	_, err = c.Apply(t.Context(), config)
	require.NoError(t, err)
	return &bird{c, stop}
}

func birdConfig(own, other netip.Addr, passive bool) *birdv1.Config {
	port := uint32(10_000 + os.Getpid()%10_000) // other processes may run this test at the same time
	return &birdv1.Config{
		Generation: 3, RouterId: own.AsSlice(), AsNumber: 64512, ListenPort: port, ListenAddresses: [][]byte{own.AsSlice()},
		Peers: []*birdv1.Peer{
			{
				Name: "Mesh_1", Type: birdv1.PeerType_PEER_TYPE_MESH, Source: "Node(n2)", Address: other.AsSlice(), Port: port,
				AsNumber: 64512, SourceAddress: own.AsSlice(), Passive: passive,
			},
			{
				Name: "Global_1", Type: birdv1.PeerType_PEER_TYPE_GLOBAL, Source: "BGPPeer(tor)", Address: []byte{127, 0, 82, 99}, Port: port,
				AsNumber: 65001, SourceAddress: own.AsSlice(),
			},
		},
		Export: &birdv1.ExportPolicy{Pools: []*birdv1.ExportPool{{Prefix: &birdv1.Prefix{Address: []byte{192, 168, 0, 0}, Length: 16}}}},
	}
}

// relay answers as confd does.
func (b *bird) relay(ctx context.Context, q client.Question, reply func([]byte) error) error {
	switch q.Method {
	case client.BirdPeers:
		body, err := b.RelayPeers(ctx, q.Request)
		if err != nil {
			return err
		}
		return reply(body)
	case client.BirdShow:
		return b.RelayShow(ctx, q.Request, reply)
	}
	return client.ErrUnserved
}

// kernel answers as felix does whose kernel has some routes.
func kernel(_ context.Context, _ client.Question, reply func([]byte) error) error {
	m := &felixv1.DumpResponse{}
	for _, text := range []string{
		"blackhole 192.168.1.0/26 proto 79", "192.168.1.5/32 dev cali123 proto 79 scope link metric 1024",
		"192.168.2.0/26 via 127.0.82.2 dev eth0 proto 79 metric 1024", "192.168.5.0/26 via 10.0.0.1 dev eth0 proto 79 metric 1024", "192.168.9.0/24 via 10.0.0.9 dev eth0 table 77 proto 79",
		"192.168.4.0/26 nexthop via 10.0.0.4 dev eth0 nexthop via 10.0.0.5 dev eth1 proto 79", "",
	} {
		m.Entries = append(m.Entries, &felixv1.DumpEntry{Section: "route", Actual: text})
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return reply(body)
}

func nodeStatus(node string, period uint32, classes ...api.StatusClass) *api.CalicoNodeStatus {
	return &api.CalicoNodeStatus{
		ObjectMeta: metav1.ObjectMeta{Name: "status-of-" + node},
		Spec:       api.CalicoNodeStatusSpec{Node: node, Classes: classes, UpdatePeriodSeconds: &period},
	}
}

func (w *world) nodeStatus(node string) *api.CalicoNodeStatus {
	o, err := w.store.Get(w.t.Context(), api.Key{Kind: "CalicoNodeStatus", Name: "status-of-" + node})
	require.NoError(w.t, err)
	return o.(*api.CalicoNodeStatus)
}

// TestNodeStatusIsKept has two replicas, a node connected to the second, real birds behind it, and follows its object.
func TestNodeStatusIsKept(t *testing.T) {
	w := newWorld(t)
	quick := func(c *server.Config) { c.ReportPatience = 100 * time.Millisecond }
	one, two := w.replica(quick), w.replica(quick)
	for _, r := range []*replica{one, two} {
		r.put("n1", 1)
		r.put("n3", 1)
	}
	a, b := netip.MustParseAddr("127.0.82.1"), netip.MustParseAddr("127.0.82.2")
	startBird(t, birdConfig(b, a, false), "192.168.2.0/26", "192.168.3.0/26", "192.168.5.0/26")
	local := startBird(t, birdConfig(a, b, true), "192.168.1.0/26")
	eventually(t, "the session is up, and routes are there", func() bool {
		s, err := local.Peers(t.Context(), "Mesh_1")
		return err == nil && s.Peers[0].Accepted == 3
	})
	confd := w.follow("n1", []string{two.address}, bgp, answering(local.relay))
	confd.first(1)
	w.follow("n1", []string{two.address}, answering(kernel)).first(1)

	_, err := w.store.Create(t.Context(), nodeStatus("n1", 1, api.StatusAgent, api.StatusBGP, api.StatusRoutes))
	require.NoError(t, err)
	_, err = w.store.Create(t.Context(), nodeStatus("n3", 1, api.StatusBGP))
	require.NoError(t, err)
	eventually(t, "a report", func() bool { return !w.nodeStatus("n1").Status.LastUpdated.IsZero() })
	got := w.nodeStatus("n1").Status
	assert.Equal(t, "Ready", got.Agent.BIRDV4.State)
	assert.Equal(t, "v1.2.3", got.Agent.BIRDV4.Version)
	assert.Equal(t, "127.0.82.1", got.Agent.BIRDV4.RouterID)
	assert.NotEmpty(t, got.Agent.BIRDV4.LastBootTime)
	assert.NotEmpty(t, got.Agent.BIRDV4.LastReconfigurationTime)
	assert.Equal(t, got.Agent.BIRDV4, got.Agent.BIRDV6)
	assert.Equal(t, [4]int{1, 1, 0, 0}, [4]int{
		got.BGP.NumberEstablishedV4, got.BGP.NumberNotEstablishedV4, got.BGP.NumberEstablishedV6, got.BGP.NumberNotEstablishedV6,
	})
	require.Len(t, got.BGP.PeersV4, 2)
	assert.Equal(t, "127.0.82.2 NodeMesh Established", got.BGP.PeersV4[0].PeerIP+" "+got.BGP.PeersV4[0].Type+" "+got.BGP.PeersV4[0].State)
	assert.Equal(t, "127.0.82.99 GlobalPeer Active", got.BGP.PeersV4[1].PeerIP+" "+got.BGP.PeersV4[1].Type+" "+got.BGP.PeersV4[1].State)
	var routes []string
	for _, r := range got.Routes.RoutesV4 {
		routes = append(routes, r.Type+" "+r.Destination+" "+r.Gateway+" "+r.Interface+" "+r.LearnedFrom.SourceType+" "+r.LearnedFrom.PeerIP)
	}
	assert.Equal(t, []string{
		"FIB 192.168.1.0/26 N/A blackhole Static ", "FIB 192.168.1.5/32 N/A cali123 Kernel ",
		"FIB 192.168.2.0/26 127.0.82.2 eth0 NodeMesh 127.0.82.2", "FIB 192.168.4.0/26 10.0.0.4 eth0 Kernel ",
		"FIB 192.168.4.0/26 10.0.0.5 eth1 Kernel ", "FIB 192.168.5.0/26 10.0.0.1 eth0 NodeMesh 127.0.82.2", "RIB 192.168.3.0/26 127.0.82.2  NodeMesh 127.0.82.2",
	}, routes)
	assert.Empty(t, got.Routes.RoutesV6)

	eventually(t, "the next report", func() bool { return w.nodeStatus("n1").Status.LastUpdated.After(got.LastUpdated.Time) })
	local.stop()
	eventually(t, "a bird that is away is not ready", func() bool { return w.nodeStatus("n1").Status.Agent.BIRDV4.State == "NotReady" })
	assert.Zero(t, w.nodeStatus("n1").Status.BGP)

	// Another class only, and then no reports any more.
	o := w.nodeStatus("n1")
	o.Spec.Classes = []api.StatusClass{api.StatusBGP}
	_, err = w.store.Update(t.Context(), o)
	for err != nil { // a report came between
		o = w.nodeStatus("n1")
		o.Spec.Classes = []api.StatusClass{api.StatusBGP}
		_, err = w.store.Update(t.Context(), o)
	}
	eventually(t, "what is not asked for goes", func() bool { return w.nodeStatus("n1").Status.Agent.BIRDV4.State == "" })
	var stopped api.Object
	for err = context.Canceled; err != nil; {
		o = w.nodeStatus("n1")
		*o.Spec.UpdatePeriodSeconds = 0
		stopped, err = w.store.Update(t.Context(), o)
	}
	// The felix of another node is connected to the first replica, its confd to none; meanwhile nothing happens to the first object.
	w.follow("n3", []string{one.address}, answering(kernel)).first(1)
	eventually(t, "a node without bird is reported", func() bool { return !w.nodeStatus("n3").Status.LastUpdated.IsZero() })
	reported := w.nodeStatus("n3").Status.LastUpdated
	eventually(t, "again", func() bool { return w.nodeStatus("n3").Status.LastUpdated.After(reported.Time) })
	require.Equal(t, stopped.GetResourceVersion(), w.nodeStatus("n1").ResourceVersion)
}
