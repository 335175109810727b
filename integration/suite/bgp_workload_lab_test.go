//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPodSpeaksBGP: the example of docs/bgp.md as it stands. A pod peers with its node by the address that pods know their nodes by, learns the cluster's routes,
// and announces a prefix of its own, which the pods of other nodes reach. What no filter accepts is not
// taken, and told. The node's other ports stay closed to it.
func TestPodSpeaksBGP(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		pod := c.address(t, "pod-1")
		c.apply(t, example(t, "pods.yaml"))
		c.sh(t, "pod-1", "ip addr add 192.168.200.1/32 dev lo; ip addr add 192.168.201.1/32 dev lo")
		c.sh(t, "pod-1", "ip route add 169.254.8.1 via 169.254.1.1 dev eth0") // FRR does not count a default route as a way to a peer
		child := c.router(t, v, "pod-1", childConf(v, pod))

		c.awaitUp(t, "worker-1", pod.String())
		c.awaitRoute(t, "worker-1", netip.MustParsePrefix("192.168.200.0/24"), pod.String())
		c.awaitRoute(t, "worker-2", netip.MustParsePrefix("192.168.200.0/24"), c.nodeAddress("worker-1").String())
		child.awaitHops(t, blockOf(c.pod(t, "pod-3"), false), "169.254.8.1")
		for _, from := range []string{"pod-2", "worker-1", "worker-2"} {
			c.reaches(t, from, netip.MustParseAddr("192.168.200.1"))
		}
		_, route := c.gateways(t, "worker-1", netip.MustParsePrefix("192.168.201.0/24"))
		assert.Empty(t, route, "no filter accepts it")
		c.saysInTime(t, "worker-1", "192.168.201.0/24", "calicoctl", "bgp", "rejected", "--peer", pod.String())
		require.Contains(t, c.run(t, "worker-1", "ip", "route", "get", pod.String()), "src "+c.nodeAddress("worker-1").String())

		// The BGPPeer goes, and all that came by it.
		c.run(t, "master", "calicoctl", "delete", "bgppeer", "vms")
		c.awaitRoute(t, "worker-1", netip.MustParsePrefix("192.168.200.0/24"))
		c.awaitRoute(t, "worker-2", netip.MustParsePrefix("192.168.200.0/24"))
		eventually(t, patience, func() string {
			if text := c.run(t, "worker-1", "ip", "addr"); strings.Contains(text, "169.254.8.1") {
				return "the address by which the pod knew its node is still there"
			}
			return ""
		})
	})
}

// childConf is what a pod's speaker is told: it announces a prefix that it may, and one that it may not.
func childConf(v vendor, own netip.Addr) string {
	if v == vendorBIRD {
		return fmt.Sprintf(`router id %[1]s;
protocol device {}
protocol static { ipv4; route 192.168.200.0/24 blackhole; route 192.168.201.0/24 blackhole; }
protocol bgp node {
  local %[1]s as 65010;
  neighbor 169.254.8.1 as 64512;
  multihop;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; };
}
`, own)
	}
	return fmt.Sprintf(`router bgp 65010
 bgp router-id %[1]s
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 169.254.8.1 remote-as 64512
 neighbor 169.254.8.1 ebgp-multihop
 neighbor 169.254.8.1 timers connect 1
 address-family ipv4 unicast
  network 192.168.200.0/24
  network 192.168.201.0/24
`, own)
}
