package policy

import (
	"flag"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/bgp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// example is a node with a block of its own, in a mesh, beside an eBGP peer and a filtered one.
func example() Config {
	community, _ := bgp.ParseCommunity("64512:7")
	c := Config{
		RouterID: addr("10.0.0.1"), ASNumber: 64512,
		Peers: []Peer{
			{Name: "Mesh_10_0_0_2", Type: PeerMesh, Source: "Node(b)", Address: addr("10.0.0.2"), ASNumber: 64512, SourceAddress: addr("10.0.0.1")},
			{Name: "Mesh_10_0_0_3", Type: PeerMesh, Source: "Node(c)", Address: addr("10.0.0.3"), ASNumber: 64512},
			{Name: "Global_10_0_0_254", Type: PeerGlobal, Source: "BGPPeer(tor)", Address: addr("10.0.0.254"), ASNumber: 65001},
			{Name: "Node_10_0_0_253", Type: PeerNode, Source: "BGPPeer(f)", Address: addr("10.0.0.253"), ASNumber: 65001, Filters: []string{"f"}, NextHop: NextHopKeep},
		},
		Filters: []bgp.Filter{{
			Name: "f",
			Import4: []bgp.Rule{
				{Prefix: prefix("0.0.0.0/0"), Operator: bgp.Equal},
				{Accept: true, ASPrefix: []uint32{65001, 65002}, Operations: []bgp.Operation{{SetPriority: 512}}},
			},
			Export4: []bgp.Rule{
				{Prefix: prefix("192.168.9.0/24"), Operator: bgp.In, MinLength: 26},
				{Accept: true, Community: &community, Operations: []bgp.Operation{{Prepend: []uint32{64999}}}},
				{Accept: true, Interface: "cali*"},
			},
		}},
		Originate: []Origination{{Prefix: prefix("10.96.0.0/12")}, {Prefix: prefix("172.16.0.9/32")}},
		Export: Export{
			Pools: []Pool{
				{Prefix: prefix("192.168.0.0/16")}, {Prefix: prefix("172.31.0.0/16"), DisableExport: true}, {Prefix: prefix("fd00:1::/48")},
			},
			OwnBlocks:      []netip.Prefix{prefix("192.168.1.0/26")},
			Advertisements: []Origination{{Prefix: prefix("192.168.0.0/16"), Communities: []Community{community}}},
			ServiceRanges:  []netip.Prefix{prefix("172.16.0.0/24")},
		},
	}
	c.Normalize()
	return c
}

// TestExportTable is the table of the spec: which route goes to whom.
func TestExportTable(t *testing.T) {
	plain := example()
	reflector := example()
	reflector.ClusterID = addr("1.1.1.1")
	reflector.Peers[0].ReflectorClient = true
	reflector.Peers[0].Type = PeerNode
	mesh, ebgp, client := &plain.Peers[0], &plain.Peers[2], &reflector.Peers[0]
	other := &Peer{Type: PeerNode, Address: addr("10.0.0.3"), ASNumber: 64512}
	normal, elevated := PreferenceOf(1024), PreferenceOf(512)
	for _, row := range []struct {
		what                   string
		rt                     Route
		learned                bool // over iBGP
		toMesh, toEBGP, toOwnC bool // to a mesh peer, to an eBGP peer, from a reflector to its client
	}{
		{"own block", Route{Prefix: prefix("192.168.1.0/26"), Preference: normal}, false, true, true, true},
		{"pod in own block", Route{Prefix: prefix("192.168.1.5/32"), Preference: normal, Interface: "cali1"}, false, false, false, false},
		{"elevated pod in own block", Route{Prefix: prefix("192.168.1.5/32"), Preference: elevated, Interface: "cali1"}, false, true, true, true},
		{"pod with a borrowed address", Route{Prefix: prefix("192.168.2.5/32"), Preference: normal, Interface: "cali1"}, false, true, true, true},
		{"other node's block", Route{Prefix: prefix("192.168.2.0/26"), Preference: normal}, true, false, true, true},
		{"own subnet", Route{Prefix: prefix("10.0.0.0/24"), Preference: normal, Interface: "eth0"}, false, false, false, false},
		{"default route", Route{Prefix: prefix("0.0.0.0/0"), Preference: normal, Interface: "eth0"}, false, false, false, false},
		{"pool that is not exported", Route{Prefix: prefix("172.31.1.0/26"), Preference: normal}, false, false, false, false},
		{"service address", Route{Prefix: prefix("172.16.0.9/32"), Preference: normal}, false, true, true, true},
		{"service range", Route{Prefix: prefix("10.96.0.0/12"), Preference: normal}, false, true, true, true},
		{"other node's service address", Route{Prefix: prefix("172.16.0.10/32"), Preference: normal}, true, false, false, true},
		{"tunnel address", Route{Prefix: prefix("192.168.2.0/32"), Preference: normal, Interface: "tunl0"}, false, false, true, false},
		{"BPF device", Route{Prefix: prefix("192.168.2.9/32"), Preference: normal, Interface: "bpfin.cali"}, false, false, false, false},
	} {
		decide := func(c *Config, p *Peer) bool {
			if row.learned {
				return c.ExportLearned(p, other, row.rt).Accept
			}
			return c.ExportOwn(p, row.rt).Accept
		}
		require.Equal(t, row.toMesh, decide(&plain, mesh), "%s to mesh", row.what)
		require.Equal(t, row.toEBGP, decide(&plain, ebgp), "%s to eBGP", row.what)
		require.Equal(t, row.toOwnC, decide(&reflector, client), "%s to client", row.what)
	}
}

func TestArithmetic(t *testing.T) {
	for metric, preference := range map[uint32]uint32{1: 1<<31 - 2, 1024: 2147482623, 2147483547: 100, 1<<31 - 2: 1} {
		require.Equal(t, preference, PreferenceOf(metric))
		require.Equal(t, metric, MetricOf(preference))
	}
	require.Equal(t, uint32(1), MetricOf(1<<32-1))
	require.Equal(t, uint32(0), PreferenceOf(1<<32-1))
}

// TestImportReasons has one row for each reason not to use a route.
func TestImportReasons(t *testing.T) {
	c := example()
	ctx := Context{Unreachable: []netip.Addr{addr("10.0.0.77")}}
	base := Route{Prefix: prefix("192.168.9.0/26"), Preference: 100, NextHop: addr("10.0.0.254"), ASPath: []uint32{65001}}
	with := func(change func(*Route)) Route { rt := base; change(&rt); return rt }
	for by, row := range map[string]struct {
		peer int
		rt   Route
	}{
		byDefault:                           {2, base},
		"own AS in the path":                {2, with(func(r *Route) { r.ASPath = []uint32{65001, 64512} })},
		"own originator":                    {0, with(func(r *Route) { r.Originator = addr("10.0.0.1") })},
		"own next hop":                      {0, with(func(r *Route) { r.NextHop = addr("10.0.0.1") })},
		"next hop 10.0.0.77 is unreachable": {2, with(func(r *Route) { r.NextHop = addr("10.0.0.77") })},
		"BGPFilter(f).importV4[0]":          {3, with(func(r *Route) { r.Prefix = prefix("0.0.0.0/0") })},
		"BGPFilter(f).importV4[1]":          {3, with(func(r *Route) { r.ASPath = []uint32{65001, 65002, 3} })},
	} {
		_, v := c.Import(&c.Peers[row.peer], row.rt, ctx)
		require.Equal(t, by, v.By)
		require.Equal(t, by == byDefault || by == "BGPFilter(f).importV4[1]", v.Accept)
	}
	c.Peers[2].AllowedOwnAS = 1
	_, v := c.Import(&c.Peers[2], with(func(r *Route) { r.ASPath = []uint32{64512} }), ctx)
	require.True(t, v.Accept)
	_, v = c.Import(&c.Peers[2], with(func(r *Route) { r.ASPath = []uint32{64512, 64512} }), ctx)
	require.False(t, v.Accept)
}

// TestShadowed resolves several peers on one address: explicit beats mesh, global beats node, the lowest name wins.
func TestShadowed(t *testing.T) {
	c := Config{Peers: []Peer{
		{Name: "Mesh_x", Type: PeerMesh, Source: "Node(x)", Address: addr("10.0.0.2")},
		{Name: "Node_x_port_1", Type: PeerNode, Source: "BGPPeer(a)", Address: addr("10.0.0.2"), Port: 1},
		{Name: "Global_x", Type: PeerGlobal, Source: "BGPPeer(b)", Address: addr("10.0.0.2")},
		{Name: "Global_x_port_1", Type: PeerGlobal, Source: "BGPPeer(c)", Address: addr("10.0.0.2"), Port: 1},
		{Name: "Mesh_y", Type: PeerMesh, Source: "Node(y)", Address: addr("10.0.0.3")},
	}}
	active := c.Active()
	require.Len(t, active, 2)
	require.Equal(t, "Global_x", active[0].Name)
	require.Equal(t, "Mesh_y", active[1].Name)
	by := "Global_x of BGPPeer(b)"
	shadowed := map[string]string{"Mesh_x": by, "Node_x_port_1": by, "Global_x_port_1": by}
	require.Equal(t, shadowed, c.Shadowed())

	c.Peers[2].WaitingFor = "Secret tor, key password"
	active = c.Active()
	require.Len(t, active, 1, "nobody else gets the address of a peer that waits")
	require.Equal(t, "Mesh_y", active[0].Name)
	require.Equal(t, shadowed, c.Shadowed())
}

func TestCompare(t *testing.T) {
	base := example().Peers[0]
	for _, row := range []struct {
		change func(*Peer)
		want   Change
		why    string
	}{
		{func(*Peer) {}, Unchanged, ""},
		{func(p *Peer) { p.Filters = []string{"x"} }, Unchanged, ""},
		{func(p *Peer) { p.NextHop = NextHopSelf }, Unchanged, ""},
		{func(p *Peer) { p.KeepaliveTime = time.Second }, Adjusted, ""},
		{func(p *Peer) { p.TTLSecurity = 1 }, Restarted, "TTL security"},
		{func(p *Peer) { p.Password = "x" }, Restarted, "password"},
		{func(p *Peer) { p.ASNumber++ }, Restarted, "remote AS"},
		{func(p *Peer) { p.Passive = true }, Adjusted, ""},
	} {
		next := base
		row.change(&next)
		got, why := Compare(&base, &next)
		require.Equal(t, row.want, got)
		require.Equal(t, row.why, why)
	}
}

func TestValidate(t *testing.T) {
	require.NoError(t, func() error { c := example(); return c.Validate() }())
	for want, spoil := range map[string]func(*Config){
		"router_id:":                            func(c *Config) { c.RouterID = addr("fd00::1") },
		"as_number:":                            func(c *Config) { c.ASNumber = 0 },
		"peers[Mesh_10_0_0_2].address: ":        func(c *Config) { c.Peers[0].Address = addr("fe80::1") },
		"peers[Mesh_10_0_0_3].name:":            func(c *Config) { c.Peers[0].Name = c.Peers[1].Name },
		"peers[Mesh_10_0_0_2].source_address: ": func(c *Config) { c.Peers[0].SourceAddress = addr("fd00::1") },
		"peers[Mesh_10_0_0_2].hold_time: ":      func(c *Config) { c.Peers[0].HoldTime = time.Second },
		"BGPFilter(f).importV4[0]: a range":     func(c *Config) { c.Filters[0].Import4[0].MinLength = 3 },
		"BGPFilter(f).importV4[0]: operations":  func(c *Config) { c.Filters[0].Import4[0].Operations = []bgp.Operation{{SetPriority: 1}} },
		"BGPFilter(f).exportV4[0]: prefix fd00": func(c *Config) { c.Filters[0].Export4[0].Prefix = prefix("fd00::/8") },
		"a reserved AS number that bird marks":  func(c *Config) { mark := tag(1, 1); c.Filters[0].Export4[1].Community = &mark },
	} {
		c := example()
		spoil(&c)
		require.ErrorContains(t, c.Validate(), want)
	}
}

// TestGolden shows a whole program. -update rewrites it.
func TestGolden(t *testing.T) {
	c := example()
	got := c.Compile(Context{Unreachable: []netip.Addr{addr("10.0.0.9")}, Drain: Draining}).String()
	const path = "testdata/example.golden"
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run with -update")
	require.Equal(t, string(want), got)
	require.Equal(t, []string{"BGPFilter(f).exportV4[2]: interface and priority are compared for this node's own routes only; routes from peers never match this rule"}, c.Warnings())
}

// TestSameFor tells which peers notice a change.
func TestSameFor(t *testing.T) {
	before := example()
	after := example()
	after.Filters[0].Export4[0].MinLength = 27
	a, b := before.Compile(Context{}), after.Compile(Context{})
	for _, p := range before.Active() {
		require.True(t, SameFor(a, b, p.Address, true), "what it is sent is written on the routes")
		require.False(t, SameFor(a, b, p.Address, false), "so what came in is judged again")
	}
	after = example()
	after.Filters[0].Import4[0].Operator = bgp.NotEqual
	b = after.Compile(Context{})
	for _, p := range before.Active() {
		require.Equal(t, p.Name != "Node_10_0_0_253", SameFor(a, b, p.Address, false), p.Name)
	}
}

func TestPattern(t *testing.T) {
	for _, row := range []struct {
		pattern, name string
		want          bool
	}{
		{"cali*", "cali123", true},
		{"cali*", "eth0", false},
		{"*.calico", "vxlan.calico", true},
		{"*", "", true},
		{"eth?", "eth0", true},
		{"eth?", "eth10", false},
		{"a*b*c", "axxbyyc", true},
		{"a*b*c", "axxbyy", false},
		{"", "", true},
		{"", "x", false},
	} {
		require.Equal(t, row.want, matchPattern(row.pattern, row.name), "%s %s", row.pattern, row.name)
	}
}

// TestAllPaths lists who is sent every path.
func TestAllPaths(t *testing.T) {
	plain, reflector := Config{ASNumber: 64512}, Config{ASNumber: 64512, ClusterID: addr("244.0.0.1")}
	for _, test := range []struct {
		name string
		c    Config
		p    Peer
		want bool
	}{
		{"client", reflector, Peer{Type: PeerNode, ASNumber: 64512, ReflectorClient: true}, true},
		{"fellow reflector", reflector, Peer{Type: PeerGlobal, ASNumber: 64512}, true},
		{"client that is shown this node as the next hop", reflector, Peer{Type: PeerNode, ASNumber: 64512, ReflectorClient: true, NextHop: NextHopSelf}, false},
		{"client with long-lived restart", reflector, Peer{Type: PeerNode, ASNumber: 64512, ReflectorClient: true, LongLivedStaleTime: time.Hour}, true},
		{"mesh", reflector, Peer{Type: PeerMesh, ASNumber: 64512, ReflectorClient: true}, false},
		{"iBGP without a reflector", plain, Peer{Type: PeerNode, ASNumber: 64512}, false},
		{"eBGP", reflector, Peer{Type: PeerNode, ASNumber: 65001}, false},
		{"eBGP that keeps next hops", plain, Peer{Type: PeerNode, ASNumber: 65001, NextHop: NextHopKeep}, true},
	} {
		assert.Equal(t, test.want, test.p.AllPaths(&test.c), test.name)
	}
}
