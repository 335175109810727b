//go:debug multipathtcp=0

package server_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gobgpapi "github.com/osrg/gobgp/v3/api"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
	"github.com/muslin-net/muslin/internal/rpc"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// bird is a whole bird on loopback: speaker, engine, both sockets, saved state.
type bird struct {
	dir  string
	stop func()
}

func (b *bird) socket() string { return filepath.Join(b.dir, "bird.sock") }

// testLog writes to the test's log until the test ends; the engine goes on for a moment.
type testLog struct {
	mu sync.Mutex
	t  testing.TB // nil when it has ended
}

func newLog(t testing.TB) *slog.Logger {
	l := &testLog{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.t = nil
	})
	return slog.New(slog.NewTextHandler(l, nil))
}

// Write is for slog.
func (l *testLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Log(strings.TrimSuffix(string(line), "\n"))
	}
	return len(line), nil
}

func start(t *testing.T, dir, instance string) *bird {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := newLog(t)
	var engine *gobgp.Engine
	s, err := speaker.New(log, func(events speaker.Events) (_ speaker.Engine, err error) {
		engine, err = gobgp.New(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	saved, err := server.OpenSaved(dir)
	require.NoError(t, err)
	service := server.New(log, &slog.LevelVar{}, s, saved, instance, "test")
	service.Resume()
	b := &bird{dir: dir}
	group := errgroup.Group{}
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return saved.Run(ctx, log, s.Locals) })
	group.Go(func() error { return server.Serve(ctx, b.socket(), service.Register) })
	group.Go(func() error { return server.Serve(ctx, filepath.Join(dir, "gobgp.sock"), engine.RegisterAPI) })
	var once sync.Once
	b.stop = func() {
		once.Do(func() {
			cancel()
			_ = group.Wait()
			_ = engine.Stop() // another one in this process wants the port
		})
	}
	t.Cleanup(b.stop)
	return b
}

func dial(t *testing.T, b *bird) *client.Client {
	t.Helper()
	c, err := client.New(b.socket())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

var (
	addrA = netip.MustParseAddr("127.0.72.1")
	addrB = netip.MustParseAddr("127.0.72.2")
)

const port = 17180

func config(own, other netip.Addr, passive bool) *birdv1.Config {
	return &birdv1.Config{
		Generation: 7, RouterId: own.AsSlice(), AsNumber: 64512, ListenPort: port, ListenAddresses: [][]byte{own.AsSlice()},
		Peers: []*birdv1.Peer{{
			Name: "Mesh_x", Type: birdv1.PeerType_PEER_TYPE_MESH, Source: "Node(x)", Address: other.AsSlice(), Port: port,
			AsNumber: 64512, SourceAddress: own.AsSlice(), Passive: passive,
		}, {
			Name: "Mesh_y", Type: birdv1.PeerType_PEER_TYPE_MESH, Source: "Node(y)", Address: other.AsSlice(), Port: 99, AsNumber: 64512,
		}},
		Export: &birdv1.ExportPolicy{
			Pools:     []*birdv1.ExportPool{{Prefix: &birdv1.Prefix{Address: []byte{192, 168, 0, 0}, Length: 16}}},
			OwnBlocks: []*birdv1.Prefix{{Address: []byte{192, 168, 1, 0}, Length: 26}},
		},
	}
}

// felix collects what bird says.
type felix struct {
	*client.Routes
	mu     sync.Mutex
	best   map[netip.Prefix][]client.Path
	synced bool
}

func follow(t *testing.T, c *client.Client) *felix {
	t.Helper()
	f := &felix{Routes: c.Routes(newLog(t)), best: map[netip.Prefix][]client.Path{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Run(ctx, func(u client.Update) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.synced = u.Synced
			for _, b := range u.Best {
				if delete(f.best, b.Prefix); len(b.Paths) > 0 {
					f.best[b.Prefix] = b.Paths
				}
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *felix) has(p string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.best[netip.MustParsePrefix(p)]
	return ok
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 20*time.Second, 20*time.Millisecond, what)
}

// TestService runs two birds through everything that the service offers.
func TestService(t *testing.T) {
	ctx, whole := context.Background(), t
	a, b := start(t, t.TempDir(), "a1"), start(t, t.TempDir(), "b1")
	ca, cb := dial(t, a), dial(t, b)
	fa, fb := follow(t, ca), follow(t, cb)
	fa.Announce(client.LocalRoute{Prefix: netip.MustParsePrefix("192.168.1.0/26")})
	fa.Announce(client.LocalRoute{Prefix: netip.MustParsePrefix("192.168.1.5/32"), Interface: "cali1"})
	fa.Announce(client.LocalRoute{Prefix: netip.MustParsePrefix("192.168.1.6/32"), Interface: "cali2", Metric: 512})
	fa.SnapshotEnd()
	fb.SnapshotEnd()
	soon(t, "the sockets are there", func() bool {
		_, errA := ca.Peers(ctx, "")
		_, errB := cb.Peers(ctx, "")
		return errA == nil && errB == nil
	})
	got, err := ca.Apply(ctx, config(addrA, addrB, true))
	require.NoError(t, err)
	require.Equal(t, uint64(7), got.Generation)
	other := config(addrB, addrA, false)
	other.Export.OwnBlocks = nil
	_, err = cb.Apply(ctx, other)
	require.NoError(t, err)

	soon(t, "b's felix is told the block and the elevated route", func() bool { return fb.has("192.168.1.0/26") && fb.has("192.168.1.6/32") })
	require.False(t, fb.has("192.168.1.5/32"))
	soon(t, "b's felix is in step", func() bool { fb.mu.Lock(); defer fb.mu.Unlock(); return fb.synced })
	fb.mu.Lock()
	require.Equal(t, uint32(512), fb.best[netip.MustParsePrefix("192.168.1.6/32")][0].Metric)
	require.Equal(t, "Mesh_x", fb.best[netip.MustParsePrefix("192.168.1.6/32")][0].Peer)
	fb.mu.Unlock()

	t.Run("Peers", func(t *testing.T) {
		st, err := cb.Peers(ctx, "")
		require.NoError(t, err)
		require.Len(t, st.Peers, 2)
		up, shadowed := st.Peers[0], st.Peers[1]
		require.Equal(t, "Established", up.Info())
		require.Equal(t, "up", up.Protocol())
		require.Equal(t, uint64(2), up.Received)
		require.Equal(t, uint64(2), up.Accepted)
		require.Equal(t, addrB, up.LocalAddress)
		require.EqualValues(t, 64512, up.LocalAS)
		require.Zero(t, up.Flaps)
		other, err := ca.Peers(ctx, "Mesh_x")
		require.NoError(t, err)
		require.EqualValues(t, 2, other.Peers[0].Advertised)
		require.Equal(t, "in service", other.Drain)
		require.NotEmpty(t, up.History)
		require.Equal(t, "Mesh_x of Node(x)", shadowed.ShadowedBy)
		_, err = cb.Peers(ctx, "nobody")
		require.Equal(t, codes.NotFound, status.Code(err))
	})
	t.Run("Show", func(t *testing.T) {
		show := func(socket *bird, view birdv1.RouteView) map[string]string {
			conn, err := rpc.DialUnix(socket.socket())
			require.NoError(t, err)
			defer conn.Close()
			stream, err := birdv1.NewBirdServiceClient(conn).Show(ctx, &birdv1.ShowRequest{View: view, Peer: "Mesh_x"})
			require.NoError(t, err)
			out := map[string]string{}
			for {
				m, err := stream.Recv()
				if err != nil {
					require.Equal(t, "EOF", err.Error())
					return out
				}
				p, _ := netip.AddrFromSlice(m.GetPrefix().GetAddress())
				out[netip.PrefixFrom(p, int(m.GetPrefix().GetLength())).String()] = m.GetRejectedBy()
			}
		}
		both := map[string]string{"192.168.1.0/26": "", "192.168.1.6/32": ""}
		require.Equal(t, both, show(a, birdv1.RouteView_ROUTE_VIEW_ADVERTISED))
		require.Equal(t, both, show(b, birdv1.RouteView_ROUTE_VIEW_RECEIVED))
		require.Equal(t, both, show(b, birdv1.RouteView_ROUTE_VIEW_ACCEPTED))
		require.Empty(t, show(b, birdv1.RouteView_ROUTE_VIEW_REJECTED))
		require.Equal(t, both, show(b, birdv1.RouteView_ROUTE_VIEW_UNSPECIFIED))
		require.Equal(t, map[string]string{"192.168.1.5/32": "inside own block 192.168.1.0/26, which is announced instead"},
			show(a, birdv1.RouteView_ROUTE_VIEW_WITHHELD))
		require.Equal(t, map[string]string{"192.168.1.0/26": "learned from this peer", "192.168.1.6/32": "learned from this peer"},
			show(b, birdv1.RouteView_ROUTE_VIEW_WITHHELD))
	})
	t.Run("gobgp", func(t *testing.T) {
		conn, err := rpc.DialUnix(filepath.Join(b.dir, "gobgp.sock"))
		require.NoError(t, err)
		defer conn.Close()
		api := gobgpapi.NewGobgpApiClient(conn)
		peers, err := api.ListPeer(ctx, &gobgpapi.ListPeerRequest{})
		require.NoError(t, err)
		p, err := peers.Recv()
		require.NoError(t, err)
		require.Equal(t, addrA.String(), p.GetPeer().GetConf().GetNeighborAddress())
		_, err = api.DeletePeer(ctx, &gobgpapi.DeletePeerRequest{Address: addrA.String()})
		require.Equal(t, codes.Unimplemented, status.Code(err))
		_, err = api.StopBgp(ctx, &gobgpapi.StopBgpRequest{})
		require.Equal(t, codes.Unimplemented, status.Code(err))
	})
	t.Run("bad configuration", func(t *testing.T) {
		bad := config(addrB, addrA, false)
		bad.Generation = 8
		bad.Peers[0].HoldTime = nil
		bad.Peers[0].Address = []byte{1, 2, 3}
		_, err := cb.Apply(ctx, bad)
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.ErrorContains(t, err, "peers[Mesh_x].address")
		st, err := cb.Peers(ctx, "")
		require.NoError(t, err)
		require.Equal(t, uint64(7), st.Generation)
	})
	t.Run("repeat", func(t *testing.T) {
		got, err := cb.Apply(ctx, other)
		require.NoError(t, err)
		require.Empty(t, got.Added)
		require.Empty(t, got.Restarted)
	})
	t.Run("restart", func(t *testing.T) {
		info, err := os.Stat(filepath.Join(b.dir, "bird-applied.pb"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		b.stop()
		start(whole, b.dir, "b2")
		soon(t, "the saved configuration runs", func() bool {
			st, err := cb.Peers(ctx, "")
			return err == nil && st.Generation == 7 && len(st.Peers) == 2 && st.Peers[0].State == client.Established
		})
		soon(t, "felix has its routes", func() bool { return fb.has("192.168.1.0/26") && fb.has("192.168.1.6/32") })
	})
	t.Run("Watch", func(t *testing.T) {
		soon(t, "a sees the session, too", func() bool {
			st, err := ca.Peers(ctx, "Mesh_x")
			return err == nil && st.Peers[0].State == client.Established
		})
		conn, err := rpc.DialUnix(a.socket())
		require.NoError(t, err)
		defer conn.Close()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := birdv1.NewBirdServiceClient(conn).Watch(ctx, &birdv1.WatchRequest{})
		require.NoError(t, err)
		m, err := stream.Recv()
		require.NoError(t, err)
		require.Equal(t, birdv1.SessionState_SESSION_STATE_ESTABLISHED, m.GetPeer().GetState())
		m, err = stream.Recv()
		require.NoError(t, err)
		require.True(t, m.GetSnapshotEnd())
		empty := config(addrA, addrB, true)
		empty.Generation, empty.Peers = 3, nil // less than what runs: confd has restarted, and the clock of before went ahead
		_, err = ca.Apply(ctx, empty)
		require.NoError(t, err)
		for m.GetPeer() == nil || m.GetPeer().GetState() != birdv1.SessionState_SESSION_STATE_UNSPECIFIED {
			m, err = stream.Recv()
			require.NoError(t, err, "the session is told to be gone")
		}
	})
}

// TestSavedRoutesOutliveBoth has bird restart while felix is away: its routes are announced all the same.
func TestSavedRoutesOutliveBoth(t *testing.T) {
	dir := t.TempDir()
	saved, err := server.OpenSaved(dir)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	want := []speaker.LocalRoute{{Prefix: netip.MustParsePrefix("192.168.1.0/26"), Metric: 512, Interface: "cali1"}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = saved.Run(ctx, slog.New(slog.DiscardHandler), func() []speaker.LocalRoute { return want })
	}()
	saved.Touch()
	soon(t, "the routes are on disk", func() bool {
		got, err := saved.Routes()
		return err == nil && len(got) == 1 && got[0] == want[0]
	})
	cancel()
	<-done
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bird-applied.pb"), []byte("damaged"), 0o600))
	_, err = saved.Config()
	require.ErrorContains(t, err, "damaged")
}
