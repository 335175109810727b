package gobgp

import (
	"errors"
	"net/netip"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	filters "github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// readUpdate reads the body of an UPDATE as gobgp does on a session of ours, and returns what comes out of it: a path for each
// prefix, in both forms in which gobgp tells us. Nil means that the session or the routes would be given up.
func readUpdate(data []byte, v6, addPath bool) ([]*api.Path, []*corePath) {
	family := bgp.RF_IPv4_UC
	if v6 {
		family = bgp.RF_IPv6_UC
	}
	negotiated := map[bgp.RouteFamily]bgp.BGPAddPathMode{family: bgp.BGP_ADD_PATH_NONE}
	if addPath {
		negotiated[family] = bgp.BGP_ADD_PATH_RECEIVE
	}
	update := &bgp.BGPUpdate{}
	if err := update.DecodeFromBytes(data, &bgp.MarshallingOption{AddPath: negotiated}); err != nil {
		return nil, nil
	}
	if ok, err := bgp.ValidateUpdateMsg(update, negotiated, true, false, false); !ok {
		// What follows is how gobgp goes on where an attribute only is to be discarded.
		var e *bgp.MessageError
		if !errors.As(err, &e) || e.ErrorHandling != bgp.ERROR_HANDLING_ATTRIBUTE_DISCARD {
			return nil, nil
		}
	}
	attributes, err := apiutil.MarshalPathAttributes(update.PathAttributes)
	if err != nil {
		return nil, nil
	}
	var prefixes []bgp.AddrPrefixInterface
	for _, p := range update.NLRI {
		prefixes = append(prefixes, p)
	}
	for _, a := range update.PathAttributes {
		if reach, ok := a.(*bgp.PathAttributeMpReachNLRI); ok {
			prefixes = append(prefixes, reach.Value...)
		}
	}
	var out []*api.Path
	var core []*corePath
	for _, p := range prefixes {
		if nlri, err := apiutil.MarshalNLRI(p); err == nil {
			out = append(out, &api.Path{Nlri: nlri, Pattrs: attributes, NeighborIp: "10.0.0.1", Best: true})
			info := &originInfo{nlri: p, source: &peerInfo{Address: []byte{10, 0, 0, 1}}}
			core = append(core, &corePath{info: info, pathAttrs: update.PathAttributes})
		}
	}
	return out, core
}

// listener keeps what a reader of best paths is told.
type listener struct {
	speaker.Events
	best map[netip.Prefix][]speaker.Path
}

func (t *listener) Best(prefix netip.Prefix, paths []speaker.Path) { t.best[prefix] = paths }

// FuzzUpdate reads updates of peers, up to what felix is told of them and what the filters decide.
func FuzzUpdate(f *testing.F) {
	attributes := func(more ...byte) []byte {
		list := append([]byte{
			0x40, 1, 1, 0, // origin
			0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9, // AS path 65001
			0x40, 3, 4, 10, 1, 1, 1, // next hop
		}, more...)
		return append(append([]byte{0, 0, 0, byte(len(list))}, list...), 24, 20, 1, 1)
	}
	reach := append([]byte{0x80, 14, 38, 0, 2, 1, 16}, netip.MustParseAddr("fd00::1").AsSlice()...)
	reach = append(append(reach, 0, 128), netip.MustParseAddr("fd00:1::").AsSlice()...)
	for _, more := range [][]byte{
		nil,
		{0x80, 4, 4, 0, 0, 0, 1},             // discriminator
		{0x40, 5, 4, 0x7f, 0xff, 0xfb, 0xff}, // local preference
		{0xc0, 8, 8, 0xff, 0xff, 0, 0, 0xfc, 0, 0, 77},                 // communities
		{0xc0, 32, 12, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 2}, // a large community that only we may give
		{0x80, 9, 4, 9, 9, 9, 9, 0x80, 10, 4, 1, 1, 1, 1},              // originator, cluster list
		{0xc0, 16, 8, 0, 2, 0xfd, 0xe9, 0, 0, 0, 1},                    // extended community
		{0xc0, 7, 8, 0, 0, 0xfd, 0xe9, 1, 1, 1, 1},                     // aggregator
		{0xc0, 17, 6, 2, 1, 0, 1, 0, 1},                                // AS4 path
		{0xc0, 23, 4, 0, 8, 0, 0},
		{0x80, 26, 3, 1, 0, 3},
		{0xc0, 40, 3, 1, 0, 0},
		{0xc0, 99, 1, 1}, // what we have no use for
		{0xc0, 8, 200, 0, 1},
		{0xc0, 8},
		{0xd0, 8, 0}, // broken off
		reach,
	} {
		f.Add(attributes(more...), false, false)
		f.Add(attributes(more...), true, false)
	}
	f.Add(append([]byte{0, 4, 24, 20, 1, 1}, attributes()[2:]...), false, false)
	f.Add(append(attributes()[:24], 0, 0, 0, 1, 24, 20, 1, 1), false, true)

	config := policy.Config{
		RouterID: netip.MustParseAddr("10.0.0.2"), ASNumber: 64512,
		Filters: []filters.Filter{{Name: "all"}},
	}
	peer := &policy.Peer{Address: netip.MustParseAddr("10.0.0.1"), ASNumber: 65001, Filters: []string{"all"}}
	f.Fuzz(func(t *testing.T, data []byte, v6, addPath bool) {
		paths, core := readUpdate(data, v6, addPath)
		events := &listener{best: map[netip.Prefix][]speaker.Path{}}
		newBestReader().tell(events, paths)
		direct := &listener{best: map[netip.Prefix][]speaker.Path{}}
		newCoreReader().tell(direct, &bestPaths{PathList: core})
		require.Equal(t, len(events.best), len(direct.best))
		for i, p := range paths {
			got, err := fromPath(p)
			require.NoError(t, err, "what gobgp has read can be read")
			again := core[i].read()
			again.Prefix, again.Best = core[i].prefix(), true
			require.Equal(t, got, again, "protobuf or not makes no difference")
			require.True(t, got.Prefix.IsValid())
			require.Contains(t, events.best, got.Prefix)
			for _, c := range got.Communities {
				require.False(t, policy.IsTag(c), "tags are ours to give")
			}
			rt := policy.Route{
				Prefix: got.Prefix, Preference: got.Preference, Communities: got.Communities, ASPath: got.ASPath,
				NextHop: got.NextHop, Originator: got.Originator,
			}
			changed, verdict := config.Import(peer, rt, policy.Context{})
			require.NotEmpty(t, verdict.By)
			require.Equal(t, rt.Prefix, changed.Prefix)
		}
		for prefix, list := range events.best {
			require.Equal(t, prefix.Masked(), prefix, "no bits beyond the length")
			for _, p := range list {
				require.True(t, p.NextHop.IsValid(), "felix is told of next hops only")
			}
		}
	})
}
