package render_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/render"
)

func TestPaths(t *testing.T) {
	four := func(change ...func(*api.IPPool)) view.Item { return pool("four", "10.77.0.0/16", change...) }
	six := func(change ...func(*api.IPPool)) view.Item { return pool("six", "fd00:77::/64", change...) }
	names := map[view.Tunnel]string{view.TunnelNone: "direct", view.TunnelIPIP: "ipip", view.TunnelVXLAN: "vxlan"}
	for name, c := range map[string]struct {
		world *world
		want  []string
	}{
		"no pools":           {base(), nil},
		"direct":             {base().add(four()), []string{"worker-2 10.30.0.56 direct 1500", "worker-3 10.30.1.66 direct 1500"}},
		"vxlan":              {base().add(four(vxlan(api.VXLANAlways))), []string{"worker-2 10.30.0.56 vxlan 1500", "worker-3 10.30.1.66 vxlan 1500"}},
		"vxlan cross-subnet": {base().add(four(vxlan(api.VXLANCrossSubnet))), []string{"worker-2 10.30.0.56 direct 1450", "worker-3 10.30.1.66 vxlan 1500"}},
		"ipip cross-subnet":  {base().add(four(ipip(api.IPIPCrossSubnet))), []string{"worker-2 10.30.0.56 direct 1480", "worker-3 10.30.1.66 ipip 1500"}},
		"the largest counts": {
			base().add(four(ipip(api.IPIPAlways)), pool("other", "10.78.0.0/16", vxlan(api.VXLANCrossSubnet)), pool("plain", "10.79.0.0/16")),
			[]string{"worker-2 10.30.0.56 ipip 1470", "worker-3 10.30.1.66 vxlan 1500"},
		},
		"a smaller MTU of pods": {
			base().add(four(vxlan(api.VXLANAlways)), config(func(c *api.FelixConfigurationSpec) { c.VXLANMTU = new(1300) })),
			[]string{"worker-2 10.30.0.56 vxlan 1350", "worker-3 10.30.1.66 vxlan 1350"},
		},
		"dual stack": {
			base().add(four(), six(vxlan(api.VXLANAlways))),
			[]string{
				"worker-2 10.30.0.56 direct 1430", "worker-3 10.30.1.66 direct 1430",
				"worker-2 fd00:30::56 vxlan 1500", "worker-3 fd00:31::66 vxlan 1500",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range render.Paths(c.world.state()) {
				got = append(got, fmt.Sprintf("%s %s %s %d", p.Node, p.Remote, names[p.By], p.Size))
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestTunnelPools(t *testing.T) {
	s := base().add(pool("b", "10.77.0.0/16", vxlan(api.VXLANAlways)), pool("a", "10.78.0.0/16", vxlan(api.VXLANCrossSubnet)), pool("c", "10.79.0.0/16")).state()
	require.Equal(t, map[view.Tunnel]string{view.TunnelVXLAN: "a"}, render.TunnelPools(s))
}
