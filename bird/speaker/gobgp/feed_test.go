package gobgp

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// TestGobgpShowsItsPaths fails when a new version of gobgp keeps its watchers, or paths, otherwise: then all paths would come
// as protobuf again.
func TestGobgpShowsItsPaths(t *testing.T) {
	ctx := t.Context()
	s := server.NewBgpServer(server.LoggerOption(&logger{log: slog.New(slog.DiscardHandler)}))
	go s.Serve()
	f := newFeed(slog.New(slog.DiscardHandler))
	require.NoError(t, s.WatchEvent(ctx, &api.WatchEventRequest{
		Peer: &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{
			{Type: api.WatchEventRequest_Table_Filter_BEST}, {Type: api.WatchEventRequest_Table_Filter_EOR},
		}},
	}, func(r *api.WatchEventResponse) { f.tell(ctx, r) }))
	f.attach(s)
	require.True(t, f.attached, "filters can be set")
	require.NoError(t, s.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: 64512, RouterId: "127.0.90.1", ListenPort: -1, UseMultiplePaths: true}}))
	told := make(chan *bestPaths, 8)
	go f.run(ctx, func(p *bestPaths) { told <- p }, func(*api.WatchEventResponse) {})
	for _, prefix := range []string{"20.1.1.0/24", "fd00:1::/64"} {
		path, err := toPath(speaker.Announcement{Prefix: netip.MustParsePrefix(prefix), Preference: 7})
		require.NoError(t, err)
		_, err = s.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: path})
		require.NoError(t, err)
		select {
		case e := <-told:
			require.Len(t, e.MultiPathList, 1)
			got := e.MultiPathList[0][0]
			require.Equal(t, prefix, got.prefix().String())
			require.Equal(t, uint32(7), got.read().Preference)
			require.False(t, got.read().Peer.IsValid(), "an own route")
		case <-time.After(time.Minute):
			require.Fail(t, "gobgp's paths are not as the feed expects")
		}
	}
	require.NoError(t, s.StopBgp(ctx, &api.StopBgpRequest{}))
}

// TestCoreReader reads paths on which policy has removed and replaced attributes, in random order: what is remembered never
// shows.
func TestCoreReader(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	tag := bgp.NewLargeCommunity(4294967295, 1, 2)
	require.True(t, policy.IsTag(largeOf(tag)))
	large := func(cs ...*bgp.LargeCommunity) bgp.PathAttributeInterface {
		return bgp.NewPathAttributeLargeCommunities(cs)
	}
	sources := []*peerInfo{{Address: []byte{10, 0, 0, 1}}, {Address: []byte{10, 0, 0, 2}}, {}}
	var roots [][]bgp.PathAttributeInterface
	for _, more := range [][]bgp.PathAttributeInterface{
		nil, {bgp.NewPathAttributeLocalPref(200)}, {large(bgp.NewLargeCommunity(1, 2, 3))}, {bgp.NewPathAttributeMultiExitDisc(5)},
	} {
		roots = append(roots, append([]bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0), bgp.NewPathAttributeNextHop("10.1.1.1")}, more...))
	}
	overlays := []corePath{
		{},
		{pathAttrs: []bgp.PathAttributeInterface{large(tag)}},
		{pathAttrs: []bgp.PathAttributeInterface{large(tag, bgp.NewLargeCommunity(7, 8, 9))}},
		{dels: []bgp.BGPAttrType{bgp.BGP_ATTR_TYPE_LARGE_COMMUNITY}},
		{dels: []bgp.BGPAttrType{bgp.BGP_ATTR_TYPE_LOCAL_PREF}},
		{pathAttrs: []bgp.PathAttributeInterface{bgp.NewPathAttributeLocalPref(300)}},
		{IsWithdraw: true},
	}
	r := newCoreReader()
	prefix := netip.MustParsePrefix("20.1.1.0/24")
	for range 20000 {
		root := roots[random.IntN(len(roots))]
		p := &corePath{info: &originInfo{nlri: bgp.NewIPAddrPrefix(24, "20.1.1.0"), source: sources[random.IntN(len(sources))]}, pathAttrs: root}
		for range random.IntN(3) {
			next := overlays[random.IntN(len(overlays))]
			next.parent = p
			p = &next
		}
		events := &listener{best: map[netip.Prefix][]speaker.Path{}}
		r.tell(events, &bestPaths{MultiPathList: [][]*corePath{{p}}})
		var want []speaker.Path
		if path := p.read(); !p.IsWithdraw && path.Peer.IsValid() {
			want = []speaker.Path{path}
		}
		require.Equal(t, map[netip.Prefix][]speaker.Path{prefix: want}, events.best)
	}
}

// TestFeedKeepsTheOrder has an event go the long way while others do not.
func TestFeedKeepsTheOrder(t *testing.T) {
	f := newFeed(slog.New(slog.DiscardHandler))
	f.attached, f.shape = true, asExpected
	var order []any
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		f.run(ctx, func(p *bestPaths) { order = append(order, p) }, func(r *api.WatchEventResponse) {
			if order = append(order, r); len(order) == 6 {
				cancel()
			}
		})
	}()
	paths := []*bestPaths{{}, {PathList: []*corePath{}}, {PathList: []*corePath{{}}}, {PathList: []*corePath{{}, {}}}}
	others := []*api.WatchEventResponse{{}, {}}
	f.push(paths[0])
	f.push(paths[1])
	require.True(t, f.take("an event of another kind"))
	f.push(paths[2])
	f.tell(ctx, others[0]) // returns when it was passed on
	f.push(paths[3])
	require.True(t, f.take("another"))
	f.tell(ctx, others[1])
	<-done
	require.Len(t, order, 6)
	for i, want := range []any{paths[0], paths[1], others[0], paths[2], paths[3], others[1]} {
		require.Same(t, want, order[i], "place %d", i)
	}
}

// TestMatches: what has another shape is not read.
func TestMatches(t *testing.T) {
	type (
		inner struct{ A uint32 }
		want  struct {
			N  uint32
			In []*inner
			B  bool
		}
		more struct {
			N    uint32
			In   []*inner
			B, C bool
		}
		moved struct {
			B  bool
			N  uint32
			In []*inner
		}
		fewer struct {
			N  uint32
			In []*inner
		}
		other struct {
			N  uint32
			In []*struct{ A int32 }
			B  bool
		}
		direct struct {
			N  uint32
			In []inner
			B  bool
		}
	)
	for _, c := range []struct {
		have any
		ok   bool
	}{{want{}, true}, {more{}, true}, {moved{}, false}, {fewer{}, false}, {other{}, false}, {direct{}, false}, {&want{}, false}, {uint32(0), false}} {
		require.Equal(t, c.ok, matches(reflect.TypeFor[want](), reflect.TypeOf(c.have), map[reflect.Type]bool{}), "%T", c.have)
	}
}
