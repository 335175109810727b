package server

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// FuzzRequests takes bytes for what felix and operators send; configurations are FuzzConfig's. None may panic; of what is a route or
// a next hop everything is in order, or nothing counts.
func FuzzRequests(f *testing.F) {
	prefix := &birdv1.Prefix{Address: []byte{192, 168, 1, 0}, Length: 26}
	for _, m := range []*birdv1.RoutesRequest{
		{Request: &birdv1.RoutesRequest_Hello{Hello: &birdv1.RoutesHello{Instance: "a", Sequence: 7}}},
		{Request: &birdv1.RoutesRequest_Local{Local: &birdv1.LocalRoute{Prefix: prefix, Metric: 512, Interface: "cali1"}}},
		{Request: &birdv1.RoutesRequest_Local{Local: &birdv1.LocalRoute{Prefix: &birdv1.Prefix{Address: make([]byte, 16), Length: 64}, Withdrawn: true}}},
		{Request: &birdv1.RoutesRequest_NextHop{NextHop: &birdv1.NextHop{Address: []byte{10, 0, 0, 1}, Reachable: true}}},
		{Request: &birdv1.RoutesRequest_SnapshotEnd{SnapshotEnd: true}},
	} {
		b, err := proto.Marshal(m)
		require.NoError(f, err)
		f.Add(b)
	}
	show, err := proto.Marshal(&birdv1.ShowRequest{View: 2, Peer: "Mesh_x", Within: prefix})
	require.NoError(f, err)
	f.Add(show)
	f.Fuzz(func(t *testing.T, body []byte) {
		var r birdv1.RoutesRequest
		if proto.Unmarshal(body, &r) == nil {
			rd := &reader{}
			switch m := r.GetRequest().(type) {
			case *birdv1.RoutesRequest_Local:
				if p := rd.prefix("local.prefix", m.Local.GetPrefix()); rd.err == nil {
					require.True(t, p.IsValid() && p == p.Masked() && !p.Addr().Is4In6(), "%v", p)
				}
			case *birdv1.RoutesRequest_NextHop:
				if a := rd.address("next_hop.address", m.NextHop.GetAddress(), true); rd.err == nil {
					require.True(t, a.IsValid() && !a.Is4In6(), "%v", a)
				}
			}
		}
		var s birdv1.ShowRequest
		if proto.Unmarshal(body, &s) == nil && s.GetWithin() != nil {
			rd := &reader{}
			if p := rd.prefix("within", s.GetWithin()); rd.err == nil {
				require.True(t, p.IsValid(), "%v", p)
			}
		}
	})
}
