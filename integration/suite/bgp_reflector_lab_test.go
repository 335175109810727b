//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// noMesh turns the mesh off.
var noMesh = bgpConfiguration("nodeToNodeMeshEnabled: false")

// TestToRReflects: the mesh is off, and the ToR is the reflector of the nodes, by the examples of docs/bgp.md. Next hops are
// those of the nodes, so that pods of one rack talk without the ToR.
func TestToRReflects(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		c.router(t, v, theToR, example(t, "reflector-"+strings.ToLower(string(v))+".conf"))
		c.apply(t, example(t, "reflector-peers.yaml"))
		c.awaitToR(t)
		for i, v6 := range []bool{false, true} {
			c.awaitRoute(t, "worker-1", blockOf(c.pod(t, "pod-2"), v6), c.node(t, "worker-2").Addresses[i].String())
			c.awaitRoute(t, "worker-1", blockOf(c.pod(t, "pod-3"), v6), []string{"10.30.0.1", "fd00:30::1"}[i])
		}
		for _, from := range []string{"pod-1", "pod-2", "pod-3", theClient} {
			c.reachesAll(t, from)
		}
	})
}

// TestNodeReflects: a node of ours is the reflector, the other nodes and a machine that runs a foreign daemon are its clients.
// The foreign client has every block by its own node, and the reflector what the client announces.
func TestNodeReflects(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		theirs := netip.MustParsePrefix("172.29.0.0/16")
		client := c.router(t, v, theClient, torConf{
			as: ownAS, nodes: ownAS, far: true, statics: []netip.Prefix{theirs}, neighbours: [][2]string{{"10.30.9.9", "10.30.0.10"}},
		}.text(v))
		c.apply(t, example(t, "reflector-nodes.yaml")+peering("client", "route-reflector == 'true'", "10.30.9.9", ownAS))
		c.run(t, "master", "calicoctl", "patch", "node", "master", "-p", `{"spec":{"bgp":{"routeReflectorClusterID":"244.0.0.1"}}}`)
		c.run(t, "master", "calicoctl", "label", "nodes", "master", "route-reflector=true")
		for _, node := range []string{"worker-1", "worker-2", "worker-3"} {
			c.awaitUp(t, node, "10.30.0.10", "fd00:30::10")
		}
		c.awaitUp(t, "master", "10.30.9.9")
		for pod, node := range map[string]string{"pod-1": "worker-1", "pod-2": "worker-2", "pod-3": "worker-3"} {
			client.awaitHops(t, blockOf(c.pod(t, pod), false), c.node(t, node).Addresses[0].String())
		}
		c.awaitRoute(t, "worker-1", blockOf(c.pod(t, "pod-2"), false), "10.30.0.56")
		c.awaitRoute(t, "worker-1", blockOf(c.pod(t, "pod-2"), true), "fd00:30::56")
		c.awaitRoute(t, "master", theirs, "10.30.0.1") // the way to the client
		c.awaitRoute(t, "worker-1", theirs)            // it is in no pool, and a node passes on no others
		c.reaches(t, "pod-1", firstOf(c.pod(t, "pod-2"), false))
		require.NotContains(t, c.sessions(t, "worker-1"), "10.30.0.56", "there is no mesh")
	})
}

// services are addresses that every node announces.
var services = map[bool]netip.Prefix{false: netip.MustParsePrefix("10.96.0.0/16"), true: netip.MustParsePrefix("fd00:96::/112")}

// TestServices: all nodes announce the range of the services. The ToR spreads over them, the client gets an answer from an
// address in it, and goes on getting them from the others when nodes leave.
func TestServices(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		tor := c.router(t, v, theToR, torConf{as: torAS, nodes: ownAS}.text(v))
		c.apply(t, ownRoutes+bgpConfiguration(`serviceClusterIPs: [{cidr: 10.96.0.0/16}, {cidr: "fd00:96::/112"}]`)+
			peerings(torAS, "filters: [own-routes]"))
		c.awaitToR(t)
		all := map[bool][]string{}
		for _, node := range c.topology.Nodes {
			if node.Name == theClient {
				continue
			}
			// In place of kube-proxy: each node answers for an address of the range.
			c.sh(t, node.Name, "ip address add 10.96.0.10/32 dev lo; ip address add fd00:96::a/128 dev lo")
			all[false] = append(all[false], node.Addresses[0].String())
			all[true] = append(all[true], node.Addresses[1].String())
		}
		for v6, prefix := range services {
			tor.awaitHops(t, prefix, all[v6]...)
			c.awaitRoute(t, theToR, prefix, all[v6]...)
			assert.NotContains(t, c.sh(t, "worker-1", "ip route; ip -6 route"), prefix.String(), "nobody routes by what it announces")
		}
		c.reaches(t, theClient, netip.MustParseAddr("10.96.0.10"))
		c.reaches(t, theClient, netip.MustParseAddr("fd00:96::a"))
		c.run(t, "master", "calicoctl", "label", "nodes", "worker-1", "rack", "--remove")
		for v6, prefix := range services {
			left := slices.DeleteFunc(all[v6], func(a string) bool { return strings.HasSuffix(a, "206") })
			tor.awaitHops(t, prefix, left...)
			c.awaitRoute(t, theToR, prefix, left...)
		}
		c.reaches(t, theClient, netip.MustParseAddr("10.96.0.10"))
	})
}

// TestAddPath: a reflector knows two ways to a prefix and sends both. The node has both in its kernel.
func TestAddPath(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		anycast := netip.MustParsePrefix("172.28.0.0/24")
		// What tells the reflector of two ways is one machine with two sessions, each between addresses of its own.
		sessions := [][2]string{{"10.30.9.1", "10.30.9.9"}, {"10.30.9.2", "10.30.9.8"}}
		c.sh(t, theToR, "ip address add 10.30.9.2/24 dev eth2")
		c.sh(t, theClient, "ip address add 10.30.9.8/24 dev ens5")
		c.router(t, v, theToR, torConf{as: ownAS, nodes: ownAS, reflector: true, addPath: true, neighbours: append(sessions, bothRacks...)}.text(v))
		conf := "router id 10.30.9.9;\nprotocol device {}\nprotocol static { ipv4; route " + anycast.String() + " unreachable; }\n"
		for i, hop := range []string{"10.30.0.206", "10.30.0.56"} {
			conf += fmt.Sprintf("protocol bgp way%d {\n  local %s as %d;\n  neighbor %s as %d;\n  strict bind;\n  direct;\n  connect delay time 1;\n  connect retry time 1;\n"+
				"  ipv4 { export filter { bgp_next_hop = %s; accept; }; };\n}\n", i, sessions[i][1], ownAS, sessions[i][0], ownAS, hop)
		}
		teller := c.router(t, vendorBIRD, theClient, conf)
		c.apply(t, noMesh+peerings(ownAS))
		c.awaitToR(t)
		c.awaitRoute(t, "master", anycast, "10.30.0.206", "10.30.0.56")
		for _, node := range []string{"worker-1", "worker-2"} {
			c.sh(t, node, "ip address add 172.28.0.1/32 dev lo")
		}
		c.reaches(t, "master", netip.MustParseAddr("172.28.0.1"))
		teller.ask("disable way1")
		c.awaitRoute(t, "master", anycast, "10.30.0.206")
		teller.ask("enable way1")
		c.awaitRoute(t, "master", anycast, "10.30.0.206", "10.30.0.56")
	})
}
