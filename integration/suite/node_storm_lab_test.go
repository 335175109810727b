//go:build lab

package suite

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/lab"
)

// envNodeStorm says for how long the nodes are under the storm, if not for nodeStorm: in any case until felix has died felixDeaths
// times.
const (
	envNodeStorm = "MUSLIN_NODE_STORM"
	nodeStorm    = 45 * time.Second
	felixDeaths  = 100
)

const (
	// stormMoment bounds the random time until the next processes die: from nothing to more than a whole start takes.
	stormMoment = 600 * time.Millisecond
	// stormPort is what no version of any policy of the storm ever allows. Conversations have 7000 and the following.
	stormPort = 7700
)

// stormTurns are the labels that pods of the storm take on one after the other. Each is under a policy of its own, and all of
// these say the same: whoever is between two of them would be under none.
var stormTurns = []string{"!has(turn)", "turn == 'a'", "turn == 'b'", "turn == 'c'"}

// stormModes are those of the pool of whoever talks: over all of them each pod reaches each other one.
var stormModes = []lab.Mode{lab.ModeVXLAN, lab.ModeIPIP, lab.ModeVXLANCrossSubnet, lab.ModeIPIPCrossSubnet}

// TestNodeStorm: on eight nodes, half of them with each rule driver, felix, bird, confd, calico-node and typha are killed at
// random moments while pods and pools come and go, pools change their mode, pods' labels change, and policies change. What policy
// never allows never arrives at a pod, not one packet; what is established and was never forbidden is never cut; and at the end
// the kernels hold what felix and typha program from nothing. Meanwhile etcd, typha and felix freeze, nodes are cut off from typha, and
// etcd is killed, compacted and full.
func TestNodeStorm(t *testing.T) {
	lasts := lasting(t, envNodeStorm, nodeStorm)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := up(t, "storm", lab.ModeVXLAN, eightNodes)
	for i, n := range c.topology.Nodes {
		c.awaitRules(t, n.Name, stormDriver(i))
	}
	for i, selector := range stormTurns {
		c.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: storm-turn-%d}
spec:
  order: 1000
  selector: "%s"
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, destination: {ports: ["7000:7099"]}}]
`, i, selector))
	}
	pairs := c.stormPairs()
	talks := c.converse(t, pairs...)
	random := rand.New(rand.NewPCG(seed, 1))
	c.change(t, random, 0)
	for _, p := range pairs { // where nothing listens and nothing is forbidden, a connection is refused at once
		to := netip.AddrPortFrom(c.address(t, p[1]), stormPort-1)
		eventually(t, patience, func() string {
			ctx, cancel := context.WithTimeout(t.Context(), bound(time.Second))
			defer cancel()
			if _, err := c.Dial(ctx, p[0], to); errors.Is(err, syscall.ECONNREFUSED) {
				return "policy is not there yet from " + p[0] + " to " + p[1]
			}
			return ""
		})
	}
	forbidden := c.tryForbidden(t, pairs)
	churning := c.churn(t, "worker-1", "worker-2", "worker-4", "worker-7")
	pools := c.churnPools(t, rand.New(rand.NewPCG(seed, 2)))
	troubles := c.trouble(t, rand.New(rand.NewPCG(seed, 3)))
	died := map[string]int{}
	deck := c.stormVictims()
	for i, end := 0, time.Now().Add(lasts); time.Now().Before(end) || died[lab.ProcessFelix] < felixDeaths; {
		moment := time.NewTimer(time.Duration(random.Int64N(int64(bound(stormMoment)))))
		<-moment.C
		if i%len(deck) == 0 { // each of them dies before one does again
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		next := deck[i%len(deck):]
		next = next[:min(1+random.IntN(3), len(next))]
		i += len(next)
		var together []victim
		for _, v := range next {
			if !slices.Contains(together, v) {
				c.strike(t, random, v)
				died[v.process]++
				together = append(together, v)
			}
		}
		if random.IntN(2) == 0 { // what changes while they are away
			c.change(t, random, i%stormPolicies)
		}
		for _, v := range together {
			c.start(t, v)
		}
		if random.IntN(2) == 0 { // and while they start
			c.change(t, random, i%stormPolicies)
		}
	}
	pools.end()
	troubles.end()
	for _, n := range c.topology.Nodes {
		c.awaitReady(t, n.Name)
	}
	churning.awaitMore(t, 3)
	churning.end()
	eventually(t, patience, talks.haveTalked())
	talks.goOn(t, "after the storm")
	forbidden.end()
	t.Logf("deaths: %v; troubles: %s; %d pods came or went, pools changed %d times; %d packets and %d connections that policy forbids were tried; a conversation waited %v at most",
		died, troubles, churning.total(), pools.total(), forbidden.packets.Load(), forbidden.connections.Load(), talks.takeLongest())
	assert.Positive(t, forbidden.packets.Load())
	assert.Positive(t, forbidden.connections.Load())
	assert.Empty(t, forbidden.leaks(), "what policy never allows has arrived")
	c.awaitStored(t)
	c.asFromNothing(t)
}

// stormPolicies is how many policies come and change in a storm.
const stormPolicies = 60

// stormDriver is the mode of the rule driver of the nth node.
func stormDriver(n int) string {
	if n%2 == 0 {
		return ruleDrivers["nftables"]
	}
	return ruleDrivers["iptables"]
}

// eightNodes adds as many nodes as there are, and has both rule drivers in each subnet. On all of them calico-node follows the
// node's address. Users reach the datastore also while typha is away.
func eightNodes(topo *lab.Topology) {
	onEtcd(topo)
	for i, address := range []string{"10.30.0.60", "10.30.0.61", "10.30.1.62", "10.30.1.63"} {
		name := "worker-" + itoa(4+i)
		topo.Nodes = append(topo.Nodes, lab.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(address)}})
		topo.Pods = append(topo.Pods, lab.Pod{Name: "pod-" + itoa(4+i), Node: name})
	}
	topo.Pods = append(topo.Pods, lab.Pod{Name: "near", Node: "worker-1"})
	*topo = topo.WithDefaults()
	for i := range topo.Nodes {
		n := &topo.Nodes[i]
		n.Processes = append(n.Processes, lab.ProcessMonitor)
		n.Env = map[string]string{"FELIX_NFTABLESMODE": stormDriver(i)}
	}
}

// stormPairs is a ring of all pods: between nodes of either rule driver, in one subnet and two, and on one node.
func (c *cluster) stormPairs() (pairs [][2]string) {
	pods := c.topology.Pods
	for i, p := range pods {
		pairs = append(pairs, [2]string{p.Name, pods[(i+1)%len(pods)].Name})
	}
	return pairs
}

// stormVictims are all processes of all nodes, of which felix has most to lose and dies as often as all others; and typha twice, of
// which there is one.
func (c *cluster) stormVictims() (all []victim) {
	all = append(all, typha, typha)
	for _, n := range c.topology.Nodes {
		for _, process := range []string{lab.ProcessBird, lab.ProcessConfd, lab.ProcessStartup, lab.ProcessMonitor} {
			all = append(all, victim{n.Name, process}, victim{n.Name, lab.ProcessFelix})
		}
	}
	return all
}

// strike kills a process. The one that registers the node has ended long ago: it is made to begin anew first.
func (c *cluster) strike(t *testing.T, random *rand.Rand, v victim) {
	t.Helper()
	if v.process == lab.ProcessStartup {
		c.start(t, v)
		moment := time.NewTimer(time.Duration(random.Int64N(int64(bound(stormMoment / 4)))))
		<-moment.C
	}
	c.kill(t, v)
}

// churnPools begins to change the mode of the pool and whether what leaves it is translated, and to make and delete another pool,
// of any mode, which new pods take their addresses from. When it ends the pool has a mode of stormModes, and the other one is
// gone though pods have addresses of it.
func (c *cluster) churnPools(t *testing.T, random *rand.Rand) *churn {
	t.Helper()
	const other = "another"
	main := c.topology.Pools[0].Name
	ctx, cancel := context.WithCancel(t.Context())
	ch := &churn{stop: cancel}
	t.Cleanup(ch.end)
	say := func(args ...string) error {
		return inTime(func() error {
			_, err := c.Run(within(t, patience), "master", append([]string{"calicoctl"}, args...)...)
			return err
		})
	}
	there := false
	turn := func() error {
		switch random.IntN(4) {
		case 0:
			return say("patch", "ippool", main, "--patch", fmt.Sprintf(`{"spec":{"natOutgoing":%t}}`, random.IntN(2) == 0))
		case 1:
			mode := stormModes[random.IntN(len(stormModes))]
			c.topology.Pools[0] = c.topology.Pools[0].WithMode(mode)
			c.mode = mode
			return inTime(func() error { return c.SetMode(within(t, patience), main, mode) })
		}
		if there = !there; !there {
			return say("delete", "ippool", other, "--skip-not-exists") // it may be gone though nobody was told
		}
		ipip, vxlan := lab.Modes()[random.IntN(len(lab.Modes()))].Fields()
		doc := fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: %s}
spec: {cidr: 172.20.%d.0/24, blockSize: 28, ipipMode: %s, vxlanMode: %s}
`, other, random.IntN(3), ipip, vxlan)
		return inTime(func() error { return c.applies(t, doc) })
	}
	ch.all.Go(func() {
		for ctx.Err() == nil {
			if err := turn(); err != nil {
				t.Errorf("a user changed pools: %v", err)
				return
			}
			ch.count()
			await(ctx, time.Duration(random.Int64N(int64(bound(8*stormMoment))))) // the pace of users; nothing waits for it
		}
		if there {
			if err := say("delete", "ippool", other, "--skip-not-exists"); err != nil {
				t.Errorf("a user deleted a pool: %v", err)
			}
		}
	})
	return ch
}

// asFromNothing requires, of a cluster at rest, that the kernels hold what is programmed by those who have no past: felix with
// nothing in the kernel and no view saved, and a typha that computes everything anew.
func (c *cluster) asFromNothing(t *testing.T) {
	t.Helper()
	c.awaitSessions(t)
	require.NoError(t, c.AwaitPools(within(t, patience), c.topology))
	var before kernel
	eventually(t, 2*patience, func() string {
		before = c.settled(t)
		return before.passing(overhead[c.mode].device)
	})
	for _, n := range c.topology.Nodes {
		c.kill(t, victim{n.Name, lab.ProcessFelix})
	}
	c.kill(t, typha)
	for _, n := range c.topology.Nodes {
		c.sh(t, n.Name, removeAll+"\nrm -f /var/lib/calico/felix/view "+unsavedView)
	}
	empty, err := c.kernel(t)
	require.NoError(t, err)
	for _, n := range c.topology.Nodes {
		require.Less(t, len(empty[n.Name]), len(before[n.Name])/2, "something was removed from %s:\n%s", n.Name, strings.Join(empty[n.Name], "\n"))
	}
	c.start(t, typha)
	for _, n := range c.topology.Nodes {
		c.start(t, victim{n.Name, lab.ProcessFelix})
	}
	for _, n := range c.topology.Nodes {
		c.awaitReady(t, n.Name)
	}
	took := c.awaitKernel(t, before, patience)
	lines := 0
	for _, l := range before {
		lines += len(l)
	}
	t.Logf("%d objects of %d kernels were there again as they were, %v after felix was ready; %d of them are not felix's", lines, len(before), took, empty.size())
}

// change changes one of some policies, a set that one of them names, and the labels of a pod, by which policies select it and
// rules mean it. None of them is about the ports of the test.
func (c *cluster) change(t *testing.T, random *rand.Rand, i int) {
	t.Helper()
	doc := fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: storm, labels: {storm: "true"}}
spec: {nets: [10.9.%d.0/24, 192.168.0.0/16]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: storm-%d}
spec:
  order: %d
  selector: "%s"
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: "has(storm) || turn == 'a'"}, destination: {ports: [%d]}}
  - {action: Deny, protocol: UDP, source: {selector: "turn != 'b'"}, destination: {ports: [%d]}}
`, i, random.IntN(5), 1+random.IntN(300), append(stormTurns, "all()")[random.IntN(5)], 7500+random.IntN(100), 7600+random.IntN(50))
	require.NoError(t, inTime(func() error { return c.applies(t, doc) }))
	c.label(t, c.topology.Pods[random.IntN(len(c.topology.Pods))].Name, "turn", string("abc"[random.IntN(3)]))
}

// label gives a pod a label.
func (c *cluster) label(t *testing.T, pod, key, value string) {
	t.Helper()
	name, err := api.WorkloadEndpointName(api.WorkloadEndpointSpec{Node: c.pod(t, pod).Node, Orchestrator: api.OrchestratorKubernetes, Pod: pod, Endpoint: "eth0"})
	require.NoError(t, err)
	eventually(t, patience, func() string { // the endpoint is written when felix has told of it
		if code, said := c.try(t, "master", "calicoctl", "patch", "workloadendpoint", name, "-n", "default", "-p", fmt.Sprintf("{metadata: {labels: {%s: %s}}}", key, value)); code != 0 {
			return said
		}
		return ""
	})
}

// forbidden is what is tried all the time and must never arrive.
type forbidden struct {
	packets, connections atomic.Int64 // tried

	stop context.CancelFunc
	all  sync.WaitGroup

	mu  sync.Mutex // guards the following
	did []string   // arrived
}

func (f *forbidden) leak(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.did) < 20 {
		f.did = append(f.did, time.Now().Format(time.StampMilli)+" "+what)
	}
}

func (f *forbidden) leaks() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.did
}

// end stops trying.
func (f *forbidden) end() {
	f.stop()
	f.all.Wait()
}

// tryForbidden sends datagrams and asks for connections between pairs of pods until the test ends, or it is ended. All that
// arrives at the interface of a pod is looked at.
func (c *cluster) tryForbidden(t *testing.T, pairs [][2]string) *forbidden {
	t.Helper()
	f := &forbidden{}
	ctx, stop := context.WithCancel(t.Context()) // which ends before the captures do
	f.stop = stop
	t.Cleanup(f.end)
	watched := map[string]bool{}
	for i, p := range pairs {
		from, to := p[0], p[1]
		there := netip.AddrPortFrom(c.address(t, to), stormPort+1+uint16(i))
		sender, err := c.DialUDP(within(t, patience), from, netip.AddrPortFrom(c.address(t, from), there.Port()), there)
		require.NoError(t, err)
		if !watched[to] {
			watched[to] = true
			arriving := c.capture(t, to, "eth0")
			f.all.Go(func() { f.watch(ctx, arriving, to, uint16(len(pairs))) })
		}
		f.all.Go(func() {
			defer sender.Close()
			tick := time.NewTicker(pace / 4)
			defer tick.Stop()
			for ctx.Err() == nil {
				if _, err := sender.Write([]byte("hello")); err == nil {
					f.packets.Add(1)
				}
				<-tick.C
			}
		})
		f.all.Go(func() {
			for ctx.Err() == nil {
				f.connections.Add(1)
				if conn := c.tryDial(ctx, from, netip.AddrPortFrom(there.Addr(), stormPort)); conn != nil {
					_ = conn.Close()
				}
			}
		})
	}
	return f
}

// watch looks for packets to the ports of what is forbidden.
func (f *forbidden) watch(ctx context.Context, at *capture, pod string, pairs uint16) {
	for {
		p, err := at.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.leak(fmt.Sprintf("nobody knows what: capture at %s: %v", pod, err))
			return
		}
		if to := p.Inner.DstPort; !p.Outgoing && to >= stormPort && to <= stormPort+pairs {
			f.leak(fmt.Sprintf("at %s: %s", pod, p.Inner))
		}
	}
}

// tryDial asks for a connection for a short time.
func (c *cluster) tryDial(ctx context.Context, from string, to netip.AddrPort) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, bound(200*time.Millisecond))
	defer cancel()
	conn, err := c.Dial(ctx, from, to)
	if err != nil {
		return nil
	}
	return conn
}
