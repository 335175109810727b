//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// crowd is how many routes a ToR sends that has the whole table of somebody's network.
const crowd = 100_000

// inCrowd holds all of them.
var inCrowd = netip.MustParsePrefix("20.0.0.0/7")

// TestHugeTable: a ToR sends 100,000 routes to a node. All are programmed, the node stays ready, pods and client talk on without
// a lost packet, and after the withdrawal nothing is left. The vendors come one after the other: two at a time are more than
// a small machine has to give.
func TestHugeTable(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-huge")
	for _, v := range vendors {
		t.Run(string(v), func(t *testing.T) { c.takesHugeTable(t, v) })
	}
}

// takesHugeTable is given 100,000 routes and loses them again.
func (c *cluster) takesHugeTable(t *testing.T, v vendor) {
	t.Helper()
	tor := c.crowded(t, v, torConf{as: torAS, nodes: ownAS, neighbours: [][2]string{{"10.30.0.1", "10.30.0.206"}}})
	defer tor.stop(t, syscall.SIGTERM) // with what it has in the kernel
	c.apply(t, ownRoutes+peering("left4", "has(rack)", "10.30.0.1", torAS, "filters: [own-routes]"))
	c.awaitUp(t, "worker-1", "10.30.0.1")
	pod := firstOf(c.pod(t, "pod-1"), false)
	c.awaitRoute(t, theToR, blockOf(c.pod(t, "pod-1"), false), "10.30.0.206")
	c.awaitUp(t, "worker-1", "10.30.0.56")
	beats, talks := c.beats(t, theClient, pod), c.converse(t, [2]string{"pod-1", "pod-2"})
	rest := c.memory(t, "worker-1")

	tor.sendCrowd(true)
	took := c.awaitCrowd(t, crowd)
	full := c.memory(t, "worker-1")
	t.Logf("%d routes of %s in the kernel after %s (bird, felix on worker-1: %d, %d MiB before, %d, %d MiB after)", crowd, v,
		took.Round(10*time.Millisecond), rest[lab.ProcessBird], rest[lab.ProcessFelix], full[lab.ProcessBird], full[lab.ProcessFelix])
	beats.lostNone(t, "all routes are in")
	talks.goOn(t, "all routes are in")
	c.awaitReady(t, "worker-1")
	late := c.add(t, "late-"+strings.ToLower(string(v)), "worker-1")
	c.reaches(t, "pod-2", firstOf(late, false))

	tor.sendCrowd(false)
	took = c.awaitCrowd(t, 0)
	t.Logf("withdrawn after %s", took.Round(10*time.Millisecond))
	beats.lostNone(t, "all routes are out")
	talks.wereSmooth(t, longestGap)
	c.awaitReady(t, "worker-1")
}

// crowded starts a ToR that has the crowd and tells nobody yet.
func (c *cluster) crowded(t *testing.T, v vendor, conf torConf) *router {
	t.Helper()
	first := inCrowd.Addr().As4()
	// each writes a line for each route.
	each := func(line string) string {
		var all strings.Builder
		for i := range crowd {
			fmt.Fprintf(&all, line, fmt.Sprintf("%d.%d.%d.0/24", int(first[0])+i>>16, i>>8&255, i&255))
		}
		return all.String()
	}
	if v == vendorBIRD {
		return c.router(t, v, theToR, conf.text(v)+"protocol static crowd { disabled; ipv4;\n"+each("route %s unreachable;\n")+"}\n")
	}
	var said strings.Builder // FRR takes them from the kernel
	code, err := c.Exec(within(t, patience), theToR, lab.Command{
		Args: []string{"ip", "-batch", "-"}, Stdin: strings.NewReader(each("route add blackhole %s\n")), Stdout: &said, Stderr: &said,
	})
	require.NoError(t, err)
	require.Zero(t, code, said.String())
	return c.router(t, v, theToR, conf.text(v))
}

// sendCrowd has the ToR announce the crowd, or withdraw it.
func (r *router) sendCrowd(on bool) {
	switch {
	case r.vendor == vendorBIRD && on:
		r.ask("enable crowd")
	case r.vendor == vendorBIRD:
		r.ask("disable crowd")
	case on:
		r.ask("configure terminal", fmt.Sprint("router bgp ", torAS), "address-family ipv4 unicast", "redistribute kernel")
	default:
		r.ask("configure terminal", fmt.Sprint("router bgp ", torAS), "address-family ipv4 unicast", "no redistribute kernel")
	}
}

// serve has the ToR end its sessions with nodes, or take them up again.
func (r *router) serve(on bool) {
	switch {
	case r.vendor == vendorBIRD && on:
		r.ask(`enable "node*"`)
	case r.vendor == vendorBIRD:
		r.ask(`disable "node*"`)
	case on:
		r.ask("configure terminal", fmt.Sprint("router bgp ", torAS), "no bgp shutdown")
	default:
		r.ask("configure terminal", fmt.Sprint("router bgp ", torAS), "bgp shutdown")
	}
}

// awaitCrowd waits until so many of the ToR's routes are in worker-1's kernel. To list them takes the kernel as long as to
// program a part of them, so it is asked for the number of all that it has until that is about right.
func (c *cluster) awaitCrowd(t *testing.T, want int) time.Duration {
	t.Helper()
	const others = 500 // at most
	count := func(command string) int {
		n, err := strconv.Atoi(strings.TrimSpace(c.sh(t, "worker-1", command)))
		require.NoError(t, err)
		return n
	}
	began := time.Now()
	for {
		got := count("awk '/Prefixes/ { print $2; exit }' /proc/net/fib_triestat")
		if got >= want && got < want+others {
			if got = count("ip route show root " + inCrowd.String() + " | wc -l"); got == want {
				return time.Since(began)
			}
		}
		require.Less(t, time.Since(began), 8*patience, "%d routes of %d", got, want)
		select {
		case <-t.Context().Done():
			require.Fail(t, "the test was interrupted")
		case <-time.After(glance):
		}
	}
}

// memory is what the processes of a node hold, in MiB.
func (c *cluster) memory(t *testing.T, node string) map[string]int {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	held := map[string]int{}
	for _, p := range st.Processes {
		if p.Node != node || p.State != lab.StateRunning {
			continue
		}
		fields := strings.Fields(c.sh(t, node, fmt.Sprintf("grep VmRSS /proc/%d/status", p.PID)))
		kib, err := strconv.Atoi(fields[1])
		require.NoError(t, err)
		held[p.Name] = kib >> 10
	}
	return held
}

// TestLeakingToR: a ToR tells the nodes what it should not: a default route, and routes to pods and blocks that are not its. The
// node's own ways stay as they are, its traffic too, and what somebody else has put into the kernel is left alone and reported.
// (Nodes that do not have the pod do follow a route to that pod alone: nothing that they know is as specific.)
func TestLeakingToR(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		pod1, pod2 := c.pod(t, "pod-1"), c.pod(t, "pod-2")
		foreign := netip.MustParsePrefix("172.30.0.0/16")
		host := netip.PrefixFrom(firstOf(pod1, false), 32)
		const metric = "2147483547" // of a route of local preference 100, 2^31-1 minus that
		c.sh(t, "worker-1", "ip route add "+foreign.String()+" via 10.30.0.56 metric "+metric+" proto static")
		own := map[string]string{}
		for _, family := range []string{"-4", "-6"} {
			own[family] = c.run(t, "worker-1", "ip", family, "route", "show", "default")
			require.NotEmpty(t, own[family])
		}
		honest := torConf{as: torAS, nodes: ownAS}
		leaking := honest
		leaking.statics = []netip.Prefix{
			netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), foreign, host, blockOf(pod2, false),
		}
		c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]"))
		tor := c.router(t, v, theToR, honest.text(v))
		c.awaitToR(t)
		beats := []*beats{c.beats(t, "worker-1", host.Addr()), c.beats(t, "pod-1", outside[false].Addr().Next())}
		tor.restart(t, leaking.text(v))
		c.awaitToR(t)
		eventually(t, patience, func() string {
			for _, family := range []string{"-4", "-6"} {
				got := c.run(t, "worker-1", "ip", family, "route", "show", "default")
				if !strings.Contains(got, strings.TrimSpace(strings.Split(own[family], "\n")[0])) {
					return "the node's own default route is gone: " + got
				}
				if !strings.Contains(got, metric) {
					return "the ToR's default route is not there beside it: " + got
				}
			}
			return ""
		})
		local := c.run(t, "worker-1", "ip", "route", "get", host.Addr().String())
		assert.Contains(t, local, pod1.HostInterface, "a pod of the node is reached on the node")
		c.awaitRoute(t, "worker-1", blockOf(pod2, false), "10.30.0.56") // the mesh's to another node's block
		hops, text := c.gateways(t, "worker-1", foreign)
		assert.Equal(t, []string{"10.30.0.56"}, hops, "the foreign route stays: %s", text)
		assert.Contains(t, text, "proto static")
		eventually(t, patience, func() string {
			if log := c.log(t, felix); !strings.Contains(log, foreign.String()) {
				return "felix does not tell that a foreign route is in the way"
			}
			return ""
		})
		for _, b := range beats {
			b.lostNone(t, "routes leaked")
		}

		tor.restart(t, honest.text(v))
		c.awaitToR(t)
		eventually(t, patience, func() string {
			for _, family := range []string{"-4", "-6"} {
				if got := c.run(t, "worker-1", "ip", family, "route", "show", "default"); got != own[family] {
					return "the default route is not as it was: " + got
				}
			}
			return ""
		})
		c.reachesAll(t, theClient)
		hops, _ = c.gateways(t, "worker-1", foreign)
		assert.Equal(t, []string{"10.30.0.56"}, hops)
	})
}

// TestFlappingToR: a ToR's sessions go down and up every second for 20 s. No session of others goes down, no route of others is
// touched, and when it is steady again all is as before.
func TestFlappingToR(t *testing.T) {
	const flaps, every = 20, time.Second
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		foreign := netip.MustParsePrefix("172.31.0.0/16")
		tor := c.router(t, v, theToR, torConf{as: torAS, nodes: ownAS, statics: []netip.Prefix{foreign}}.text(v))
		c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]"))
		c.awaitToR(t)
		c.awaitRoute(t, "worker-1", foreign, "10.30.0.1")
		c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
		c.awaitRoute(t, "worker-1", outside[true], "fd00:30::1")
		pod2 := c.pod(t, "pod-2")
		mesh := c.awaitMesh(t, "worker-1")
		require.NotEmpty(t, mesh)
		c.awaitRoute(t, "worker-1", blockOf(pod2, false), "10.30.0.56")
		c.awaitRoute(t, "worker-1", blockOf(pod2, true), "fd00:30::56")
		const routes = "ip route; ip -6 route show proto 80"
		before, since := "", time.Now()
		eventually(t, patience, func() string { // the rest of the mesh's come at about the same time
			if now := c.sh(t, "worker-1", routes); now != before {
				before, since = now, time.Now()
			}
			if time.Since(since) < 2*time.Second {
				return "the routes still change"
			}
			return ""
		})
		ofOthers := c.deletions(t, "worker-1")
		beats := c.beats(t, "pod-1", firstOf(pod2, false))
		memory := c.memory(t, "worker-1")

		tick := time.NewTicker(every / 2)
		defer tick.Stop()
		for range flaps {
			tor.serve(false)
			<-tick.C
			tor.serve(true)
			<-tick.C
		}
		began := time.Now()
		c.awaitToR(t)
		c.awaitRoute(t, "worker-1", foreign, "10.30.0.1")
		c.awaitRoute(t, "worker-1", outside[true], "fd00:30::1")
		t.Logf("steady %s after the last flap", time.Since(began).Round(10*time.Millisecond))
		for _, pod := range []string{"pod-1", "pod-2"} {
			c.awaitRoute(t, theToR, blockOf(c.pod(t, pod), false), c.nodeOf(t, pod))
		}
		assert.Equal(t, mesh, c.meshRows(t, "worker-1"), "the mesh's sessions stay up")
		assert.Empty(t, ofOthers.of(blockOf(pod2, false), blockOf(pod2, true), blockOf(c.pod(t, "pod-1"), false)))
		eventually(t, patience, func() string {
			if now := c.sh(t, "worker-1", routes); now != before {
				return "the routes are not as they were:\n" + before + "but:\n" + now
			}
			return ""
		})
		beats.lostNone(t, "the ToR flapped")
		now := c.memory(t, "worker-1")
		t.Logf("bird and felix hold %d and %d MiB, %d and %d before", now[lab.ProcessBird], now[lab.ProcessFelix], memory[lab.ProcessBird], memory[lab.ProcessFelix])
		c.reachesAll(t, theClient)

		c.remove(t)
		eventually(t, patience, func() string {
			if hops, text := c.gateways(t, "worker-1", foreign); len(hops) != 0 {
				return "the ToR's route outlives the peering: " + text
			}
			return ""
		})
	})
}

// meshRows are the rows of a node's sessions with other nodes, which tell since when each is up.
func (c *cluster) meshRows(t *testing.T, node string) (rows []string) {
	t.Helper()
	for line := range strings.SplitSeq(c.run(t, node, "calicoctl", "node", "status"), "\n") {
		if strings.Contains(line, "mesh") {
			rows = append(rows, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(rows)
	return rows
}

// awaitMesh waits until all of a node's sessions with other nodes are up, and returns their rows.
func (c *cluster) awaitMesh(t *testing.T, node string) (rows []string) {
	t.Helper()
	eventually(t, patience, func() string {
		rows = c.meshRows(t, node)
		waiting := slices.DeleteFunc(slices.Clone(rows), func(row string) bool { return strings.Contains(row, "Established") })
		return strings.Join(waiting, "\n")
	})
	return rows
}

// nodeOf is the IPv4 address of the node that has a pod.
func (c *cluster) nodeOf(t *testing.T, pod string) string {
	t.Helper()
	return c.node(t, c.pod(t, pod).Node).Addresses[0].String()
}
