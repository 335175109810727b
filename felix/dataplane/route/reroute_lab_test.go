//go:build lab

package route_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/route"
	"github.com/muslin-net/muslin/felix/desired"
)

// TestDirectBecomesVXLAN: a route through a tunnel whose far end is in the route's own block takes the place of a direct one,
// and the other way round, in both families and with several blocks of one node.
func TestDirectBecomesVXLAN(t *testing.T) {
	ns := node(t)
	ns.Run(t, `ip link add vxlan-v6.calico type veth peer name far; ip link set vxlan-v6.calico up; ip link set far up
		ip -6 addr add fd00:1::1/128 dev vxlan-v6.calico nodad`)
	tab := open(t, route.Config{})
	blocks := []string{"fd00:2::/122", "fd00:3::/122", "10.1.2.0/26"}
	direct := func(block string) desired.Route {
		if p := prefix(block); p.Addr().Is4() {
			return desired.DirectRoute(p, ip("192.168.9.7"), "eth0", 80)
		}
		return desired.DirectRoute(prefix(block), ip("fd09::7"), "eth0", 80)
	}
	tunnelled := func(block string) desired.Route {
		r := direct(block)
		far := ip("fd00:3::5") // in one of the node's blocks, for all of them
		if r.Dst.Addr().Is4() {
			far = ip("10.1.2.5")
		}
		r.NextHops = []desired.NextHop{{Via: far, Link: "vxlan-v6.calico", OnLink: true}}
		return r
	}
	for i, kind := range []func(string) desired.Route{direct, tunnelled, direct, tunnelled} {
		var want []desired.Route
		for _, b := range blocks {
			want = append(want, kind(b))
		}
		tab.Update(set(want...))
		require.NoError(t, tab.Apply(context.Background()), "change %d", i)
		written := tab.Writes()
		tab.Resync()
		require.NoError(t, tab.Apply(context.Background()))
		assert.Equal(t, written, tab.Writes(), "what is there is what was wanted:\n%s", ns.Run(t, "ip -6 route"))
	}
	assert.Contains(t, ns.Run(t, "ip -6 route"), "fd00:2::/122 via fd00:3::5 dev vxlan-v6.calico")
}
