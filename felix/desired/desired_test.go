package desired

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDelta(t *testing.T) {
	var d Delta[string, int]
	assert.True(t, d.Empty())
	d.Put("a", 1)
	d.Remove("b")
	var later Delta[string, int]
	later.Put("b", 2)
	later.Remove("a")
	d.Merge(later)
	assert.Equal(t, map[string]int{"b": 2}, d.Set)
	assert.Equal(t, map[string]struct{}{"a": {}}, d.Removed)

	eq := func(a, b int) bool { return a == b }
	d = Diff(map[string]int{"same": 1, "changed": 1, "gone": 1}, map[string]int{"same": 1, "changed": 2, "new": 3}, eq)
	assert.Equal(t, map[string]int{"changed": 2, "new": 3}, d.Set)
	assert.Equal(t, map[string]struct{}{"gone": {}}, d.Removed)
}

func TestMAC(t *testing.T) {
	m, err := ParseMAC("66:0a:1b:2c:3d:4e")
	require.NoError(t, err)
	assert.Equal(t, "66:0a:1b:2c:3d:4e", m.String())
	m, err = ParseMAC("")
	require.NoError(t, err)
	assert.True(t, m.IsZero())
	for _, bad := range []string{"66:0a:1b:2c:3d", "66:0a:1b:2c:3d:4", "66:0a:1b:2c:3d:gg", "660a1b2c3d4e", "66:0a:1b:2c:3d:4e:5f"} {
		_, err := ParseMAC(bad)
		assert.ErrorContains(t, err, bad)
	}
}

func FuzzParseMAC(f *testing.F) {
	f.Add("66:0a:1b:2c:3d:4e")
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := ParseMAC(s); err == nil && !m.IsZero() {
			again, err := ParseMAC(m.String())
			require.NoError(t, err)
			require.Equal(t, m, again)
		}
	})
}

func TestRoutesPrintAsTheKernelsTools(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	hole, ok := BlockBlackhole(p("10.1.0.5/26"))
	require.True(t, ok)
	_, ok = BlockBlackhole(p("10.1.0.5/32"))
	assert.False(t, ok, "a block of one address gets none")
	for want, r := range map[string]Route{
		"10.1.0.1/32 dev cali1 proto 3 scope link metric 1024":                    WorkloadRoute(a("10.1.0.1"), "cali1", 3),
		"blackhole 10.1.0.0/26 proto 80":                                          hole,
		"10.1.1.0/26 via 10.1.1.0 dev vxlan.calico onlink proto 3 mtu 1450":       VXLANRoute(p("10.1.1.0/26"), a("10.1.1.0"), VXLANDevice4, 1450, 3),
		"10.9.9.9/32 dev vxlan.calico proto 3 scope link mtu 1450":                VTEPRoute(a("10.9.9.9"), VXLANDevice4, 1450, 3),
		"10.1.2.0/26 via 192.168.0.7 dev eth0 onlink proto 80":                    DirectRoute(p("10.1.2.0/26"), a("192.168.0.7"), "eth0", 80),
		"throw 10.0.0.0/8 table 7 proto 80 src 10.0.0.1":                          {Dst: p("10.0.0.0/8"), Kind: Throw, Table: 7, Protocol: 80, Src: a("10.0.0.1")},
		"::/0 nexthop via fd00::1 dev eth0 nexthop via fd00::2 dev eth1 proto 80": {Dst: p("::/0"), Protocol: 80, NextHops: []NextHop{{Via: a("fd00::1"), Link: "eth0"}, {Via: a("fd00::2"), Link: "eth1"}}},
	} {
		assert.Equal(t, want, r.String())
	}
	two := Route{Dst: p("::/0"), NextHops: []NextHop{{Link: "a"}, {Link: "b"}}}
	swapped := Route{Dst: p("::/0"), Table: TableMain, NextHops: []NextHop{{Link: "b"}, {Link: "a"}}}
	assert.True(t, two.Equal(swapped), "the order of next hops and the name of the main table do not matter")
}

func TestWorkloadSysctls(t *testing.T) {
	l := WorkloadLink{Name: "cali1", IPv4: true, IPv6: true}
	values := map[string]string{}
	for _, s := range l.Sysctls(2) {
		values[s.Path] = s.Value
	}
	assert.Equal(t, map[string]string{
		"net/ipv4/conf/cali1/route_localnet": "1", "net/ipv4/neigh/cali1/proxy_delay": "0", "net/ipv4/conf/cali1/proxy_arp": "1",
		"net/ipv4/conf/cali1/forwarding": "1", "net/ipv4/conf/cali1/rp_filter": "2",
		"net/ipv6/conf/cali1/proxy_ndp": "1", "net/ipv6/conf/cali1/forwarding": "1", "net/ipv6/conf/cali1/accept_ra": "0",
	}, values)
	l.AllowSpoofing = true
	for _, s := range l.Sysctls(2) {
		if s.Path == "net/ipv4/conf/cali1/rp_filter" {
			assert.Equal(t, "0", s.Value)
		}
	}
}

func TestSettingsEqual(t *testing.T) {
	a := Settings{WorkloadPrefixes: []string{"cali"}, NATOutgoing: &NATOutgoing{}}
	b := Settings{WorkloadPrefixes: []string{"cali"}, NATOutgoing: &NATOutgoing{}}
	assert.True(t, a.Equal(b))
	b.NATOutgoing.ExcludeHosts = true
	assert.False(t, a.Equal(b))
	b.NATOutgoing = nil
	assert.False(t, a.Equal(b))
}
