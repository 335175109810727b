//go:build lab

package suite

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/integration/lab"
)

// joinTime is how long a node may take from the start of its first process until all others reach a pod on it.
const joinTime = time.Minute

// TestNodeAdded: a machine that the cluster has never heard of joins while connections are open. Within seconds a pod on it
// is reached from all pods and nodes, and nobody else notices; when it is taken out nothing of it is left anywhere.
func TestNodeAdded(t *testing.T) {
	const late = "worker-3"
	for _, mode := range []lab.Mode{lab.ModeIPIP, lab.ModeVXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			c := up(t, "suite-nodeadd", mode, func(topo *lab.Topology) { forceBPF(t, topo) })
			talks := c.converse(t, [2]string{"pod-1", "pod-2"})
			all, address := c.settled(t), netip.MustParseAddr("10.30.1.66")

			c.takeOut(t, late)
			eventually(t, patience, func() string { return c.mentionsElsewhere(t, late, address) })
			talks.goOn(t, "worker-3 is gone")

			began := time.Now()
			for _, process := range []string{lab.ProcessStartup, lab.ProcessBird, lab.ProcessFelix, lab.ProcessConfd} {
				c.start(t, victim{late, process})
			}
			pod := c.addInTime(t, "pod-3", late)
			wired := time.Since(began)
			c.heard(t, pod, "master", "worker-1", "worker-2", "pod-1", "pod-2")
			took := time.Since(began)
			t.Logf("%s: the first pod after %s, reached from all after %s", mode, wired.Round(time.Millisecond), took.Round(time.Millisecond))
			assert.Less(t, took, joinTime)
			c.reachable(t)
			c.awaitSessions(t)
			talks.goOn(t, "worker-3 is there")
			talks.wereSmooth(t, longestGap)
			c.awaitStored(t)
			for node, lines := range c.settled(t) {
				assert.Len(t, lines, len(all[node]), "%s holds as much as with all nodes", node)
			}
		})
	}
}

// takeOut ends all that a node runs, wipes what it keeps, and has the cluster forget it: then it is as a new machine.
func (c *cluster) takeOut(t *testing.T, node string) {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Pods {
		if p.Node == node {
			c.del(t, p.ID)
		}
	}
	c.awaitStored(t)
	for _, process := range []string{lab.ProcessConfd, lab.ProcessFelix, lab.ProcessBird} {
		c.kill(t, victim{node, process})
	}
	c.sh(t, node, "rm -rf /var/lib/calico/* /run/calico/*\n"+removeAll)
	c.run(t, "master", "calicoctl", "delete", "node", node)
}

// mentionsElsewhere is mentions for all nodes but one.
func (c *cluster) mentionsElsewhere(t *testing.T, but string, a netip.Addr) string {
	t.Helper()
	elsewhere := *c
	elsewhere.topology = without(c.topology, but)
	return elsewhere.mentions(t, []netip.Addr{a})
}

// heard waits until a pod was reached from each of some places by TCP.
func (c *cluster) heard(t *testing.T, pod lab.PodStatus, from ...string) {
	t.Helper()
	ctx := within(t, patience)
	ln, err := c.Listen(ctx, pod.ID, netip.AddrPortFrom(pod.Addresses[0], 0))
	require.NoError(t, err)
	defer ln.Close()
	at := netip.MustParseAddrPort(ln.Addr().String())
	var g errgroup.Group
	for _, place := range from {
		g.Go(func() error {
			for wait := 100 * time.Millisecond; ; wait = min(2*wait, patience) {
				try := within(t, wait)
				conn, err := c.Dial(try, place, at)
				if err == nil {
					return conn.Close()
				}
				if ctx.Err() != nil {
					return fmt.Errorf("%s: %w", place, errors.Join(ctx.Err(), err))
				}
				<-try.Done()
			}
		})
	}
	require.NoError(t, g.Wait())
}
