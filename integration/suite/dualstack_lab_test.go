//go:build lab

package suite

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestDualStack: pods with an address of each family, and each family in a mode of its own, changed while the cluster lives.
// Everyone is probed over both families, and what is on the wire is as the mode says. Connections over IPv6 live on through all
// changes; no process is started again for them, and no pod replaced.
func TestDualStack(t *testing.T) {
	c := up(t, "suite-dual", lab.ModeDirect, func(topo *lab.Topology) {
		dual, err := lab.DualStackTopology()
		require.NoError(t, err)
		*topo = dual
		forceBPF(t, topo)
	})
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Pods {
		require.True(t, firstOf(p, false).IsValid() && firstOf(p, true).IsValid(), "%s has %v", p.ID, p.Addresses)
	}
	talks, bulk := c.converseOver(t, true, [2]string{"pod-1", "pod-2"}, [2]string{"pod-2", "pod-1"}), c.stream(t, "pod-1", "pod-2", true)
	lives := c.lives(t)
	for _, modes := range []struct {
		name   string
		v4, v6 lab.Mode
	}{
		{"as it comes up", c.topology.Pools[0].Mode(), c.topology.Pools[1].Mode()},
		{"IPv4 in IP-in-IP, IPv6 in VXLAN", lab.ModeIPIP, lab.ModeVXLAN},
		{"both direct", lab.ModeDirect, lab.ModeDirect},
		{"both across subnets only", lab.ModeIPIPCrossSubnet, lab.ModeVXLANCrossSubnet},
		{"IPv4 direct, IPv6 in VXLAN", lab.ModeDirect, lab.ModeVXLAN},
		{"IPv4 in VXLAN, IPv6 direct", lab.ModeVXLAN, lab.ModeDirect},
		{"both in VXLAN", lab.ModeVXLAN, lab.ModeVXLAN},
	} {
		t.Run(modes.name, func(t *testing.T) {
			ctx := within(t, 5*patience)
			talks.takeLongest()
			for i, mode := range []lab.Mode{modes.v4, modes.v6} {
				require.NoError(t, c.SetMode(ctx, c.topology.Pools[i].Name, mode))
				c.topology.Pools[i] = c.topology.Pools[i].WithMode(mode)
			}
			require.NoError(t, c.AwaitPools(within(t, patience), c.topology))
			talks.goOn(t, modes.name)
			bulk.goesOn(t, modes.name)
			t.Logf("longest wait for an answer over IPv6: %s", talks.takeLongest().Round(time.Millisecond))
			want, err := c.Expect(ctx, modes.v4)
			require.NoError(t, err)
			v4, err := c.Matrix(ctx, want)
			require.NoError(t, err)
			assert.Empty(t, v4.Wrong(want), "IPv4")
			want, err = c.Expect(ctx, modes.v6)
			require.NoError(t, err)
			v6, err := c.MatrixIPv6(ctx, want)
			require.NoError(t, err)
			assert.Empty(t, v6.Wrong(want), "IPv6")
			for _, cell := range v6.Cells {
				for _, seen := range cell.Seen {
					assert.True(t, seen.Outer.Src.Is6() && seen.Inner.Src.Is6(), "IPv6 travels over IPv6: %s", seen.Packet)
				}
			}
		})
	}
	assert.Equal(t, lives, c.lives(t), "a process was started again, or a pod replaced")
	c.awaitSessions(t)
}
