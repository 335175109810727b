package route

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/desired"
)

func index(name string) int {
	return map[string]int{"cali1": 7, "vxlan.calico": 9, "eth0": 2, "eth1": 3}[name]
}

func name(i int) string {
	return map[int]string{7: "cali1", 9: "vxlan.calico", 2: "eth0", 3: "eth1"}[i]
}

func TestEncodeThenDecode(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	withSource := desired.WorkloadRoute(a("10.1.0.3"), "cali1", 3)
	withSource.Src = a("10.0.0.1")
	block, ok := desired.BlockBlackhole(p("10.1.0.0/26"))
	require.True(t, ok)
	for _, r := range []desired.Route{
		desired.WorkloadRoute(a("10.1.0.2"), "cali1", 3),
		desired.WorkloadRoute(a("fd00::2"), "cali1", 3),
		withSource,
		block,
		desired.VXLANRoute(p("10.1.1.0/26"), a("10.1.1.0"), "vxlan.calico", 1450, 3),
		desired.VXLANRoute(p("fd00:1::/122"), a("fd00:1::"), "vxlan.calico", 1430, 3),
		desired.VTEPRoute(a("10.9.9.9"), "vxlan.calico", 1450, 3),
		desired.DirectRoute(p("10.1.2.0/26"), a("192.168.0.7"), "eth0", 80),
		{Dst: p("0.0.0.0/0"), NextHops: []desired.NextHop{{Via: a("10.0.0.1"), Link: "eth0"}}, Protocol: 80, Table: 500},
		{Dst: p("10.2.0.0/16"), Kind: desired.Throw, Protocol: 80, Table: 7},
		{Dst: p("10.3.0.0/16"), Protocol: 80, Metric: 20, NextHops: []desired.NextHop{
			{Via: a("10.0.0.1"), Link: "eth0"}, {Via: a("10.0.1.1"), Link: "eth1", OnLink: true},
		}},
	} {
		want := normal(r)
		got, ok := decode(encode(want, index), name)
		require.True(t, ok, r)
		assert.True(t, want.Equal(got), "want %s\n got %s", want, got)
	}
}

func TestIPv6MetricZeroIs1024(t *testing.T) {
	k := desired.RouteKey{Table: desired.TableMain, Dst: netip.MustParsePrefix("fd00::/64")}
	assert.Equal(t, 1024, normalKey(k).Metric)
	k.Metric = 7
	assert.Equal(t, 7, normalKey(k).Metric)
	k = desired.RouteKey{Dst: netip.MustParsePrefix("10.0.0.0/8")}
	assert.Equal(t, 0, normalKey(k).Metric)
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(normal(desired.VXLANRoute(netip.MustParsePrefix("10.1.1.0/26"), netip.MustParseAddr("10.1.1.0"), "vxlan.calico", 1450, 3)), index))
	f.Add([]byte{2, 40, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 8, 0, 9, 0, 9, 0, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := decode(b, name)
		if !ok {
			return
		}
		_ = r.String()
		again, ok := decode(encode(r, index), name)
		if len(r.NextHops) == 1 && index(r.NextHops[0].Link) == 0 || len(r.NextHops) > 1 {
			return // a device that has no index cannot be written
		}
		if ok && again.Key() != r.Key() {
			t.Fatalf("%s became %s", r, again)
		}
	})
}
