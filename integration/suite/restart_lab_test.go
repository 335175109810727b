//go:build lab

package suite

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestKilledProcesses: kill -9 of any process at any time, then start: the cluster converges to the same state, and an
// established connection between pods lives on all the while.
func TestKilledProcesses(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeDirect, lab.ModeVXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			l, topology := cluster(t, "killed", func(topo *lab.Topology) {
				if mode == lab.ModeVXLAN {
					topo.Pools[0].VXLANMode = "Always"
				}
			})
			expect(t, l, topology, mode)
			talk := converse(t, l, "pod-1", "pod-2")
			talk.goesOn(t, "at the beginning")

			victims := []struct{ node, process string }{
				{"master", lab.ProcessTypha},
				{"worker-1", lab.ProcessFelix},
				{"worker-2", lab.ProcessFelix},
				{"worker-1", lab.ProcessConfd},
				{"worker-1", lab.ProcessBird},
			}
			for _, v := range victims {
				ctx := within(t, 20*time.Second)
				require.NoError(t, l.Kill(ctx, v.node, v.process))
				talk.goesOn(t, v.process+" on "+v.node+" is down")
				require.NoError(t, l.Start(ctx, v.node, v.process))
				talk.goesOn(t, v.process+" on "+v.node+" is up again")
				expect(t, l, topology, mode)
			}

			// All at once.
			ctx := within(t, 20*time.Second)
			for _, v := range victims {
				require.NoError(t, l.Kill(ctx, v.node, v.process))
			}
			talk.goesOn(t, "all are down")
			for _, v := range victims {
				require.NoError(t, l.Start(ctx, v.node, v.process))
			}
			expect(t, l, topology, mode)
			talk.goesOn(t, "all are up again")

			// The cluster still does its work.
			_, err := l.PodAdd(within(t, 20*time.Second), lab.Pod{Name: "late", Node: "worker-1"})
			require.NoError(t, err)
			expect(t, l, topology, mode)
			require.NoError(t, l.PodDel(within(t, 20*time.Second), "late"))
		})
	}
}

// TestModeChange: the pool's mode changes while a connection is open; it lives on.
func TestModeChange(t *testing.T) {
	l, topology := cluster(t, "mode", nil)
	expect(t, l, topology, lab.ModeDirect)
	talk := converse(t, l, "pod-1", "pod-2")
	for _, change := range []struct {
		value string
		mode  lab.Mode
	}{{"Always", lab.ModeVXLAN}, {"CrossSubnet", lab.ModeVXLANCrossSubnet}, {"Never", lab.ModeDirect}} {
		_, err := l.Run(within(t, 20*time.Second), "master", "calicoctl", "patch", "ippool", topology.Pools[0].Name,
			"--patch", `{"spec":{"vxlanMode":"`+change.value+`"}}`)
		require.NoError(t, err)
		expect(t, l, topology, change.mode)
		talk.goesOn(t, "vxlanMode is "+change.value)
	}
}
