//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestAllPathsSent: a node of ours reflects, and the ToR has sessions with it alone. It is told of every node that announces
// the services, spreads over them in its kernel, and loses those that go, one by one. A filter takes all back, and a node that
// reflects no more tells of itself alone.
func TestAllPathsSent(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		tor := c.router(t, v, theToR, torConf{
			as: ownAS, nodes: ownAS, addPath: true, neighbours: [][2]string{{"10.30.0.1", "10.30.0.10"}, {"fd00:30::1", "fd00:30::10"}},
		}.text(v))
		const reflector = "route-reflector == 'true'"
		toToR := func(more ...string) string {
			return peering("tor4", reflector, "10.30.0.1", ownAS, more...) + peering("tor6", reflector, "fd00:30::1", ownAS, more...)
		}
		c.apply(t, example(t, "reflector-nodes.yaml"))
		c.apply(t, toToR()+bgpConfiguration(
			`nodeToNodeMeshEnabled: false, serviceClusterIPs: [{cidr: 10.96.0.0/16}, {cidr: "fd00:96::/112"}]`))
		c.run(t, "master", "calicoctl", "patch", "node", "master", "-p", `{"spec":{"bgp":{"routeReflectorClusterID":"244.0.0.1"}}}`)
		c.run(t, "master", "calicoctl", "label", "nodes", "master", "route-reflector=true")
		c.awaitUp(t, "master", "10.30.0.1", "fd00:30::1", "10.30.0.206", "10.30.0.56", "10.30.1.66")
		all := map[bool][]string{
			false: {"10.30.0.10", "10.30.0.206", "10.30.0.56", "10.30.1.66"},
			true:  {"fd00:30::10", "fd00:30::206", "fd00:30::56", "fd00:31::66"},
		}
		has := func(leave int) {
			t.Helper()
			for v6, prefix := range services {
				tor.awaitHops(t, prefix, all[v6][:leave]...)
				c.awaitRoute(t, theToR, prefix, all[v6][:leave]...)
			}
		}
		has(4)
		for v6, prefix := range services {
			told := c.run(t, "master", "calicoctl", "bgp", "routes", "--peer", map[bool]string{false: "10.30.0.1", true: "fd00:30::1"}[v6], "--view", "advertised", "--within", prefix.String())
			for _, hop := range all[v6] {
				assert.Contains(t, told, hop)
			}
		}
		for _, node := range []string{"worker-1", "worker-2", "worker-3"} { // in place of kube-proxy
			c.sh(t, node, "ip address add 10.96.0.10/32 dev lo; ip address add fd00:96::a/128 dev lo")
		}
		const excluded = "node.kubernetes.io/exclude-from-external-load-balancers"
		c.run(t, "master", "calicoctl", "label", "nodes", "worker-3", excluded+"=true")
		has(3)
		c.run(t, "master", "calicoctl", "label", "nodes", "worker-2", excluded+"=true")
		has(2)
		c.run(t, "master", "calicoctl", "label", "nodes", "worker-2", excluded, "--remove")
		has(3)

		c.apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: none}\nspec: {exportV4: [{action: Reject}], exportV6: [{action: Reject}]}\n"+
			toToR("filters: [none]"))
		has(0)
		c.apply(t, toToR("filters: []"))
		has(3)
	})
}

// TestAllPathsReflected: a ToR announces two ways to a prefix to the reflector, which is a node of ours, and this passes both
// on to the others. Each has both in its kernel.
func TestAllPathsReflected(t *testing.T) {
	t.Parallel()
	anycast := netip.MustParsePrefix("172.28.0.0/24")
	c := upRack(t, "suite-allpaths")
	conf := torConf{as: ownAS, nodes: ownAS, addPath: true, neighbours: [][2]string{{"10.30.0.1", "10.30.0.10"}}}.text(vendorBIRD)
	hops := []string{"10.30.0.240", "10.30.0.241"}
	for _, via := range hops {
		conf += "protocol static { ipv4; route " + anycast.String() + " via " + via + "; }\n"
	}
	tor := c.router(t, vendorBIRD, theToR, conf)
	c.apply(t, example(t, "reflector-nodes.yaml")+peering("tor", "route-reflector == 'true'", "10.30.0.1", ownAS))
	c.apply(t, `---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: anycast}
spec: {exportV4: [{cidr: 172.28.0.0/24, matchOperator: In, action: Accept}]}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: reflectors}
spec: {nodeSelector: all(), peerSelector: route-reflector == 'true', filters: [anycast]}
`)
	c.run(t, "master", "calicoctl", "patch", "node", "master", "-p", `{"spec":{"bgp":{"routeReflectorClusterID":"244.0.0.1"}}}`)
	c.run(t, "master", "calicoctl", "label", "nodes", "master", "route-reflector=true")
	for _, node := range []string{"master", "worker-1", "worker-2"} {
		c.awaitRoute(t, node, anycast, hops...)
	}
	c.awaitRoute(t, "worker-3", anycast, "10.30.1.1") // the one way to both
	tor.ask("disable static1")
	c.awaitRoute(t, "worker-1", anycast, hops[1])
	tor.ask("enable static1")
	c.awaitRoute(t, "worker-1", anycast, hops...)
}

// TestAllPathsKept: the ToR is of another AS and has a session with one node of a mesh, which tells it the next hops of the others.
func TestAllPathsKept(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-kept")
	tor := c.router(t, vendorBIRD, theToR, torConf{
		as: torAS, nodes: ownAS, addPath: true, neighbours: [][2]string{{"10.30.0.1", "10.30.0.10"}},
	}.text(vendorBIRD))
	one := "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\nspec: {node: master, peerIP: 10.30.0.1, asNumber: 65001, nextHopMode: %s}\n"
	c.apply(t, bgpConfiguration("serviceClusterIPs: [{cidr: 10.96.0.0/16}]")+fmt.Sprintf(one, "Keep"))
	all := []string{"10.30.0.10", "10.30.0.206", "10.30.0.56", "10.30.1.66"}
	tor.awaitHops(t, services[false], all...)
	c.awaitRoute(t, theToR, services[false], all...)
	c.apply(t, fmt.Sprintf(one, "Self"))
	tor.awaitHops(t, services[false], all[0])
	c.awaitRoute(t, theToR, services[false], all[0])
}
