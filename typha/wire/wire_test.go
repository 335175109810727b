package wire_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

var (
	prefix  = netip.MustParsePrefix
	address = netip.MustParseAddr
)

// samples has every kind of item, with every field of it set once and left out once.
func samples() []view.Item {
	pool := &api.IPPool{
		TypeMeta: metav1.TypeMeta{APIVersion: api.GroupVersion, Kind: "IPPool"}, ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: api.IPPoolSpec{CIDR: "192.168.0.0/16", VXLANMode: api.VXLANCrossSubnet, BlockSize: 26, NATOutgoing: true},
	}
	code := uint8(0)
	match := view.Match{
		Nets: []netip.Prefix{prefix("10.0.0.0/8")}, NotNets: []netip.Prefix{prefix("fd00::/8")}, Sets: []string{"s:1"}, NotSets: []string{"s:2"},
		IPPortSets: []string{"svc:1"}, Ports: []view.PortRange{{First: 80, Last: 90}, {First: 0, Last: 65535}}, NamedPorts: []string{"n:http"},
		NotPorts: []view.PortRange{{First: 1, Last: 1}}, NotNamedPorts: []string{"n:ssh"},
	}
	return []view.Item{
		view.Resource{Object: pool},
		view.Secret{Name: "kube-system/bgp/password", Value: []byte("hunter2\x00")},
		view.Secret{Name: "a/b/c"},
		view.Node{Name: "empty"},
		view.Node{
			Name: "worker-1", IPv4: prefix("10.30.0.206/24"), IPv6: prefix("fd00:30::206/64"), IPIPAddr: address("192.168.1.1"),
			VXLANAddr4: address("192.168.1.2"), VXLANAddr6: address("fd00:77::1"), VXLANMAC4: "66:aa:bb:cc:dd:01", VXLANMAC6: "66:aa:bb:cc:dd:02",
			PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:244:1::/64")},
		},
		view.IPSet{ID: "s:empty", Type: view.SetNet},
		view.IPSet{ID: "s:1", Type: view.SetNet, Members: []view.Member{{Prefix: prefix("10.0.0.1/32")}, {Prefix: prefix("fd00::/64")}}},
		view.IPSet{ID: "n:http", Type: view.SetIPPort, Members: []view.Member{{Prefix: prefix("10.0.0.1/32"), Protocol: 6, Port: 8080}}},
		view.IPSetDelta{
			ID: "s:1", From: view.Version{1}, To: view.Version{2},
			Added: []view.Member{{Prefix: prefix("10.0.0.2/32")}}, Removed: []view.Member{{Prefix: prefix("10.0.0.1/32")}},
		},
		view.Policy{ID: "pro/kns.default"},
		view.Policy{
			ID: "np/shop/allow-web", Tier: "default", DoNotTrack: true, PreDNAT: true, ApplyOnForward: true, Staged: true,
			Ingress: []view.Rule{{
				Action: view.Allow, IPVersion: 4, Protocol: 6, NotProtocol: 17, ICMP: &view.ICMP{Type: 8, Code: &code}, NotICMP: &view.ICMP{Type: 3},
				Source: match, Destination: match, Annotations: map[string]string{"why": "because"},
				HTTP: &view.HTTP{Methods: []string{"GET"}, Paths: []view.HTTPPath{{Exact: "/a"}, {Prefix: "/b/"}}},
			}},
			Egress: []view.Rule{{Action: view.Deny}, {Action: view.Pass}, {Action: view.Log}},
		},
		view.PolicyList{ID: "none"},
		view.PolicyList{ID: "l:1", Profiles: []string{"pro/a", "pro/b"}, Tiers: []view.TierPolicies{
			{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/a/b"}, Egress: []string{"gnp/c"}},
			{Name: "after", DefaultAction: view.Pass},
		}},
		view.WorkloadEndpoint{ID: view.EndpointID{Orchestrator: "k8s", Workload: "shop/web-0", Endpoint: "eth0"}},
		view.WorkloadEndpoint{
			ID: view.EndpointID{Orchestrator: "cni", Workload: "default/abc", Endpoint: "eth0"}, UID: "u", ContainerID: "abc", Interface: "cali123",
			MAC: "ee:ee:ee:ee:ee:ee", Addresses: []netip.Addr{address("10.0.0.1"), address("fd00::1")}, PolicyList: "l:1",
			Incomplete: []string{"profile kns.shop"}, AllowSpoofedPrefixes: []netip.Prefix{prefix("0.0.0.0/0")},
			NATs: []view.NAT{{External: address("1.2.3.4"), Internal: address("10.0.0.1")}},
			QoS: &view.QoS{
				IngressBandwidth: 1, IngressBurst: 2, EgressBandwidth: 3, EgressBurst: 4, IngressPacketRate: 5, EgressPacketRate: 6,
				IngressMaxConnections: 7, EgressMaxConnections: 8, IngressPeakrate: 9, IngressMinburst: 10, EgressPeakrate: 11, EgressMinburst: 12,
				IngressPacketBurst: 13, EgressPacketBurst: 14,
			},
			Peering: &view.Peering{BGPPeers: []string{"vms", "ws"}, Port: 1179, Gateways: []netip.Addr{address("169.254.8.1"), address("fd00:8::1")}},
			Request: &view.AddressRequest{
				Pools4: []string{"a"}, Pools6: []string{"b"}, Fixed: []netip.Addr{address("10.0.0.9")}, MAC: "02:00:00:00:00:01", Families: []int{4, 6},
				Unmanaged: []netip.Addr{address("10.9.0.9")}, Floating: []netip.Addr{address("192.0.2.1")}, Wrong: "annotation",
			},
		},
		view.HostEndpoint{Name: "eth0-worker", Interface: "*", ExpectedIPs: []netip.Addr{address("10.30.0.1")}, Normal: "a", Untracked: "b", PreDNAT: "c", Forward: "d", Incomplete: []string{"x"}},
		view.HostEndpoint{Name: "bare"},
		view.Route{Dst: prefix("192.168.0.0/26"), Type: view.RouteBlock, Node: "worker-1", Pool: "default", Send: view.TunnelVXLAN, CrossSubnet: true, Receive: []view.Tunnel{view.TunnelVXLAN, view.TunnelNone}},
		view.Route{Dst: prefix("fd00::1/128"), Type: view.RouteTunnel, Node: "n"},
		view.Route{Dst: prefix("10.0.0.1/32"), Type: view.RouteWorkload, Node: "n", Send: view.TunnelIPIP},
		view.Origination{Prefix: prefix("10.96.0.0/12")},
		view.Origination{Prefix: prefix("10.96.0.1/32"), Host: true},
	}
}

func name(it view.Item) string { return fmt.Sprintf("%T/%s", it, it.Key().ID) }

func TestEveryKindComesBackAsItWas(t *testing.T) {
	kinds := map[view.Kind]bool{}
	for _, it := range samples() {
		t.Run(name(it), func(t *testing.T) {
			kinds[it.Key().Kind] = true
			version := view.VersionOf(it)
			parts, err := wire.Encode(it, version)
			require.NoError(t, err)
			require.Len(t, parts, 1)
			got, err := wire.Decode(parts[0])
			require.NoError(t, err)
			assert.Equal(t, it, got.Item)
			assert.Equal(t, version, got.Version)
			assert.Equal(t, version, view.VersionOf(got.Item), "the version that the receiver computes")
		})
	}
	assert.Len(t, kinds, int(view.KindOrigination), "a kind has no sample")
}

// TestEveryFieldTravels finds fields that were added to a message and forgotten in the conversion: the samples together
// must set each field of each message that has one.
func TestEveryFieldTravels(t *testing.T) {
	unset := map[string]bool{}
	set := map[string]bool{}
	for _, it := range samples() {
		m, err := wire.Message(it, view.VersionOf(it))
		require.NoError(t, err)
		fields(m, unset, set)
	}
	var missing []string
	for f := range unset {
		if !set[f] {
			missing = append(missing, f)
		}
	}
	slices.Sort(missing)
	assert.Equal(t, []string{
		"muslin.typha.v1.IpSet.more",         // of sets above the size of a part, tested apart
		"muslin.typha.v1.Node.wireguard_key", // reserved
	}, missing)
}

func fields(m proto.Message, unset, set map[string]bool) {
	r := m.ProtoReflect()
	list := r.Descriptor().Fields()
	for i := range list.Len() {
		f := list.Get(i)
		if !r.Has(f) {
			unset[string(f.FullName())] = true
			continue
		}
		set[string(f.FullName())] = true
		switch {
		case f.IsMap():
		case f.IsList() && f.Message() != nil:
			for j := range r.Get(f).List().Len() {
				fields(r.Get(f).List().Get(j).Message().Interface(), unset, set)
			}
		case f.Message() != nil:
			fields(r.Get(f).Message().Interface(), unset, set)
		}
	}
}

func bigSet(n int) view.IPSet {
	s := view.IPSet{ID: "s:big", Type: view.SetNet}
	for i := range n {
		s.Members = append(s.Members, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)})
	}
	return s
}

func TestLargeSetsTravelInParts(t *testing.T) {
	set := bigSet(40_000)
	version := view.EmptySet(view.SetNet)
	frame, err := wire.Frame(set, version)
	require.NoError(t, err)
	var members []view.Member
	var more []bool
	for b := range wire.Items(frame) {
		assert.Less(t, len(b), 1<<20)
		it, err := wire.Decode(b)
		require.NoError(t, err)
		assert.Equal(t, version, it.Version)
		members = append(members, it.Item.(view.IPSet).Members...)
		more = append(more, it.More)
	}
	assert.Equal(t, set.Members, members)
	assert.Equal(t, []bool{true, true, false}, more)
}

func TestLargeDeltasTravelInSteps(t *testing.T) {
	before, after := view.EmptySet(view.SetNet), view.EmptySet(view.SetNet)
	for _, m := range bigSet(40_000).Members {
		after = after.AddMember(m)
	}
	parts, err := wire.Encode(view.IPSetDelta{ID: "s:big", From: before, To: after, Added: bigSet(40_000).Members}, after)
	require.NoError(t, err)
	require.Len(t, parts, 3)
	at := before
	for _, b := range parts {
		it, err := wire.Decode(b)
		require.NoError(t, err)
		d := it.Item.(view.IPSetDelta)
		assert.Equal(t, at, d.From)
		assert.Equal(t, it.Version, d.To)
		for _, m := range d.Added {
			at = at.AddMember(m)
		}
		assert.Equal(t, at, d.To)
	}
	assert.Equal(t, after, at)
}

func TestKeys(t *testing.T) {
	for k := view.KindResource; k <= view.KindOrigination; k++ {
		key := view.Key{Kind: k, ID: "x"}
		got, ok := wire.DecodeKey(wire.EncodeKey(key))
		assert.True(t, ok)
		assert.Equal(t, key, got)
		assert.NotEmpty(t, typhav1.ItemKind_name[int32(k)], "the protocol has no kind %d", k)
	}
	for _, kind := range []typhav1.ItemKind{0, -1, 11, 1 << 20} {
		_, ok := wire.DecodeKey(&typhav1.ItemKey{Kind: kind, Id: "x"})
		assert.False(t, ok, "kind %d", kind)
	}
}

func TestUnknownAndMalformed(t *testing.T) {
	version := bytes.Repeat([]byte{7}, 16)
	item := func(m *typhav1.Item) []byte {
		if m.Version == nil {
			m.Version = version
		}
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		return b
	}
	net := func(addr []byte, length uint32) *typhav1.Prefix {
		return &typhav1.Prefix{Address: addr, Length: length}
	}
	ten := []byte{10, 0, 0, 0}
	for _, c := range []struct {
		name    string
		bytes   []byte
		unknown bool
		says    string
	}{
		{"kind of a later version", append(item(&typhav1.Item{Id: "x"}), protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), nil)...), true, ""},
		{"resource of a later version", item(&typhav1.Item{Id: "Moon//x", Body: &typhav1.Item_Resource{Resource: &typhav1.Resource{Kind: "Moon", Json: []byte("{}")}}}), true, `"Moon"`},
		{"alias is no kind", item(&typhav1.Item{Body: &typhav1.Item_Resource{Resource: &typhav1.Resource{Kind: "ippool", Json: []byte("{}")}}}), true, ""},
		{"set type of a later version", item(&typhav1.Item{Body: &typhav1.Item_IpSet{IpSet: &typhav1.IpSet{Type: 9}}}), true, "set type 9"},
		{"route type of a later version", item(&typhav1.Item{Body: &typhav1.Item_Route{Route: &typhav1.Route{Type: 9}}}), true, "route type 9"},
		{"tunnel of a later version", item(&typhav1.Item{Body: &typhav1.Item_Route{Route: &typhav1.Route{Type: 1, Send: 9}}}), true, "tunnel 9"},
		{"not protobuf", []byte{0xff}, false, "does not parse"},
		{"short version", item(&typhav1.Item{Id: "x", Version: []byte{1}}), false, "16 bytes"},
		{"bad JSON", item(&typhav1.Item{Body: &typhav1.Item_Resource{Resource: &typhav1.Resource{Kind: "IPPool", Json: []byte("{")}}}), false, "IPPool"},
		{"another's id", item(&typhav1.Item{Id: "b", Body: &typhav1.Item_Node{Node: &typhav1.Node{Name: "a"}}}), false, `"a"`},
		{"address of 5 bytes", item(&typhav1.Item{Id: "a", Body: &typhav1.Item_Node{Node: &typhav1.Node{Name: "a", IpipAddress: make([]byte, 5)}}}), false, "4 bytes for IPv4"},
		{"IPv4 in 16 bytes", item(&typhav1.Item{Id: "a", Body: &typhav1.Item_Node{Node: &typhav1.Node{Name: "a", IpipAddress: append(append(make([]byte, 10), 0xff, 0xff), ten...)}}}), false, "4 bytes for IPv4"},
		{"prefix too long", item(&typhav1.Item{Body: &typhav1.Item_Origination{Origination: &typhav1.Origination{Prefix: net(ten, 33)}}}), false, "33"},
		{"no prefix", item(&typhav1.Item{Body: &typhav1.Item_Origination{Origination: &typhav1.Origination{}}}), false, "missing"},
		{"member with host bits", item(&typhav1.Item{Body: &typhav1.Item_IpSet{IpSet: &typhav1.IpSet{Type: 1, Members: []*typhav1.Member{{Prefix: net([]byte{10, 0, 0, 1}, 8)}}}}}), false, "out of range"},
		{"port 65536", item(&typhav1.Item{Body: &typhav1.Item_IpSet{IpSet: &typhav1.IpSet{Type: 2, Members: []*typhav1.Member{{Prefix: net(ten, 32), Port: 65536}}}}}), false, "out of range"},
		{"ports backwards", item(&typhav1.Item{Body: &typhav1.Item_Policy{Policy: &typhav1.Policy{Ingress: []*typhav1.Rule{{Source: &typhav1.Match{Ports: []*typhav1.PortRange{{First: 2, Last: 1}}}}}}}}), false, "backwards"},
		{"MAC of 5 bytes", item(&typhav1.Item{Id: "//", Body: &typhav1.Item_WorkloadEndpoint{WorkloadEndpoint: &typhav1.WorkloadEndpoint{Mac: make([]byte, 5)}}}), false, "6 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := wire.Decode(c.bytes)
			require.Error(t, err)
			if c.unknown {
				require.ErrorIs(t, err, wire.ErrUnknownKind)
			} else {
				require.NotErrorIs(t, err, wire.ErrUnknownKind)
			}
			assert.Contains(t, err.Error(), c.says)
			assert.False(t, strings.Contains(err.Error(), "\n"), "one line")
		})
	}
}

func TestUnknownActionsDeny(t *testing.T) {
	m, err := wire.Message(view.Policy{ID: "np/a", Ingress: []view.Rule{{Action: view.Allow}}}, view.Version{})
	require.NoError(t, err)
	for _, a := range []typhav1.Action{0, 5, -1, 1 << 30} {
		m.GetPolicy().Ingress[0].Action = a
		it, err := wire.FromMessage(m)
		require.NoError(t, err)
		assert.Equal(t, view.Deny, it.Item.(view.Policy).Ingress[0].Action, "action %d", a)
	}
}

// FuzzDecode feeds arbitrary bytes: decoding never panics, and what it accepts survives another round trip.
func FuzzDecode(f *testing.F) {
	for _, it := range samples() {
		parts, err := wire.Encode(it, view.VersionOf(it))
		require.NoError(f, err)
		f.Add(parts[0])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		it, err := wire.Decode(b)
		var m typhav1.Item
		slow, slowErr := wire.Item{}, proto.Unmarshal(b, &m)
		if slowErr == nil {
			slow, slowErr = wire.FromMessage(&m)
		}
		require.Equal(t, slowErr == nil, err == nil, "both ways to decode agree")
		if err != nil {
			return
		}
		require.Equal(t, slow, it, "both ways to decode agree")
		parts, err := wire.Encode(it.Item, it.Version)
		require.NoError(t, err)
		if len(parts) > 1 {
			return
		}
		again, err := wire.Decode(parts[0])
		require.NoError(t, err)
		require.Equal(t, view.VersionOf(it.Item), view.VersionOf(again.Item))
	})
}

func BenchmarkDecodeSet(b *testing.B) {
	parts, err := wire.Encode(bigSet(5000), view.Version{})
	require.NoError(b, err)
	b.SetBytes(int64(len(parts[0])))
	for b.Loop() {
		if _, err := wire.Decode(parts[0]); err != nil {
			b.Fatal(err)
		}
	}
}
