//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/integration/lab"
)

// six makes six nodes of both families in one subnet and three zones of a topology, with a pod on each worker, and kube-controllers that do
// not wait for long.
func six(t *lab.Topology) {
	left := &t.Subnets[0]
	left.Prefixes, left.Gateways = append(left.Prefixes, netip.MustParsePrefix("fd00:30::/64")), append(left.Gateways, netip.MustParseAddr("fd00:30::1"))
	t.Pools = append(t.Pools, lab.NewPool(netip.MustParsePrefix("fd00:192::/48")))
	t.Nodes, t.Pods = t.Nodes[:1], nil
	master := &t.Nodes[0]
	master.Addresses = append(master.Addresses, netip.MustParseAddr("fd00:30::10"))
	master.Env = map[string]string{"REFLECTOR_OVERLAP": "4s", "REFLECTOR_LOST": "2s"}
	for i := 1; i < 6; i++ {
		name := fmt.Sprintf("worker-%d", i)
		t.Nodes = append(t.Nodes, lab.Node{
			Name: name, Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.30.0.%d", 20+i)), netip.MustParseAddr(fmt.Sprintf("fd00:30::%d", 20+i))}, Zone: fmt.Sprintf("zone-%d", i%3),
			Interface: master.Interface, Speaker: master.Speaker, Processes: []string{lab.ProcessStartup, lab.ProcessBird, lab.ProcessFelix, lab.ProcessConfd},
		})
		t.Pods = append(t.Pods, lab.Pod{Name: fmt.Sprintf("pod-%d", i), Namespace: "default", Node: name})
	}
}

// reflection is what stands in for the mesh.
type reflection struct {
	Mesh       bool
	Reflectors []string
}

func (c *cluster) reflection(t *testing.T) *reflection {
	t.Helper()
	var config struct {
		Status struct{ Reflection *reflection }
	}
	require.NoError(t, yaml.Unmarshal([]byte(c.run(t, "master", "calicoctl", "get", "bgpconfiguration", "default", "-o", "yaml")), &config))
	return config.Status.Reflection
}

// awaitReflection waits until what stands in for the mesh is as it should be, and each node has the sessions that it needs.
func (c *cluster) awaitReflection(t *testing.T, what string, ok func(*reflection) bool, without ...string) *reflection {
	t.Helper()
	var r *reflection
	took := eventually(t, 2*patience, func() string {
		if r = c.reflection(t); !ok(r) {
			return fmt.Sprintf("%s: %+v", what, r)
		}
		return ""
	})
	for _, n := range c.topology.Nodes {
		if slices.Contains(without, n.Name) {
			continue
		}
		want := 0
		for _, o := range c.topology.Nodes {
			if o.Name != n.Name && (r == nil || r.Mesh || slices.Contains(r.Reflectors, n.Name) || slices.Contains(r.Reflectors, o.Name)) &&
				!slices.Contains(without, o.Name) {
				want += len(n.Addresses)
			}
		}
		eventually(t, patience, func() string {
			out, err := c.Run(within(t, patience), n.Name, "calicoctl", "node", "status")
			if got := strings.Count(out, "Established"); err != nil || got != want {
				return fmt.Sprintf("%s: %s has %d sessions, not %d (%v):\n%s", what, n.Name, got, want, err, out)
			}
			return ""
		})
	}
	t.Logf("%s: %+v, after %s", what, r, took.Round(100*time.Millisecond))
	return r
}

// TestReflectors takes a cluster from the mesh to reflectors, kills one of them, and goes back to the mesh, under traffic:
// no packet is lost, and no route is missing on any node at any time.
func TestReflectors(t *testing.T) {
	c := up(t, "suite-reflectors", lab.ModeDirect, six)
	talks, watch := c.converse(t, [2]string{"pod-1", "pod-2"}, [2]string{"pod-4", "pod-3"}), c.watchRoutes(t)
	var streams []*beats
	for _, p := range [][2]string{{"pod-1", "pod-5"}, {"pod-2", "pod-3"}, {"pod-5", "pod-4"}} {
		to := c.pod(t, p[1])
		streams = append(streams, c.beats(t, p[0], firstOf(to, false)), c.beats(t, p[0], firstOf(to, true)))
	}
	configure := func(mode string, minNodes int) {
		c.apply(t, strings.NewReplacer("Auto", mode, "50", itoa(minNodes), "count: 3", "count: 2").Replace(example(t, "reflectors-auto.yaml")))
	}
	configure("Auto", 7)
	c.awaitReflection(t, "too few nodes", func(r *reflection) bool { return r != nil && r.Mesh && len(r.Reflectors) == 0 })
	configure("Auto", 6)
	c.awaitReflection(t, "two reflect beside the mesh", func(r *reflection) bool { return r != nil && r.Mesh && len(r.Reflectors) == 2 })
	first := c.awaitReflection(t, "the mesh is gone", func(r *reflection) bool { return r != nil && !r.Mesh && len(r.Reflectors) == 2 })
	talks.goOn(t, "there are reflectors")
	for _, n := range c.topology.Nodes {
		assert.NotContains(t, c.sh(t, n.Name, "ip route"), "nexthop", "several reflectors' words for one way are one way")
	}
	watch.noGap(t, 0)
	c.reachable(t)

	lost := first.Reflectors[0]
	if lost == "master" { // with the datastore on it
		lost = first.Reflectors[1]
	}
	controllers := victim{"master", lab.ProcessControllers} // they die first; who comes after waits until their lease is over
	c.kill(t, controllers)
	processes := []string{lab.ProcessBird, lab.ProcessFelix, lab.ProcessConfd}
	for _, p := range processes {
		c.kill(t, victim{lost, p})
	}
	c.start(t, controllers)
	second := c.awaitReflection(t, "another one reflects", func(r *reflection) bool {
		return r != nil && !r.Mesh && len(r.Reflectors) == 2 && !slices.Contains(r.Reflectors, lost)
	}, lost)
	talks.goOn(t, "one was lost")
	for _, p := range processes {
		c.start(t, victim{lost, p})
	}
	c.awaitReady(t, lost)
	again := c.awaitReflection(t, "it is back, and reflects no more", func(r *reflection) bool { return r != nil && !r.Mesh })
	assert.Equal(t, second, again)
	watch.noGap(t, 0)

	configure("Manual", 6)
	c.awaitReflection(t, "the mesh is back", func(r *reflection) bool { return r == nil })
	c.reachable(t)
	talks.goOn(t, "in the mesh")
	talks.wereSmooth(t, longestGap)
	watch.noGap(t, 0)
	for _, s := range streams {
		s.lostNone(t, "from the mesh to reflectors and back")
	}
}
