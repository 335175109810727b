//go:build lab

package suite

import (
	"fmt"
	"regexp"
	"testing"
)

// TestBFDThroughHostEndpoint: where a host endpoint lets through nothing but failsafe ports, BFD of the mesh calls live peers lost,
// over one hop and several; the policy of docs/bgp.md has it come back, and so do failsafe ports of its own.
func TestBFDThroughHostEndpoint(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-bgp-bfd")
	up := regexp.MustCompile(`(?m)^bird_peer_bfd_up\{.*type="mesh"\} 1$`)
	await := func(sessions int) {
		t.Helper()
		eventually(t, patience, func() string {
			text := c.metrics(t, "worker-1", 9097)
			if n := len(up.FindAllString(text, -1)); n != sessions {
				return fmt.Sprintf("BFD is up on %d sessions of worker-1, not on %d", n, sessions)
			}
			return ""
		})
	}
	const all = 6 // three other nodes, of which one is in another rack, by both families
	await(0)
	c.apply(t, bgpConfiguration("nodeMeshFailureDetectionMode: BFD"))
	await(all)

	c.apply(t, "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: worker-1, labels: {rack: left}}\n"+
		"spec: {node: worker-1, expectedIPs: [10.30.0.206]}\n")
	await(0)
	c.awaitDown(t, "worker-2", "10.30.0.206", "bfd")
	c.apply(t, example(t, "bfd-policy.yaml"))
	await(all)
	c.awaitUp(t, "worker-1", "10.30.0.10", "10.30.0.56", "10.30.1.66")

	c.run(t, "master", "calicoctl", "delete", "globalnetworkpolicy", "bfd")
	await(0)
	const ports = `[{protocol: TCP, port: 179}, {protocol: TCP, port: 2379}, {protocol: TCP, port: 5473}, {protocol: UDP, port: 3784}, {protocol: UDP, port: 4784}]`
	c.apply(t, "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\n"+
		"spec: {failsafeInboundHostPorts: "+ports+", failsafeOutboundHostPorts: "+ports+"}\n")
	await(all)
	c.awaitUp(t, "worker-1", "10.30.0.10", "10.30.0.56", "10.30.1.66")
}
