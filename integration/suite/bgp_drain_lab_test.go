//go:build lab

package suite

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDrainAtToR: a ToR has several ways to a block, over all nodes of a rack. One of them is drained: the ToR, which has been
// told to honour that, leaves it while its routes are still there, they go, and it comes back; the client behind the ToR
// never loses a packet.
func TestDrainAtToR(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		c.drainsAtToR(t, c.router(t, v, theToR, honouring(t, v)))
	})
}

// honouring is a ToR that honours GRACEFUL_SHUTDOWN, by the examples of docs/bgp.md.
func honouring(t *testing.T, v vendor) string {
	t.Helper()
	text := torConf{as: torAS, nodes: ownAS}.text(v)
	if v == vendorBIRD {
		return example(t, "drain-bird.conf") + strings.ReplaceAll(text, "import all;", "import filter honour;")
	}
	for _, n := range bothRacks {
		activate := fmt.Sprintf("  neighbor %s activate\n", n[1])
		text = strings.ReplaceAll(text, "\n"+activate, "\n"+activate+fmt.Sprintf("  neighbor %s route-map honour in\n", n[1]))
	}
	return example(t, "drain-frr.conf") + text
}

// drainsAtToR drains a node of the ToR's, and puts it back.
func (c *cluster) drainsAtToR(t *testing.T, tor *router) {
	t.Helper()
	// Nodes of the other rack would send the packets back to the ToR.
	c.apply(t, peering("left", "rack == 'left'", "10.30.0.1", torAS))
	for _, node := range []string{"master", "worker-1", "worker-2"} {
		c.awaitUp(t, node, "10.30.0.1")
	}
	block := blockOf(c.pod(t, "pod-2"), false)
	// ways are the next hops in the ToR's kernel, heard those of which it knows.
	expect := func(when string, ways, heard []string) {
		t.Helper()
		eventually(t, patience, func() string {
			out := c.sh(t, theToR, "ip route show "+block.String())
			var got []string
			for _, hop := range []string{"10.30.0.10", "10.30.0.206", "10.30.0.56"} {
				if strings.Contains(out, "via "+hop+" ") {
					got = append(got, hop)
				}
			}
			known := nextHops(tor.paths(t, block))
			for _, hop := range heard {
				if !slices.Contains(known, hop) {
					return fmt.Sprintf("%s: %s has not heard of %s: %v", when, tor.vendor, hop, known)
				}
			}
			if slices.Equal(got, ways) && (slices.Contains(heard, "10.30.0.206") || !slices.Contains(known, "10.30.0.206")) {
				return ""
			}
			return fmt.Sprintf("%s: %s goes by %v, not %v, and knows %v:\n%s", when, tor.vendor, got, ways, known, out)
		})
	}
	all, others := []string{"10.30.0.10", "10.30.0.206", "10.30.0.56"}, []string{"10.30.0.10", "10.30.0.56"}
	expect("at the beginning", all, all)
	beats := c.beats(t, theClient, firstOf(c.pod(t, "pod-2"), false))

	c.run(t, "worker-1", "calicoctl", "node", "drain-bgp", "--wait", "10s", "--detach")
	expect("draining", others, all)
	require.Contains(t, c.run(t, "worker-1", "calicoctl", "node", "status"), "draining")
	expect("drained", others, others)
	beats.lostNone(t, "a node was drained")
	c.run(t, "worker-1", "calicoctl", "node", "drain-bgp", "--cancel")
	expect("in service again", all, all)
	beats.lostNone(t, "it is in service again")
}
