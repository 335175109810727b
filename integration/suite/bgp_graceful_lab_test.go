//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestGracefulRestart: our bird dies by kill -9 while a client behind the ToR talks to a pod of that node, and comes back: not
// one packet is lost, since the ToR keeps our routes and our kernel keeps forwarding. Then the ToR's daemon dies and comes back:
// no route of the node goes away.
func TestGracefulRestart(t *testing.T) {
	eachVendor(t, func(t *testing.T, c *cluster, v vendor) {
		tor := c.router(t, v, theToR, torConf{as: torAS, nodes: ownAS}.text(v))
		c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]"))
		c.awaitToR(t)
		pod, bird := c.pod(t, "pod-1"), victim{"worker-1", lab.ProcessBird}
		prefixes := []netip.Prefix{blockOf(pod, false), blockOf(pod, true)}
		hops := []string{"10.30.0.206", "fd00:30::206"}
		for i, p := range prefixes {
			c.awaitRoute(t, theToR, p, hops[i])
		}
		ofToR, ofNode := c.deletions(t, theToR), c.deletions(t, "worker-1")
		beats := []*beats{c.beats(t, theClient, firstOf(pod, false)), c.beats(t, theClient, firstOf(pod, true))}
		kept := func(want bool) {
			t.Helper()
			for i, p := range prefixes {
				eventually(t, patience, func() string {
					if got := nextHops(tor.paths(t, p)); len(got) != 1 || got[0] != hops[i] || tor.keepsFor(hops[i]) != want {
						return fmt.Sprintf("%s has %s by %v, and keeps it for a peer that is away: %t, not %t", v, p, got, !want, want)
					}
					return ""
				})
			}
		}

		c.kill(t, bird)
		kept(true)
		for _, b := range beats {
			b.lostNone(t, "bird is dead")
		}
		c.start(t, bird)
		c.awaitUp(t, "worker-1", "10.30.0.1", "fd00:30::1", "10.30.0.56")
		kept(false)
		for _, b := range beats {
			b.lostNone(t, "bird is back")
		}
		steady := prefixes
		if v == vendorFRR { // its zebra takes an IPv6 route out to write it anew; the packets tell whether that is seen
			steady = prefixes[:1]
		}
		assert.Empty(t, ofToR.of(steady...), "the ToR's kernel had the routes all the time")

		tor.kill(t)
		c.awaitDown(t, "worker-1", "10.30.0.1")
		tor.start(t)
		c.awaitToR(t)
		c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
		c.awaitRoute(t, "worker-1", outside[true], "fd00:30::1")
		assert.Empty(t, ofNode.of(outside[false], outside[true]), "the node's kernel had the ToR's routes all the time")
		kept(false)
		for _, b := range beats {
			b.lostNone(t, "the ToR's daemon is back")
		}
	})
}

// envAway is for how long typha is away in TestAway, as a duration like 10m. Unset, it is back at once.
const envAway = "MUSLIN_AWAY"

// TestAway: what happens to sessions and routes while typha and confd, or felix, or typha for a long time are dead: nothing.
// When they are back, what changed meanwhile is done.
func TestAway(t *testing.T) {
	t.Parallel()
	var long time.Duration
	if text := os.Getenv(envAway); text != "" {
		var err error
		long, err = time.ParseDuration(text)
		require.NoError(t, err, envAway)
	}
	c := upRack(t, "suite-away-bgp", onEtcd)
	tor := c.router(t, vendorBIRD, theToR, torConf{as: torAS, nodes: ownAS}.text(vendorBIRD))
	c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]"))
	c.awaitToR(t)
	block := blockOf(c.pod(t, "pod-1"), false)
	c.awaitRoute(t, theToR, block, "10.30.0.206")
	c.awaitUp(t, "worker-2", "10.30.0.10", "10.30.0.206", "10.30.1.66", "fd00:30::10", "fd00:30::206", "fd00:31::66")
	mesh, before := c.awaitMesh(t, "worker-2"), tor.since()
	require.Len(t, before, len(bothRacks))
	confd := victim{"worker-1", lab.ProcessConfd}
	// dead kills processes, has something done meanwhile, and starts them again.
	dead := func(away []victim, meanwhile func()) {
		t.Helper()
		beats := c.beats(t, theClient, firstOf(c.pod(t, "pod-1"), false))
		ofToR, ofNode := c.deletions(t, theToR), c.deletions(t, "worker-1")
		for _, v := range away {
			c.kill(t, v)
		}
		beats.goOn(t)
		meanwhile()
		tor.stayedUp(t, before, fmt.Sprint(away, " is dead"))
		assert.Equal(t, mesh, c.meshRows(t, "worker-2"))
		beats.lostNone(t, fmt.Sprint(away, " is dead"))
		assert.Empty(t, append(ofToR.of(block), ofNode.of(outside[false], outside[true])...), "the kernels had the routes all the time")
		for _, v := range away {
			c.start(t, v)
		}
	}
	for _, away := range [][]victim{{typha, confd}, {felix}} {
		dead(away, func() {})
		c.awaitReady(t, "worker-1")
	}
	// A new filter reaches nobody whose confd or typha is away. It does once that is there, and no session goes down for it.
	const allRejected = "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: own-routes}\nspec: {exportV4: [{action: Reject}]}\n"
	dead([]victim{confd}, func() {
		c.apply(t, allRejected)
		tor.awaitHops(t, blockOf(c.pod(t, "pod-2"), false))
		tor.awaitHops(t, block, "10.30.0.206")
	})
	tor.awaitHops(t, block)
	c.apply(t, ownRoutes)
	c.awaitRoute(t, theToR, block, "10.30.0.206")
	dead([]victim{typha}, func() {
		c.apply(t, allRejected)
		began := time.Now()
		select {
		case <-t.Context().Done():
		case <-time.After(long):
		}
		t.Logf("typha is away for %s", time.Since(began).Round(time.Second))
		tor.awaitHops(t, block, "10.30.0.206")
	})
	back := time.Now()
	tor.awaitHops(t, block)
	t.Logf("what changed meanwhile is done %s after typha is back", time.Since(back).Round(10*time.Millisecond))
	c.apply(t, ownRoutes)
	c.awaitRoute(t, theToR, block, "10.30.0.206")
	c.reaches(t, theClient, firstOf(c.addInTime(t, "late", "worker-1"), false))
	c.reachesAll(t, theClient)
	tor.stayedUp(t, before, "all are back")
	assert.Equal(t, mesh, c.meshRows(t, "worker-2"))
}

// since tells of each session of a BIRD since what time of day it is up.
func (r *router) since() map[string]time.Time {
	all := map[string]time.Time{}
	for row := range strings.SplitSeq(r.ask("show protocols"), "\n") {
		if f := strings.Fields(row); len(f) > 5 && f[1] == "BGP" && f[5] == "Established" {
			all[f[0]], _ = time.Parse("15:04:05.000", f[4])
		}
	}
	return all
}

// unmoved is by how much the time since when a session of a BIRD is up may differ from one answer to the next and be the same.
// A session that went down is down for longer.
const unmoved = 900 * time.Millisecond

// stayedUp requires that no session of a BIRD went down since then. Its clock is read from a counter, and differs by a
// millisecond from one answer to the next, or by as long as the machine rested meanwhile.
func (r *router) stayedUp(t *testing.T, before map[string]time.Time, when string) {
	t.Helper()
	now := r.since()
	for name, at := range before {
		assert.WithinDuration(t, at, now[name], unmoved, "%s, %s", name, when)
	}
}

// deletions are the routes that were taken out of a machine's kernel since this was begun.
type deletions struct {
	mu   sync.Mutex
	seen []netip.Prefix
}

// deletions begins to look.
func (c *cluster) deletions(t *testing.T, where string) *deletions {
	t.Helper()
	d := &deletions{}
	begun := netip.MustParsePrefix(marker + "/32")
	c.follow(t, where, func(line string) {
		fields, ok := strings.CutPrefix(line, "Deleted ")
		if !ok {
			return
		}
		for f := range strings.FieldsSeq(fields) {
			p, err := netip.ParsePrefix(f)
			if a, bad := netip.ParseAddr(f); err != nil && bad == nil {
				p, err = a.Prefix(a.BitLen())
			}
			if err == nil {
				d.mu.Lock()
				d.seen = append(d.seen, p)
				d.mu.Unlock()
				return
			}
		}
	}, "ip", "-o", "monitor", "route")
	eventually(t, patience, func() string {
		c.sh(t, where, "ip route add blackhole "+marker+"; ip route del blackhole "+marker)
		if len(d.of(begun)) == 0 {
			return "ip monitor shows nothing of " + where
		}
		return ""
	})
	return d
}

// of are the deletions of these prefixes.
func (d *deletions) of(prefixes ...netip.Prefix) (list []netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.seen {
		if slices.Contains(prefixes, p) {
			list = append(list, p)
		}
	}
	return list
}

// follow runs a program until the test ends, and hands each line that it says to take.
func (c *cluster) follow(t *testing.T, where string, take func(string), args ...string) {
	t.Helper()
	d := c.pipe(where, &lines{take: take}, args...)
	t.Cleanup(func() { d.end(t, args[0], syscall.SIGKILL) })
}
