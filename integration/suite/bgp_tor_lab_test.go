//go:build lab

package suite

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestToR: the examples of docs/bgp.md as they stand. The ToR knows each block by the node that has it, the client behind it
// reaches every pod in both families, and the nodes learn the way back.
func TestToR(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		tor := c.router(t, v, theToR, example(t, "tor-"+strings.ToLower(string(v))+".conf"))
		c.apply(t, example(t, "tor-peers.yaml"))
		c.awaitToR(t)
		for pod, node := range map[string]string{"pod-1": "worker-1", "pod-2": "worker-2", "pod-3": "worker-3"} {
			for i, v6 := range []bool{false, true} {
				prefix, hop := blockOf(c.pod(t, pod), v6), c.node(t, node).Addresses[i].String()
				tor.awaitPaths(t, prefix, path{NextHop: hop, ASPath: "64512"})
				c.awaitRoute(t, theToR, prefix, hop)
			}
		}
		c.reachesAll(t, theClient)
		c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
		c.awaitRoute(t, "worker-3", outside[true], "fd00:31::1")
	})
}

// TestSessions: every kind of session that a BGPPeer describes comes up with real peers, and does what it says.
func TestSessions(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		tor := c.router(t, v, theToR, torConf{as: 4200000001, nodes: 4200000100, gtsm: true}.text(v))
		pod1, pod2 := blockOf(c.pod(t, "pod-1"), false), blockOf(c.pod(t, "pod-2"), false)
		const master, worker1, worker2, worker3 = "10.30.0.10", "10.30.0.206", "10.30.0.56", "10.30.1.66"

		t.Run("AS of four bytes, neighbours of one's own links only, communities", func(t *testing.T) {
			c.apply(t, ownRoutes+bgpConfiguration(`asNumber: 4200000100, communities: [{name: pods, value: "64512:100"}], prefixAdvertisements: [`+
				`{cidr: 192.168.0.0/16, communities: [pods, "64512:7:8"]}, {cidr: "fd00:192::/48", communities: [pods]}]`)+
				peerings(4200000001, "ttlSecurity: 1", "filters: [own-routes]"))
			c.awaitToR(t)
			tor.awaitPaths(t, pod1, path{NextHop: worker1, ASPath: "4200000100", Communities: "64512:100 64512:7:8"})
			tor.awaitPaths(t, blockOf(c.pod(t, "pod-1"), true), path{NextHop: "fd00:30::206", ASPath: "4200000100", Communities: "64512:100"})
			c.reachesAll(t, theClient)
		})
		t.Run("password, AS that only this peer is shown", func(t *testing.T) {
			c.remove(t)
			tor.restart(t, torConf{as: torAS, nodes: 64999, password: "S3cret"}.text(v))
			c.apply(t, ownRoutes+peerings(torAS, "localASNumber: 64999", "password: {secretKeyRef: {name: tor, key: password}}", "filters: [own-routes]"))
			c.awaitUp(t, "worker-1", worker2, "fd00:30::56")
			c.awaitDown(t, "worker-1", "10.30.0.1", "secret tor", "key password")
			c.secret(t, "tor", "password", "S3cret")
			c.awaitToR(t)
			tor.awaitPaths(t, pod1, path{NextHop: worker1, ASPath: "64999"})
			mesh := c.awaitMesh(t, "worker-1")
			c.secret(t, "tor", "password", "wrong")
			c.awaitDown(t, "worker-1", "10.30.0.1", "password mismatch")
			c.secret(t, "tor", "password", "S3cret")
			c.awaitToR(t)
			assert.Equal(t, mesh, c.meshRows(t, "worker-1"), "no other session notices")
		})
		t.Run("next hops", func(t *testing.T) {
			c.remove(t)
			tor.restart(t, torConf{as: torAS, nodes: ownAS}.text(v))
			c.apply(t, peerings(torAS))
			c.awaitToR(t)
			tor.awaitHops(t, pod2, master, worker1, worker2, worker3) // as eBGP has it, each node tells of all that it knows
			c.apply(t, peerings(torAS, "nextHopMode: Keep"))
			tor.awaitHops(t, pod2, worker2, worker2, worker2, worker2)
			c.awaitRoute(t, theToR, pod2, worker2)
			c.reachesAll(t, theClient)
			c.apply(t, peerings(torAS, "nextHopMode: Self"))
			tor.awaitHops(t, pod2, master, worker1, worker2, worker3)
		})
		t.Run("without mesh", func(t *testing.T) {
			c.apply(t, noMesh+peerings(torAS))
			tor.awaitHops(t, pod2, worker2)
			c.awaitRoute(t, "worker-1", pod2) // the ToR sends it, with our own AS in its path
			c.reachesAll(t, theClient)
			c.apply(t, peerings(torAS, "numAllowedLocalASNumbers: 1"))
			for _, from := range []string{"pod-1", "pod-2", "pod-3"} {
				c.reachesAll(t, from)
			}
		})
	})
}
