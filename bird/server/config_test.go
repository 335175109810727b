package server

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/bird/policy"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// full is a configuration with every field set.
func full() *birdv1.Config {
	p := &birdv1.Prefix{Address: []byte{192, 168, 0, 0}, Length: 16}
	rules := []*birdv1.FilterRule{{
		Action: birdv1.FilterAction_FILTER_ACTION_ACCEPT, Prefix: p, Operator: birdv1.MatchOperator_MATCH_OPERATOR_NOT_IN, MinLength: 20,
		MaxLength: 26, FromRemotePeers: true, Interface: "cali*", SessionType: 2, Community: "1:2:3", AsPathPrefix: []uint32{1, 2}, Priority: 512,
		Operations: []*birdv1.FilterOperation{
			{Operation: &birdv1.FilterOperation_AddCommunity{AddCommunity: "1:2"}},
			{Operation: &birdv1.FilterOperation_PrependAsPath{PrependAsPath: &birdv1.AsPath{AsNumbers: []uint32{1, 1, 2}}}},
			{Operation: &birdv1.FilterOperation_SetPriority{SetPriority: 700}},
		},
	}}
	second := durationpb.New(30 * time.Second)
	return &birdv1.Config{
		Generation: 1, RouterId: []byte{10, 0, 0, 1}, AsNumber: 64512, ListenPort: 1179, ListenAddresses: [][]byte{{10, 0, 0, 1}},
		Peers: []*birdv1.Peer{{
			Name: "Node_10_0_0_2", Type: birdv1.PeerType_PEER_TYPE_NODE, Source: "BGPPeer(x)", Address: []byte{10, 0, 0, 2}, Port: 1180,
			AsNumber: 65001, LocalAsNumber: 65002, SourceAddress: []byte{10, 0, 0, 1}, Passive: true, Password: "p", TtlSecurity: 2,
			RestartTime: second, KeepaliveTime: second, HoldTime: durationpb.New(90 * time.Second), ReflectorClient: true,
			NextHopMode: birdv1.NextHopMode_NEXT_HOP_MODE_SELF, AllowedOwnAs: 3, Filters: []string{"f"}, LongLivedStaleTime: second,
		}},
		Filters:   []*birdv1.Filter{{Name: "f", Import4: rules, Export4: rules}},
		Originate: []*birdv1.Origination{{Prefix: p, Communities: []string{"1:2"}}},
		Export: &birdv1.ExportPolicy{
			Pools: []*birdv1.ExportPool{{Prefix: p, DisableExport: true}}, OwnBlocks: []*birdv1.Prefix{p}, ServiceRanges: []*birdv1.Prefix{p}, Unrouted: []*birdv1.Prefix{p},
			Advertisements: []*birdv1.Origination{{Prefix: p, Communities: []string{"1:2:3"}}},
		},
		ClusterId: []byte{1, 1, 1, 1}, LogLevel: "info", RestartDeferral: second, NormalPriority4: 1, NormalPriority6: 2,
		StaticRoutes: []*birdv1.StaticRoute{{Prefix: p, Gateway: []byte{10, 0, 0, 254}}}, Warnings: []string{"w"},
	}
}

// TestReadConfig checks that every field arrives.
func TestReadConfig(t *testing.T) {
	c, err := readConfig(full())
	require.NoError(t, err)
	prefix := netip.MustParsePrefix("192.168.0.0/16")
	standard, large := policy.Community{Parts: [3]uint32{1, 2}}, policy.Community{Large: true, Parts: [3]uint32{1, 2, 3}}
	rules := []bgp.Rule{{
		Accept: true, Prefix: prefix, Operator: bgp.NotIn, MinLength: 20, MaxLength: 26, FromRemotePeers: true, Interface: "cali*",
		SessionType: bgp.Internal, Community: &large, ASPrefix: []uint32{1, 2}, Priority: 512,
		Operations: []bgp.Operation{{AddCommunity: &standard}, {Prepend: []uint32{1, 1, 2}}, {SetPriority: 700}},
	}}
	own := netip.MustParseAddr("10.0.0.1")
	require.Equal(t, policy.Config{
		Generation: 1, RouterID: own, ASNumber: 64512, ListenPort: 1179, ListenAddresses: []netip.Addr{own},
		Peers: []policy.Peer{{
			Name: "Node_10_0_0_2", Type: policy.PeerNode, Source: "BGPPeer(x)", Address: netip.MustParseAddr("10.0.0.2"), Port: 1180,
			ASNumber: 65001, LocalASNumber: 65002, SourceAddress: own, Passive: true, Password: "p", TTLSecurity: 2,
			RestartTime: 30 * time.Second, KeepaliveTime: 30 * time.Second, HoldTime: 90 * time.Second, ReflectorClient: true,
			NextHop: policy.NextHopSelf, AllowedOwnAS: 3, Filters: []string{"f"}, LongLivedStaleTime: 30 * time.Second,
		}},
		Filters:   []bgp.Filter{{Name: "f", Import4: rules, Export4: rules}},
		Originate: []policy.Origination{{Prefix: prefix, Communities: []policy.Community{standard}}},
		Export: policy.Export{
			Pools: []policy.Pool{{Prefix: prefix, DisableExport: true}}, OwnBlocks: []netip.Prefix{prefix}, ServiceRanges: []netip.Prefix{prefix}, Unrouted: []netip.Prefix{prefix},
			Advertisements: []policy.Origination{{Prefix: prefix, Communities: []policy.Community{large}}},
		},
		ClusterID: netip.MustParseAddr("1.1.1.1"), LogLevel: "info", RestartDeferral: 30 * time.Second, NormalPriority4: 1, NormalPriority6: 2,
		StaticRoutes: []policy.StaticRoute{{Prefix: prefix, Gateway: netip.MustParseAddr("10.0.0.254")}}, Notes: []string{"w"},
	}, c)
	c.Normalize()
	require.NoError(t, c.Validate())
}

// TestReadConfigRefuses has one row for each thing that has no form.
func TestReadConfigRefuses(t *testing.T) {
	rule := func(m *birdv1.Config) *birdv1.FilterRule { return m.Filters[0].Import4[0] }
	for want, spoil := range map[string]func(*birdv1.Config){
		"router_id: ":                             func(m *birdv1.Config) { m.RouterId = nil },
		"listen_port: 70000 ":                     func(m *birdv1.Config) { m.ListenPort = 70000 },
		"peers[Node_10_0_0_2].bfd.multiplier: ":   func(m *birdv1.Config) { m.Peers[0].Bfd = &birdv1.Bfd{Multiplier: 256} },
		"peers[Node_10_0_0_2].ttl_security: ":     func(m *birdv1.Config) { m.Peers[0].TtlSecurity = 256 },
		"peers[Node_10_0_0_2].hold_time: ":        func(m *birdv1.Config) { m.Peers[0].HoldTime = &durationpb.Duration{Nanos: -1, Seconds: 1} },
		"filters[f].import4[0].action: ":          func(m *birdv1.Config) { rule(m).Action = 0 },
		"filters[f].import4[0].prefix: 192.168.0": func(m *birdv1.Config) { rule(m).Prefix.Length = 3 },
		"filters[f].import4[0].community: ":       func(m *birdv1.Config) { rule(m).Community = "gold" },
		"filters[f].import4[0].operations[0]: ":   func(m *birdv1.Config) { rule(m).Operations[0] = &birdv1.FilterOperation{} },
		"originate[0].prefix: ":                   func(m *birdv1.Config) { m.Originate[0].Prefix = nil },
	} {
		m := full()
		for _, f := range m.Filters { // each rule its own prefix
			f.Import4 = []*birdv1.FilterRule{proto.CloneOf(f.Import4[0])}
		}
		spoil(m)
		_, err := readConfig(m)
		require.ErrorContains(t, err, want)
	}
	_, err := readConfig(nil)
	require.Error(t, err)
}

// FuzzConfig feeds bytes through everything that looks at a configuration before an engine does: nothing may panic.
func FuzzConfig(f *testing.F) {
	body, err := proto.Marshal(full())
	require.NoError(f, err)
	f.Add(body)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		m := &birdv1.Config{}
		if proto.Unmarshal(body, m) != nil {
			return
		}
		c, err := readConfig(m)
		if err != nil {
			return
		}
		c.Normalize()
		if c.Validate() != nil {
			return
		}
		_ = c.Compile(policy.Context{}).String()
		rt := policy.Route{Prefix: netip.MustParsePrefix("192.168.1.0/26"), Preference: 1}
		_ = c.Tagger().Tags(rt)
		for _, p := range c.Active() {
			_, _ = c.Import(&p, rt, policy.Context{})
			_ = c.ExportOwn(&p, rt)
		}
	})
}
