//go:build lab

package suite

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/integration/vm"
)

// knownTime is how long it may take until everybody knows what a node's kernel lacks, or lacks no more.
const knownTime = 30 * time.Second

// TestCapability: a node that has no IP-in-IP in a cluster with an IP-in-IP pool. Pool and node say so, no pod of that pool
// starts there, and all others work. With a pool that the node can serve everything is well again, and nobody was restarted.
// It needs a kernel without the module ipip: where this one has it, that is the second one, which is told not to load it.
func TestCapability(t *testing.T) {
	if kernelHasIPIP(t) {
		t.Log("this kernel has the module ipip: on to the second one, without it")
		guest := vm.Config{Without: []string{"ipip"}, Timeout: 40 * time.Minute}
		guest.Test(t, ".", "-test.run=^TestCapabilityWithoutModule$")
		return
	}
	testCapability(t)
}

// testCapability has a node want the module that this kernel lacks; the others do IP-in-IP in BPF.
func testCapability(t *testing.T) {
	require.False(t, kernelHasIPIP(t))
	const poor, poolName = "worker-2", "default-ipv4-ippool"
	const lack = "node worker-2: kernel has no ipip; pool default-ipv4-ippool wants ipipMode Always; load module ipip, or set vxlanMode"
	c := up(t, "suite-capability", lab.ModeIPIP, func(topo *lab.Topology) {
		topo.Pods = nil // that of the poor node could not start
		for i := range topo.Nodes {
			if topo.Nodes[i].Name == poor {
				topo.Nodes[i].Env = map[string]string{envDriver: driverKernel}
			}
		}
	})
	said := func(kind, name string) string {
		return c.run(t, "master", "calicoctl", "get", kind, name, "-o", "yaml")
	}
	lives := c.lives(t)
	began := time.Now()
	for _, object := range [][2]string{{"ippool", poolName}, {"node", poor}} {
		eventually(t, bound(knownTime), func() string {
			if out := said(object[0], object[1]); !strings.Contains(unfolded(out), "message: '"+lack+"'") {
				return object[0] + " " + object[1] + " does not tell:\n" + out
			}
			return ""
		})
		assert.Regexp(t, `(?s)reason: KernelLacksIPIP\s+status: "False"\s+type: DataplaneSupported`, said(object[0], object[1]))
	}
	t.Logf("told within %s of the cluster being up", time.Since(began).Round(time.Millisecond))
	assert.NotContains(t, said("node", "worker-1"), "DataplaneSupported", "only the node that lacks it")

	// Nothing is half-made of the pod that is refused.
	used := c.addressesInUse(t)
	before := c.settled(t)
	_, err := c.PodAdd(within(t, patience), lab.Pod{Name: "refused", Node: poor})
	require.ErrorContains(t, err, lack)
	c.awaitKernel(t, before, patience)
	eventually(t, patience, func() string {
		if now := c.addressesInUse(t); now != used {
			return now + " addresses are in use, not " + used
		}
		return ""
	})

	c.add(t, "pod-1", "worker-1")
	c.add(t, "pod-3", "worker-3")
	for _, way := range [][2]string{{"pod-1", "pod-3"}, {"pod-3", "pod-1"}, {"master", "pod-1"}} {
		eventually(t, patience, func() string {
			r, err := c.Probe(within(t, patience), lab.ProbeRequest{From: way[0], To: way[1]})
			if err != nil || r.Path != lab.PathIPIP {
				return fmt.Sprintf("%s to %s: %s %s %v", way[0], way[1], r.Path, r.Error, err)
			}
			return ""
		})
	}
	talks := c.converse(t, [2]string{"pod-1", "pod-3"})

	// What the message says to do helps.
	began = time.Now()
	c.apply(t, pool(poolName, "cidr: 192.168.0.0/16, vxlanMode: Always, natOutgoing: true"))
	for _, object := range [][2]string{{"ippool", poolName}, {"node", poor}} {
		eventually(t, bound(knownTime), func() string {
			if out := said(object[0], object[1]); strings.Contains(out, "DataplaneSupported") {
				return object[0] + " " + object[1] + " still complains:\n" + out
			}
			return ""
		})
	}
	t.Logf("the conditions went within %s", time.Since(began).Round(time.Millisecond))
	c.addInTime(t, "pod-2", poor)
	c.mode = lab.ModeVXLAN
	c.reachable(t)
	talks.goOn(t, "the pool is a VXLAN one")

	// And back: a pod that is there already stays, which nobody can help; the rest is as at first.
	require.NoError(t, c.SetMode(within(t, patience), poolName, lab.ModeIPIP))
	for _, object := range [][2]string{{"ippool", poolName}, {"node", poor}} {
		eventually(t, bound(knownTime), func() string {
			if out := said(object[0], object[1]); !strings.Contains(unfolded(out), lack) {
				return object[0] + " " + object[1] + " does not tell:\n" + out
			}
			return ""
		})
	}
	_, err = c.PodAdd(within(t, patience), lab.Pod{Name: "refused", Node: poor})
	require.ErrorContains(t, err, lack)
	talks.goOn(t, "the pool is an IP-in-IP one again")
	assert.Subset(t, c.lives(t), lives, "a process was started again")
}

// unfolded joins what YAML writes on several lines.
func unfolded(yaml string) string { return strings.Join(strings.Fields(yaml), " ") }

// without is a topology without a node.
func without(topo lab.Topology, node string) lab.Topology {
	var left []lab.Node
	for _, n := range topo.Nodes {
		if n.Name != node {
			left = append(left, n)
		}
	}
	topo.Nodes = left
	return topo
}
