//go:build lab

package suite

import (
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// longestGap is for how long a route may be missing, and a connection may wait, when processes die. Like all such times here it
// is no measurement, for which there are benchmarks: a starved machine rests for seconds now and then.
const longestGap = 10 * time.Second

// nodeProcesses are all that a worker runs.
var nodeProcesses = []victim{{"worker-1", lab.ProcessBird}, {"worker-1", lab.ProcessFelix}, {"worker-1", lab.ProcessConfd}}

// death is processes that are killed together.
type death struct {
	name    string
	victims []victim
	bgp     bool // sessions go down with them
}

var (
	deathOfBird  = death{"bird", []victim{{"worker-1", lab.ProcessBird}}, true}
	deathOfConfd = death{"confd", []victim{{"worker-1", lab.ProcessConfd}}, false}
	deathOfFelix = death{"felix", []victim{felix}, false}
	deathOfTypha = death{"typha and its datastore", []victim{typha}, false}
	deathOfNode  = death{"all of a node", nodeProcesses, true}
	deathOfBoth  = death{"all of a node and typha", append([]victim{typha}, nodeProcesses...), true}
)

// TestKill: kill -9 of any process, then start: no connection between pods dies, no route is missing for long, pods can be
// added, and the kernels hold what they held.
func TestKill(t *testing.T) {
	for mode, when := range map[lab.Mode]struct{ idle, busy []death }{
		lab.ModeDirect: {
			idle: []death{deathOfFelix, deathOfBird, deathOfConfd, deathOfTypha, deathOfNode, deathOfBoth},
			busy: []death{deathOfFelix, deathOfBird, deathOfConfd, deathOfTypha, deathOfBoth},
		},
		lab.ModeVXLAN: { // where bird and confd have no part in routing
			idle: []death{deathOfFelix, deathOfTypha, deathOfNode, deathOfBoth},
			busy: []death{deathOfFelix, deathOfTypha, deathOfBoth},
		},
	} {
		t.Run(string(mode), func(t *testing.T) {
			c := up(t, "suite-kill", mode, nil)
			pairs := [][2]string{{"pod-1", "pod-2"}, {"pod-2", "pod-1"}, {"master", "pod-1"}}
			if mode == lab.ModeVXLAN {
				pairs = append(pairs, [2]string{"pod-3", "pod-1"})
			}
			talks, before, watch := c.converse(t, pairs...), c.settled(t), c.watchRoutes(t)
			for _, d := range when.idle {
				t.Run(d.name, func(t *testing.T) {
					uptimes, logged := c.uptimes(t, "worker-1"), c.followed(t)
					for _, v := range d.victims {
						c.kill(t, v)
					}
					talks.goOn(t, "they are down")
					assert.Empty(t, before.difference(c.settled(t)), "nothing changes while they are down")
					for _, v := range d.victims {
						c.start(t, v)
					}
					c.awaitReady(t, "worker-1")
					c.awaitPaths(t)
					c.awaitTypha(t, logged, d.victims)
					late := c.addInTime(t, "late", "worker-1") // typha, felix and the datastore work together again
					c.probe(t, "pod-2", "late")
					c.del(t, "late")
					c.awaitKernel(t, before, patience)
					c.awaitStored(t)
					talks.goOn(t, "they are up again")
					talks.wereSmooth(t, longestGap)
					assert.NotContains(t, c.sh(t, "worker-1", "ip link"), late.HostInterface)
					if !d.bgp {
						assert.Equal(t, uptimes, c.uptimes(t, "worker-1"), "sessions stay up")
					}
					watch.noGap(t, longestGap)
				})
			}
			for _, d := range when.busy {
				t.Run(d.name+" during a burst", func(t *testing.T) {
					c.burst(t, d.victims)
					c.awaitReady(t, "worker-1")
					c.awaitPaths(t)
					c.awaitKernel(t, before, patience)
					c.awaitStored(t)
					talks.goOn(t, "after a burst")
					talks.wereSmooth(t, longestGap)
					watch.noGap(t, longestGap)
				})
			}
			c.reachable(t)
		})
	}
}

// burst adds pods while processes are killed and started. A pod that could not be added can be added later; all of them
// work, and can be deleted.
func (c *cluster) burst(t *testing.T, victims []victim) {
	t.Helper()
	names := []string{"burst-1", "burst-2", "burst-3", "burst-4", "burst-5", "burst-6"}
	failed := make([]error, len(names))
	begun := make(chan struct{}, len(names))
	ctx := within(t, 2*patience)
	var adding sync.WaitGroup
	for i, name := range names {
		adding.Go(func() {
			begun <- struct{}{}
			_, failed[i] = c.PodAdd(ctx, lab.Pod{Name: name, Node: "worker-1"})
			begun <- struct{}{}
		})
		<-begun
	}
	<-begun // the first one is done
	for _, v := range victims {
		c.kill(t, v)
	}
	for _, v := range victims {
		c.start(t, v)
	}
	adding.Wait()
	c.awaitReady(t, "worker-1")
	again := 0
	for i, name := range names {
		if failed[i] == nil {
			continue
		}
		again++
		assert.Regexp(t, `try again|cannot do this now|felix`, failed[i].Error())
		c.addInTime(t, name, "worker-1")
	}
	t.Logf("%d of %d pods were added at the second attempt", again, len(names))
	for _, name := range names {
		c.probe(t, "pod-2", name)
	}
	for _, name := range names {
		c.del(t, name)
	}
}

// followed counts how often felix and confd of worker-1 came to follow typha.
func (c *cluster) followed(t *testing.T) map[string]int {
	t.Helper()
	times := map[string]int{}
	for _, process := range []string{lab.ProcessFelix, lab.ProcessConfd} {
		times[process] = strings.Count(c.log(t, victim{"worker-1", process}), "following typha")
	}
	return times
}

// awaitTypha waits until felix and confd of worker-1 follow typha again, if they or typha were killed.
func (c *cluster) awaitTypha(t *testing.T, before map[string]int, killed []victim) {
	t.Helper()
	for process, times := range before {
		if !slices.Contains(killed, typha) && !slices.Contains(killed, victim{"worker-1", process}) {
			continue
		}
		eventually(t, patience, func() string {
			if c.followed(t)[process] == times {
				return process + " does not follow typha"
			}
			return ""
		})
	}
}

// awaitPaths waits until routes that come by BGP are again what the peers say, where there are such routes.
func (c *cluster) awaitPaths(t *testing.T) {
	t.Helper()
	if c.mode == lab.ModeDirect {
		c.awaitSessions(t)
	}
}

// probe requires that a connection can be opened.
func (c *cluster) probe(t *testing.T, from, to string) {
	t.Helper()
	r, err := c.Probe(within(t, patience), lab.ProbeRequest{From: from, To: to, Timeout: lab.AnswerPatience})
	require.NoError(t, err)
	require.True(t, r.OK, "%s to %s: %s", from, to, r.Error)
}

var sessionRow = regexp.MustCompile(`(?m)^\| (\S+) +\| [^|]+\| (\w+) +\| (\S+) +\|`)

// uptimes are since when a node's sessions are up, by peer.
func (c *cluster) uptimes(t *testing.T, node string) map[string]string {
	t.Helper()
	up := map[string]string{}
	for _, m := range sessionRow.FindAllStringSubmatch(c.run(t, node, "calicoctl", "node", "status"), -1) {
		up[m[1]] = m[2] + " " + m[3]
	}
	require.Len(t, up, len(c.topology.Nodes)-1)
	return up
}
