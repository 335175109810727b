package client

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/bgp"
	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/confd/render"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// scripted is a bird that fails as told, and keeps what it took.
type scripted struct {
	mu    sync.Mutex
	fail  []error
	calls []*birdv1.Config
}

func (s *scripted) took() []*birdv1.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// record is a list that several goroutines add to.
type record[T any] struct {
	mu   sync.Mutex
	list []T
}

func (r *record[T]) add(v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, v)
}

func (r *record[T]) all() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

func (s *scripted) Apply(_ context.Context, c *birdv1.Config) (bird.Applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
	if len(s.fail) > 0 {
		err := s.fail[0]
		s.fail = s.fail[1:]
		if err != nil {
			return bird.Applied{}, fmt.Errorf("bird: %w", err)
		}
	}
	return bird.Applied{Generation: c.GetGeneration()}, nil
}

func last[T any](list []T) T { return list[len(list)-1] }

func config(as uint32) render.Config {
	return render.Config{RouterID: netip.MustParseAddr("10.0.0.1"), ASNumber: as}
}

// TestPusher follows a pusher through trouble: bird is away, refuses one configuration, and forgets what it had.
func TestPusher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := status.Error(codes.Unavailable, "no bird")
		b := &scripted{fail: []error{away, away, nil, status.Error(codes.InvalidArgument, "peers[x]: bad")}}
		p := NewPusher(slog.New(slog.DiscardHandler), Muslin{b}, "")
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		var reports record[error]
		go func() {
			defer close(ended)
			_ = p.Run(ctx, reports.add)
		}()
		var done record[string]
		p.Want(config(1), func(err error) { done.add(fmt.Sprint("first ", err)) })
		synctest.Wait()
		require.Len(t, b.took(), 1)
		require.Empty(t, done.all(), "it is not settled while bird is away")
		p.Want(config(2), func(err error) { done.add(fmt.Sprint("second ", err)) })
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"first <nil>", "second <nil>"}, done.all())
		require.Len(t, b.took(), 3)
		require.Equal(t, uint32(2), b.took()[2].GetAsNumber(), "the newest counts")
		require.Greater(t, b.took()[2].GetGeneration(), b.took()[0].GetGeneration())

		p.Want(config(3), func(err error) { done.add("third"); require.ErrorContains(t, err, "peers[x]") })
		synctest.Wait()
		require.Len(t, done.all(), 3, "a refusal settles it, too")
		require.ErrorContains(t, last(reports.all()), "peers[x]")

		calls := len(b.took())
		time.Sleep(repeatEvery + time.Second)
		synctest.Wait()
		require.Len(t, b.took(), calls+1, "it is repeated, in case bird lost it")
		require.Equal(t, b.took()[calls-1].GetGeneration(), b.took()[calls].GetGeneration())
		require.NoError(t, last(reports.all()))
		require.Len(t, done.all(), 3, "and told once")
		cancel()
		<-ended
	})
}

// TestFile keeps the file for people whole, and free of passwords.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "bird.yaml")
	p := NewPusher(slog.New(slog.DiscardHandler), Muslin{&scripted{}}, path)
	c := config(64512)
	c.Peers = []render.Peer{{Name: "Node_x", Type: render.NodeSpecific, Address: netip.MustParseAddr("10.0.0.2"), Password: "hunter2"}}
	require.NoError(t, p.writeFile(c.Text()))
	body, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(c.Text()), string(body))
	require.NotContains(t, string(body), "hunter2")
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing is left beside it")
	require.Error(t, NewPusher(slog.New(slog.DiscardHandler), Muslin{&scripted{}}, filepath.Join(path, "below")).writeFile(nil))
}

// missing names the fields of a message that are not set.
func missing(m proto.Message) string {
	var out []string
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); !m.ProtoReflect().Has(f) {
			out = append(out, string(f.Name()))
		}
	}
	return strings.Join(out, " ")
}

// TestConversion checks that every field arrives.
func TestConversion(t *testing.T) {
	prefix := netip.MustParsePrefix("192.168.0.0/16")
	community := func(s string) *bgp.Community {
		c, err := bgp.ParseCommunity(s)
		require.NoError(t, err)
		return &c
	}
	c := render.Config{
		RouterID: netip.MustParseAddr("10.0.0.1"), ASNumber: 1, ListenPort: 2, ListenAddresses: []netip.Addr{netip.MustParseAddr("::1")},
		ClusterID: netip.MustParseAddr("1.1.1.1"), LogLevel: "debug", NormalPriority4: 3, NormalPriority6: 4,
		Peers: []render.Peer{{
			Name: "n", Type: render.Mesh, Source: "s", Address: netip.MustParseAddr("10.0.0.2"), Port: 5, ASNumber: 6, LocalASNumber: 7,
			SourceAddress: netip.MustParseAddr("10.0.0.1"), Passive: true, Password: "p", TTLSecurity: 8, RestartTime: 9 * time.Second,
			KeepaliveTime: 10 * time.Second, ReflectorClient: true, NextHop: render.NextHopKeep, AllowedOwnAS: 11, Filters: []string{"f"},
			HoldTime: 19 * time.Second, LongLivedTime: 20 * time.Second, WaitingFor: "w",
			BFD: &render.BFD{MinSend: 21 * time.Millisecond, MinReceive: 22 * time.Millisecond, Multiplier: 23, Multihop: true},
		}},
		Filters: []bgp.Filter{{Name: "f", Import4: []bgp.Rule{{
			Accept: true, Prefix: prefix, Operator: bgp.NotIn, MinLength: 12, MaxLength: 13, FromRemotePeers: true, Interface: "i",
			SessionType: bgp.Internal, Community: community("1:2"), ASPrefix: []uint32{14}, Priority: 15,
			Operations: []bgp.Operation{{AddCommunity: community("3:4")}, {Prepend: []uint32{16}}, {SetPriority: 17}},
		}}}},
		Originate: []netip.Prefix{prefix}, Pools: []render.Pool{{Prefix: prefix, DisableExport: true}}, OwnBlocks: []netip.Prefix{prefix},
		Advertisements: []render.Advertisement{{Prefix: prefix, Communities: []bgp.Community{*community("5:6")}}}, ServiceRanges: []netip.Prefix{prefix},
		Unrouted: []netip.Prefix{prefix}, StaticRoutes: []render.StaticRoute{{Prefix: prefix, Gateway: netip.MustParseAddr("10.0.0.254")}},
		Warnings: []string{"w"},
	}
	got := toWire(c, 18)
	require.Equal(t, uint64(18), got.GetGeneration())
	require.Equal(t, "restart_deferral", missing(got), "the one field that is the speaker's own affair")
	p := got.GetPeers()[0]
	require.Empty(t, missing(p))
	require.Empty(t, missing(p.GetBfd()))
	require.Empty(t, missing(got.GetStaticRoutes()[0]))
	r := got.GetFilters()[0].GetImport4()[0]
	require.Empty(t, missing(r))
	require.Empty(t, missing(got.GetExport()))
	require.Equal(t, "3:4", r.GetOperations()[0].GetAddCommunity())
	require.Equal(t, []uint32{16}, r.GetOperations()[1].GetPrependAsPath().GetAsNumbers())
	require.Equal(t, uint32(17), r.GetOperations()[2].GetSetPriority())
}
