//go:build lab

package suite

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// unsavedView is there while felix has programmed more than it has saved.
const unsavedView = "/run/calico/felix-view-unsaved"

// TestHostEndpoints: nodes are put under policy by a host endpoint, while the cluster on them goes on. What policy forbids stays
// forbidden while felix is away and when it starts with typha away, in either firewall.
func TestHostEndpoints(t *testing.T) {
	const openPort, shutPort = 7200, 7201
	c := up(t, "suite-hosts", lab.ModeVXLAN, nil)
	node := func(name string) netip.Addr {
		for _, n := range c.topology.Nodes {
			if n.Name == name {
				return n.Addresses[0]
			}
		}
		require.Failf(t, "no such node", "%s", name)
		return netip.Addr{}
	}
	reaches := func(from, to string, port uint16) bool {
		ln, err := c.Listen(within(t, patience), to, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		require.NoError(t, err)
		defer ln.Close()
		ctx, cancel := context.WithTimeout(t.Context(), bound(time.Second))
		defer cancel()
		conn, err := c.Dial(ctx, from, netip.AddrPortFrom(node(to), port))
		if err != nil {
			return false
		}
		return assert.NoError(t, conn.Close())
	}
	awaitShut := func() {
		t.Helper()
		eventually(t, patience, func() string {
			if reaches("worker-2", "worker-1", shutPort) {
				return "worker-1 is open"
			}
			return ""
		})
	}
	isOpen := func(from, to string, port uint16, why string) {
		t.Helper()
		eventually(t, patience, func() string {
			if !reaches(from, to, port) {
				return fmt.Sprintf("port %d of %s is not open to %s, though %s", port, to, from, why)
			}
			return ""
		})
	}
	isOpen("worker-2", "worker-1", shutPort, "no host endpoint, no policy")

	c.apply(t, `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: hosts}
spec:
  order: 10
  selector: role == 'node'
  types: [Ingress, Egress]
  ingress:
  - {action: Allow, destination: {nets: [127.0.0.0/8]}} # loopback is an interface too: health checks use it
  - {action: Allow, protocol: TCP, destination: {ports: [7200]}}
  egress:
  - {action: Allow}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: worker-1, labels: {role: node}}
spec: {node: worker-1, interfaceName: "*"}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: worker-2, labels: {role: node}}
spec: {node: worker-2, expectedIPs: ["`+node("worker-2").String()+`"]}
`)
	awaitShut()
	isOpen("worker-2", "worker-1", openPort, "it is allowed")
	isOpen("worker-2", "master", shutPort, "no host endpoint is there")
	eventually(t, patience, func() string {
		if reaches("worker-1", "worker-2", shutPort) {
			return "worker-2, whose interface is found by its address, is open"
		}
		return ""
	})
	assert.Contains(t, c.sh(t, "worker-2", "cat /var/lib/calico/felix/hosts"), `"worker-2":[`, "where it is protected after a reboot before it has addresses")
	c.hostsAreAccountable(t)
	c.reachable(t) // pods on and between the nodes, through tunnels
	c.awaitSessions(t)
	near := c.add(t, "near", "worker-1")
	require.True(t, near.Addresses[0].IsValid(), "typha and datastore can be reached")

	felix, typha := victim{"worker-1", "felix"}, victim{"master", "typha"}
	for _, mode := range []string{"Disabled", "Enabled"} {
		c.useRules(t, mode)
		eventually(t, patience, func() string {
			if code, _ := c.try(t, "worker-1", "test", "-e", unsavedView); code == 0 {
				return "felix has not saved what it has programmed"
			}
			return ""
		})
		c.kill(t, felix)
		require.False(t, reaches("worker-2", "worker-1", shutPort), "felix is away")
		c.kill(t, typha)
		// As a reboot does, also to /run.
		c.sh(t, "worker-1", removeOurs+removeSets+"\nrm -f "+unsavedView)
		require.Empty(t, c.sh(t, "worker-1", rulesOfOurs))
		isOpen("worker-2", "worker-1", shutPort, "there is no firewall")
		c.start(t, felix)
		awaitShut() // from the saved view
		isOpen("worker-2", "worker-1", openPort, "it is allowed")
		rules := c.sh(t, "worker-1", rulesOfOurs)
		assert.Equal(t, mode == "Enabled", strings.Contains(rules, byNFTables), "nftablesMode %s: %s", mode, rules)
		c.start(t, typha)
		c.awaitReady(t, "worker-1")
		c.reachable(t)
	}
	c.del(t, "near")

	c.run(t, "master", "calicoctl", "delete", "hostendpoint", "worker-1")
	isOpen("worker-2", "worker-1", shutPort, "its host endpoint was deleted")
	assert.NotContains(t, c.sh(t, "worker-1", "nft list table ip calico"), "filter-OUTPUT", "no host endpoint, no cost")
}
