//go:build lab

package suite

import (
	"context"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestBIRD2 runs Debian's BIRD in the place of our bird: on all nodes, and on all but one. Pods reach each other, a block
// that is new arrives, a BIRD that is killed comes back without a packet noticing, BFD runs between all, and a changed
// filter takes effect while every session stays up.
func TestBIRD2(t *testing.T) {
	for name, ours := range map[string][]string{"all nodes": nil, "mixed": {"worker-1"}} {
		t.Run(name, func(t *testing.T) {
			c := up(t, "suite-bird2", lab.ModeDirect, withBIRD2(ours...))
			t.Cleanup(func() { c.showRoutes(t) })
			c.reachable(t)
			for _, n := range c.topology.Nodes {
				c.awaitReady(t, n.Name)
			}
			c.addInTime(t, "pod-0", "master") // the master's first, so its block is new
			c.reachable(t)
			c.birdKilled(t, victim{"worker-2", lab.ProcessBird})
			c.filtersWithoutFlap(t)
		})
	}
}

// TestBIRD2Tunnels keeps BIRD's hands off the routes of a pool in VXLAN mode: they are felix's.
func TestBIRD2Tunnels(t *testing.T) {
	c := up(t, "suite-bird2-vxlan", lab.ModeVXLAN, withBIRD2())
	c.reachable(t)
	for _, n := range c.topology.Nodes {
		require.Empty(t, c.run(t, n.Name, "ip", "route", "show", "proto", "bird"), "on %s", n.Name)
	}
}

// TestBIRD2AtToR has nodes with BIRD peer with a ToR in both families: the examples of docs/bgp.md, and what else a BGPPeer
// says of a session.
func TestBIRD2AtToR(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-bird2-tor", withBIRD2())
	tor := c.router(t, vendorFRR, theToR, example(t, "tor-frr.conf"))
	pod1, pod2 := c.pod(t, "pod-1"), c.pod(t, "pod-2")
	const master, worker1, worker2, worker3 = "10.30.0.10", "10.30.0.206", "10.30.0.56", "10.30.1.66"

	t.Run("example", func(t *testing.T) {
		c.apply(t, example(t, "tor-peers.yaml"))
		c.awaitToR(t)
		tor.awaitPaths(t, blockOf(pod1, false), path{NextHop: worker1, ASPath: "64512"})
		tor.awaitPaths(t, blockOf(pod1, true), path{NextHop: "fd00:30::206", ASPath: "64512"})
		c.awaitRoute(t, theToR, blockOf(pod2, false), worker2)
		c.reachesAll(t, theClient)
		c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
		gateways, text := c.gateways(t, "worker-3", outside[true])
		require.Len(t, gateways, 1, "BIRD takes the link-local one of two that the ToR tells")
		require.Contains(t, text, "proto bird metric 2147483547")
	})
	t.Run("AS of four bytes, neighbours of one's own links only, communities", func(t *testing.T) {
		c.remove(t)
		tor.restart(t, torConf{as: 4200000001, nodes: 4200000100, gtsm: true}.text(vendorFRR))
		c.apply(t, bgpConfiguration(`asNumber: 4200000100, communities: [{name: pods, value: "64512:100"}], prefixAdvertisements: [`+
			`{cidr: 192.168.0.0/16, communities: [pods, "64512:7:8"]}, {cidr: "fd00:192::/48", communities: [pods]}]`)+
			peerings(4200000001, "ttlSecurity: 1", "filters: [own-routes]")+ownRoutes)
		c.awaitToR(t)
		tor.awaitPaths(t, blockOf(pod1, false), path{NextHop: worker1, ASPath: "4200000100", Communities: "64512:100 64512:7:8"})
		tor.awaitPaths(t, blockOf(pod1, true), path{NextHop: "fd00:30::206", ASPath: "4200000100", Communities: "64512:100"})
		c.reachesAll(t, theClient)
	})
	t.Run("password, AS that only this peer is shown", func(t *testing.T) {
		c.remove(t)
		tor.restart(t, torConf{as: torAS, nodes: 64999, password: "S3cret"}.text(vendorFRR))
		c.apply(t, peerings(torAS, "localASNumber: 64999", "password: {secretKeyRef: {name: tor, key: password}}", "filters: [own-routes]")+ownRoutes)
		c.awaitDown(t, "worker-1", "10.30.0.1", "waiting for secret tor, key password")
		c.awaitCondition(t, "worker-1", "False", "10.30.0.1 of BGPPeer(left4): waiting for Secret tor, key password")
		c.secret(t, "tor", "password", "S3cret")
		c.awaitToR(t)
		tor.awaitPaths(t, blockOf(pod1, false), path{NextHop: worker1, ASPath: "64999"})
		require.Equal(t, "640 root\n", c.run(t, "worker-1", "stat", "-c", "%a %U", "/etc/calico/bird2.conf"))
		for _, place := range []string{"/var/lib/calico/bird.yaml", "/var/log/calico"} {
			require.Empty(t, c.sh(t, "worker-1", "grep -r S3cret "+place+" || true"))
		}
	})
	t.Run("next hops, own AS in the path", func(t *testing.T) {
		c.remove(t)
		tor.restart(t, torConf{as: torAS, nodes: ownAS}.text(vendorFRR))
		c.apply(t, peerings(torAS))
		c.awaitToR(t)
		tor.awaitHops(t, blockOf(pod2, false), master, worker1, worker2, worker3)
		c.apply(t, peerings(torAS, "nextHopMode: Keep"))
		tor.awaitHops(t, blockOf(pod2, false), worker2, worker2, worker2, worker2)
		c.reachesAll(t, theClient)
		c.apply(t, noMesh+peerings(torAS, "numAllowedLocalASNumbers: 1"))
		for _, from := range []string{"pod-1", "pod-2", "pod-3"} {
			c.reachesAll(t, from)
		}
	})
	t.Run("what operators ask", func(t *testing.T) {
		c.remove(t)
		c.apply(t, peering("absent", "all()", "10.30.0.99", 65099)+peerings(torAS))
		c.awaitToR(t)
		c.awaitDown(t, "worker-1", "10.30.0.99", "no route to host")
		c.saysInTime(t, "master", "10.30.0.1 ", "calicoctl", "node", "status", "--node", "worker-1", "-o", "wide")
		c.saysInTime(t, "worker-1", "Node_10_30_0_1 ", "calicoctl", "bgp", "peers")
		own := blockOf(pod1, false).String()
		c.saysInTime(t, "master", own, "calicoctl", "bgp", "routes", "--node", "worker-1")
		c.saysInTime(t, "master", "Node_10_30_0_1 ", "calicoctl", "bgp", "routes", "--node", "worker-1", "--within", "10.30.9.0/24", "-o", "wide")
		c.saysInTime(t, "worker-1", own, "calicoctl", "bgp", "routes", "--peer", "10.30.0.1", "--view", "advertised")
		c.apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: no-client}\n"+
			"spec: {importV4: [{cidr: 10.30.9.0/24, matchOperator: Equal, action: Reject}]}\n"+peerings(torAS, "filters: [no-client]"))
		c.saysInTime(t, "worker-1", "10.30.9.0/24", "calicoctl", "bgp", "rejected", "--peer", "10.30.0.1", "--direction", "import")
		c.saysInTime(t, "worker-1", "import      a filter (BIRD 2 does not tell which)", "calicoctl", "bgp", "rejected")
		code, said := c.try(t, "worker-1", "calicoctl", "bgp", "routes", "--peer", "10.30.0.1", "--view", "received")
		require.Equal(t, 1, code)
		require.Contains(t, said, "BIRD 2, which does not keep what a peer sent as it was sent")
		require.Contains(t, c.metrics(t, "worker-1", 9097), `bird_sessions{state="Established",type="node"} 2`)
	})
	t.Run("drain", func(t *testing.T) {
		c.remove(t)
		tor.restart(t, honouring(t, vendorFRR))
		c.drainsAtToR(t, tor)
	})
}

// withBIRD2 has all nodes but some run BIRD 2.
func withBIRD2(ours ...string) func(*lab.Topology) {
	return func(topo *lab.Topology) {
		for i := range topo.Nodes {
			if n := &topo.Nodes[i]; !slices.Contains(ours, n.Name) {
				n.Speaker = lab.SpeakerBIRD2
			}
		}
	}
}

// birdc is a command for a node's BIRD.
func birdc(words ...string) []string {
	return append([]string{"/usr/sbin/birdc", "-s", "/run/calico/bird2.ctl"}, words...)
}

var birdProtocol = regexp.MustCompile(`(?m)^(\S+) +BGP +\S+ +up +(\S+ \S+) +Established`)

// showRoutes shows, if the test failed, what each node's kernel and its BIRD have.
func (c *cluster) showRoutes(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, n := range c.topology.Nodes {
		for _, ask := range [][]string{{"ip", "route"}, {"ip", "neigh"}, birdc("show", "route")} {
			out, err := c.Run(context.Background(), n.Name, ask...)
			t.Logf("%s: %v (%v)\n%s", n.Name, ask, err, out)
		}
	}
}

// upSince is when each BGP session of a node's BIRD came up. BIRD reckons it anew each time, from how long ago that is, and
// may be off by a millisecond, and on a machine that rests by as long as that.
func (c *cluster) upSince(t *testing.T, node string) map[string]time.Time {
	t.Helper()
	out := map[string]time.Time{}
	for _, m := range birdProtocol.FindAllStringSubmatch(c.run(t, node, birdc("show", "protocols")...), -1) {
		since, err := time.Parse("2006-01-02 15:04:05.000", m[2])
		require.NoError(t, err)
		out[m[1]] = since
	}
	return out
}

// filtersWithoutFlap makes sessions with a filter and with BFD between all nodes, and changes the filter to and fro.
func (c *cluster) filtersWithoutFlap(t *testing.T) {
	t.Helper()
	filter := func(rules string) string {
		return "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: some}\nspec: {exportV4: [" + rules + "]}\n"
	}
	c.apply(t, filter(""))
	c.apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: nodes}\nspec: {peerSelector: all(), failureDetectionMode: BFD, filters: [some]}\n")
	eventually(t, patience, func() string {
		for _, n := range c.topology.Nodes {
			if n.Speaker != lab.SpeakerBIRD2 {
				continue
			}
			for name := range c.upSince(t, n.Name) {
				if !strings.HasPrefix(name, "Global_") {
					return n.Name + " still has the session " + name
				}
			}
		}
		return ""
	})
	c.awaitSessions(t)
	c.reachable(t)
	for _, n := range c.topology.Nodes {
		if n.Speaker != lab.SpeakerBIRD2 {
			continue
		}
		eventually(t, patience, func() string {
			out := c.run(t, n.Name, birdc("show", "bfd", "sessions")...)
			if got := strings.Count(out, " Up "); got != len(c.topology.Nodes)-1 {
				return n.Name + " has other sessions of BFD, over one hop and over several:\n" + out
			}
			return ""
		})
	}

	block := netip.PrefixFrom(c.address(t, "pod-1"), 26).Masked()
	has := func(node string) bool {
		return strings.Contains(c.run(t, node, "ip", "route", "show", block.String()), "via")
	}
	before := map[string]map[string]time.Time{}
	for _, n := range c.topology.Nodes {
		if n.Speaker == lab.SpeakerBIRD2 {
			before[n.Name] = c.upSince(t, n.Name)
			require.Len(t, before[n.Name], len(c.topology.Nodes)-1)
		}
	}
	require.True(t, has("master"))
	c.apply(t, filter("{action: Reject, cidr: "+block.String()+", matchOperator: In}"))
	eventually(t, patience, func() string {
		if has("master") {
			return "the master still has the block that its node's filter rejects"
		}
		return ""
	})
	c.apply(t, filter(""))
	c.reachable(t)
	for node, sessions := range before {
		now := c.upSince(t, node)
		require.Len(t, now, len(sessions))
		for name, since := range sessions {
			require.WithinDuration(t, since, now[name], unmoved, "session %s of %s was not touched", name, node)
		}
	}
}

// birdKilled kills a node's BIRD and starts it anew while pods talk.
func (c *cluster) birdKilled(t *testing.T, v victim) {
	t.Helper()
	talks := c.converse(t, [2]string{"pod-1", "pod-2"}, [2]string{"pod-0", "pod-2"})
	talks.goOn(t, "all is well")
	c.kill(t, v)
	talks.goOn(t, v.String()+" is dead")
	c.start(t, v)
	c.awaitSessions(t)
	c.reachable(t)
	talks.goOn(t, v.String()+" is back")
	talks.wereSmooth(t, longestGap)
}
