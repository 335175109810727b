//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// Times of TestLongLived: how long a peer that is away is expected back soon, and how long its routes may do after that, which
// has to be enough to look at them and start a bird, on a machine that is slow, too.
const (
	soonBack  = 2 * time.Second
	longStale = 20 * time.Second
)

// longLivedStale is LLGR_STALE (RFC 9494).
const longLivedStale = "65535:6"

// longLived makes a configuration of BIRD one that speaks long-lived graceful restart.
func longLived(conf string) string {
	return strings.ReplaceAll(conf, "  graceful restart on;\n", fmt.Sprintf(
		"  graceful restart on;\n  graceful restart time %d;\n  long lived graceful restart on;\n  long lived stale time %d;\n",
		int(soonBack.Seconds()), int(longStale.Seconds())))
}

// TestLongLived: when our bird dies, a ToR keeps its routes beyond the restart time, as the last choice, and gives them up at the
// end of the stale time; a bird that is back before has them as they were. When the ToR's daemon dies, the node does the same
// for it.
func TestLongLived(t *testing.T) {
	t.Parallel()
	service := services[false]
	c := upRack(t, "suite-longlived")
	tor := c.router(t, vendorBIRD, theToR, longLived(torConf{as: torAS, nodes: ownAS}.text(vendorBIRD)))
	c.apply(t, ownRoutes+bgpConfiguration("serviceClusterIPs: [{cidr: 10.96.0.0/16}]")+peerings(torAS, "filters: [own-routes]",
		fmt.Sprintf("maxRestartTime: %s, restartMode: LongLivedGracefulRestart, longLivedStaleTime: %s", soonBack, longStale)))
	c.awaitToR(t)
	block, bird := blockOf(c.pod(t, "pod-1"), false), victim{"worker-1", lab.ProcessBird}
	const node = "10.30.0.206"
	others := []string{"10.30.0.10", "10.30.0.56", "10.30.1.66"}
	stale := func(want bool) {
		t.Helper()
		for _, p := range []netip.Prefix{block, service} {
			eventually(t, patience, func() string {
				for _, way := range tor.paths(t, p) {
					if way.NextHop == node && strings.Contains(way.Communities, longLivedStale) == want {
						return ""
					}
				}
				return fmt.Sprintf("the ToR's path to %s is not one with %s: %t: %v", p, longLivedStale, want, tor.paths(t, p))
			})
		}
	}
	c.awaitRoute(t, theToR, service, slices.Concat(others, []string{node})...)
	beats := c.beats(t, theClient, firstOf(c.pod(t, "pod-1"), false))

	c.kill(t, bird)
	stale(true)
	c.awaitRoute(t, theToR, service, others...) // while there are better ones
	c.awaitRoute(t, theToR, block, node)        // there is no other
	c.start(t, bird)
	c.awaitUp(t, "worker-1", "10.30.0.1")
	stale(false)
	c.awaitRoute(t, theToR, service, slices.Concat(others, []string{node})...)
	beats.lostNone(t, "bird was away for longer than the restart time")

	began := time.Now()
	c.kill(t, bird)
	stale(true)
	c.awaitRoute(t, theToR, block)
	require.Less(t, longStale, time.Since(began), "the ToR gave the route up before its time")
	c.start(t, bird)
	c.awaitRoute(t, theToR, block, node)

	c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
	began = time.Now()
	tor.kill(t)
	eventually(t, patience, func() string {
		if said := c.run(t, "worker-1", "calicoctl", "bgp", "routes", "--view", "table", "--within", outside[false].String(), "-o", "yaml"); !strings.Contains(said, longLivedStale) {
			return "the node's path is not stale: " + said
		}
		return ""
	})
	c.awaitRoute(t, "worker-1", outside[false])
	require.Less(t, longStale, time.Since(began), "the node gave the route up before its time")
	tor.start(t)
	c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
}
