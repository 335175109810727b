//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/integration/vm"
)

// envBPF names nodes, with commas between them, that are to do IP-in-IP in BPF although their kernel has a device for it. So
// one run can have both kinds talk to each other.
const envBPF = "MUSLIN_IPIP_BPF"

// What tells felix of a node how to do IP-in-IP.
const envDriver, driverBPF, driverKernel = "FELIX_IPIPDRIVER", "BPF", "Kernel"

// forceBPF makes felix of the nodes in envBPF use its BPF driver.
func forceBPF(t *testing.T, topo *lab.Topology) {
	t.Helper()
	for name := range strings.FieldsFuncSeq(os.Getenv(envBPF), func(r rune) bool { return r == ',' }) {
		i := slices.IndexFunc(topo.Nodes, func(n lab.Node) bool { return n.Name == name })
		require.GreaterOrEqual(t, i, 0, "%s names %q, which is no node", envBPF, name)
		topo.Nodes[i].Env = map[string]string{envDriver: driverBPF}
	}
}

// TestModes: the whole table of modes, in a network that checks sources and destinations and in one that does not, from a pool
// that nobody configured. It is what bin/lab walkthrough shows. IP-in-IP is done by what the node's kernel has or the test asks
// for, and where all packets travel in a tunnel, it takes none from others than nodes.
func TestModes(t *testing.T) {
	c := up(t, "suite-modes", lab.ModeDirect, func(topo *lab.Topology) {
		topo.Pools = nil
		forceBPF(t, topo)
	})
	pools, err := c.Pools(within(t, patience))
	require.NoError(t, err)
	require.Len(t, pools, 1)
	assert.Equal(t, lab.ModeIPIP, pools[0].Mode(), "what node start-up makes with nothing set")
	table, err := c.Table(within(t, patience))
	require.NoError(t, err)
	for _, row := range lab.Rows() {
		t.Run(row.Title(), func(t *testing.T) {
			took, err := table.Enter(within(t, 3*time.Minute), row, nil)
			require.NoError(t, err)
			seen, err := table.Observe(within(t, 3*time.Minute), row)
			require.NoError(t, err)
			assert.Empty(t, row.Wrong(seen))
			t.Logf("routes after %s: %s; %s; %s", took.Round(time.Millisecond), seen.Same.Fate(), seen.Other.Fate(), seen.OtherRoute)
			switch row.Mode {
			case lab.ModeIPIP:
				c.tunl0OfTheRightKind(t)
				c.guarded(t, lab.EncapIPIP)
			case lab.ModeIPIPCrossSubnet:
				c.tunl0OfTheRightKind(t)
			case lab.ModeVXLAN:
				c.guarded(t, lab.EncapVXLAN)
			}
		})
	}
	require.NoError(t, c.SetBackend(within(t, 3*time.Minute), lab.BackendBird))
	c.awaitSessions(t)
}

// TestModeChanges: from each mode to each other one while connections are open, some of small messages, which tell how long they
// wait, and one of full-size packets, for which pods' MTU changes on the way. None is lost, and none waits long; no process is
// started again for it, and no pod replaced. The second kernel is slow, and there for tunl0: of what does without it there is
// one of each kind, and full-size packets would keep its one processor from everything else.
func TestModeChanges(t *testing.T) {
	c := up(t, "suite-mode-changes", lab.ModeDirect, func(topo *lab.Topology) { forceBPF(t, topo) })
	c.teachRouter(t)
	talks := c.converse(t, [2]string{"pod-1", "pod-2"}, [2]string{"pod-2", "pod-1"}, [2]string{"pod-1", "pod-3"}, [2]string{"pod-3", "pod-1"})
	pool := c.topology.Pools[0].Name
	var longest time.Duration
	var bulk *stream
	modes := lab.Modes()
	if vm.Inside() {
		modes = []lab.Mode{lab.ModeDirect, lab.ModeIPIP, lab.ModeVXLAN}
	} else {
		bulk = c.stream(t, "pod-1", "pod-3", false)
	}
	lives := c.lives(t)
	for _, to := range tour(modes) {
		change := string(c.mode) + " to " + string(to)
		talks.takeLongest()
		began := time.Now()
		require.NoError(t, c.SetMode(within(t, patience), pool, to))
		require.NoError(t, c.AwaitRoutes(within(t, patience), c.topology, to), change)
		took := time.Since(began)
		c.mode = to
		talks.goOn(t, change)
		gap := talks.takeLongest()
		longest = max(longest, gap)
		t.Logf("%-40s routes after %4d ms, longest wait for an answer %3d ms", change, took.Milliseconds(), gap.Milliseconds())
		assert.Less(t, gap, bound(longestGap), change)
		c.sized(t, 1500, overhead[to])
		if bulk != nil {
			bulk.goesOn(t, change)
		}
		c.travels(t, "pod-2", to)
		c.travels(t, "pod-3", to)
	}
	t.Logf("longest wait of all: %s", longest.Round(time.Millisecond))
	assert.Equal(t, lives, c.lives(t), "a process was started again, or a pod replaced")
}

// lives is what tells each process and each pod from one that took its place: how often it was started; its namespace and
// interface.
func (c *cluster) lives(t *testing.T) map[string]string {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	all := map[string]string{}
	for _, p := range st.Processes {
		all[p.Name+" on "+p.Node] = fmt.Sprintf("started %d times", p.Starts)
	}
	for _, p := range st.Pods {
		all["pod "+p.ID] = c.sh(t, p.ID, `readlink /proc/self/ns/net
			ip -o link show eth0 | sed -E 's/^([0-9]+: [^ ]+) .*(link.ether [^ ]+) .*/\1 \2/'`)
	}
	return all
}

// teachRouter tells the router of the pods, as a network does that takes part in their routing: so a direct pool too reaches
// the other subnet, and a connection that goes there can live on through all modes.
func (c *cluster) teachRouter(t *testing.T) {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Pods {
		i := slices.IndexFunc(st.Nodes, func(n lab.NodeStatus) bool { return n.Name == p.Node })
		block, err := p.Addresses[0].Prefix(c.topology.Pools[0].BlockSize)
		require.NoError(t, err)
		c.run(t, "router", "ip", "route", "add", block.String(), "via", st.Nodes[i].Addresses[0].String())
	}
}

// travels requires that packets from pod-1 to a pod travel as the mode says, where the router knows the pods.
func (c *cluster) travels(t *testing.T, pod string, mode lab.Mode) {
	t.Helper()
	want, err := c.Expect(within(t, patience), mode)
	require.NoError(t, err)
	path := want("pod-1", pod)
	if path == lab.PathNone {
		path = lab.PathDirect
	}
	got, err := c.Probe(within(t, patience), lab.ProbeRequest{From: "pod-1", To: pod, Timeout: lab.AnswerPatience})
	require.NoError(t, err)
	assert.Equal(t, path, got.Path, "pod-1 to %s, %s: %s %s", pod, mode, got.Error, got.Sample)
}

// tour visits modes one after the other, beginning and ending at the first, so that each change of one to another is in it
// exactly once.
func tour(modes []lab.Mode) []lab.Mode {
	left := map[lab.Mode][]lab.Mode{}
	for _, from := range modes {
		for _, to := range modes {
			if from != to {
				left[from] = append(left[from], to)
			}
		}
	}
	// Hierholzer: follow changes that are left until stuck, and close each circle on the way back.
	var circle []lab.Mode
	way := []lab.Mode{modes[0]}
	for len(way) > 0 {
		at := way[len(way)-1]
		if next := left[at]; len(next) > 0 {
			left[at] = next[1:]
			way = append(way, next[0])
			continue
		}
		circle = append(circle, at)
		way = way[:len(way)-1]
	}
	slices.Reverse(circle)
	return circle[1:]
}

func TestTour(t *testing.T) {
	modes := lab.Modes()
	seen := map[[2]lab.Mode]bool{}
	at := modes[0]
	for _, to := range tour(modes) {
		assert.NotEqual(t, at, to)
		seen[[2]lab.Mode{at, to}] = true
		at = to
	}
	assert.Len(t, seen, len(modes)*(len(modes)-1))
	assert.Len(t, tour(modes), len(seen))
}

// firstOf returns a pod's address of a family.
func firstOf(p lab.PodStatus, v6 bool) netip.Addr {
	for _, a := range p.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}
