//go:build lab

package suite

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/lab"
)

const (
	// stormDeaths is how often felix dies under each driver.
	stormDeaths = 100
	// stormMoment bounds the random time that felix has before it dies again: from nothing to more than a whole start takes.
	stormMoment = 600 * time.Millisecond
	// stormPort is what no version of any policy of the storm ever allows. Conversations have 7000 and the following.
	stormPort = 7700
)

// stormTurns are the labels that pods of the storm take on one after the other. Each is under a policy of its own, and all of
// these say the same: whoever is between two of them would be under none.
var stormTurns = []string{"!has(turn)", "turn == 'a'", "turn == 'b'", "turn == 'c'"}

// stormPods are the pods whose labels change. They talk all the time.
var stormPods = []string{"pod-1", "pod-2", "pod-3", "near"}

// TestPolicyStorm: felix is killed a hundred times at random moments while pods come and go, pods' labels change, and policies
// change. What policy never allows never passes, not one packet; what is established and was never forbidden is never cut.
func TestPolicyStorm(t *testing.T) {
	for driver, mode := range ruleDrivers {
		t.Run(driver, func(t *testing.T) { policyStorm(t, driver, mode) })
	}
}

func policyStorm(t *testing.T, driver, mode string) {
	c := up(t, "storm-"+driver, lab.ModeVXLAN, nil)
	c.useRules(t, mode)
	for i, selector := range stormTurns {
		c.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: storm-turn-%d}
spec:
  order: 1000
  selector: "%s"
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, destination: {ports: ["7000:7099"]}}]
`, i, selector))
	}
	c.add(t, "near", "worker-1")
	pairs := [][2]string{{"pod-1", "pod-2"}, {"pod-2", "pod-1"}, {"pod-3", "pod-1"}, {"near", "pod-1"}}
	talks := c.converse(t, pairs...)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	c.change(t, random, 0)
	for _, p := range pairs { // where nothing listens and nothing is forbidden, a connection is refused at once
		to := netip.AddrPortFrom(c.address(t, p[1]), stormPort-1)
		eventually(t, patience, func() string {
			ctx, cancel := context.WithTimeout(t.Context(), bound(3*time.Second))
			defer cancel()
			if _, err := c.Dial(ctx, p[0], to); errors.Is(err, syscall.ECONNREFUSED) {
				return "policy is not there yet from " + p[0] + " to " + p[1]
			}
			return ""
		})
	}
	forbidden := c.tryForbidden(t, pairs)
	churning := c.churn(t, "worker-1", "worker-2")
	victims := []victim{felix, {"worker-2", lab.ProcessFelix}}
	for i := range stormDeaths {
		v := victims[i%len(victims)]
		moment := time.NewTimer(time.Duration(random.Int64N(int64(bound(stormMoment)))))
		<-moment.C
		c.kill(t, v)
		if random.IntN(2) == 0 { // what changes while it is away
			c.change(t, random, i)
		}
		c.start(t, v)
		if random.IntN(2) == 0 { // and while it starts
			c.change(t, random, i)
		}
	}
	c.awaitReady(t, "worker-1")
	c.awaitReady(t, "worker-2")
	churning.awaitMore(t, 3)
	churning.end()
	talks.goOn(t, "after the storm")
	t.Logf("%d packets and %d connections that policy forbids were tried; a conversation waited %v at most",
		forbidden.packets.Load(), forbidden.connections.Load(), talks.takeLongest())
	assert.Positive(t, forbidden.packets.Load())
	assert.Positive(t, forbidden.connections.Load())
	assert.Empty(t, forbidden.leaks(), "what policy never allows has passed")
}

// change changes one of some policies, a set that one of them names, and the labels of a pod, by which policies select it and
// rules mean it. None of them is about the ports of the test.
func (c *cluster) change(t *testing.T, random *rand.Rand, i int) {
	t.Helper()
	c.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: storm, labels: {storm: "true"}}
spec: {nets: [10.9.%d.0/24, 192.168.0.0/16]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: storm-%d}
spec:
  order: %d
  selector: "%s"
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: "has(storm) || turn == 'a'"}, destination: {ports: [%d]}}
  - {action: Deny, protocol: UDP, source: {selector: "turn != 'b'"}, destination: {ports: [%d]}}
`, i, random.IntN(5), 1+random.IntN(300), append(stormTurns, "all()")[random.IntN(5)], 7500+random.IntN(100), 7600+random.IntN(50)))
	c.label(t, stormPods[random.IntN(len(stormPods))], "turn", string("abc"[random.IntN(3)]))
}

// label gives a pod a label.
func (c *cluster) label(t *testing.T, pod, key, value string) {
	t.Helper()
	name, err := api.WorkloadEndpointName(api.WorkloadEndpointSpec{Node: c.pod(t, pod).Node, Orchestrator: api.OrchestratorKubernetes, Pod: pod, Endpoint: "eth0"})
	require.NoError(t, err)
	eventually(t, patience, func() string { // the endpoint is written when felix has told of it
		if code, said := c.try(t, "master", "calicoctl", "patch", "workloadendpoint", name, "-n", "default", "-p", fmt.Sprintf("{metadata: {labels: {%s: %s}}}", key, value)); code != 0 {
			return said
		}
		return ""
	})
}

// forbidden is what is tried all the time and must never succeed.
type forbidden struct {
	packets, connections atomic.Int64 // tried

	mu  sync.Mutex // guards the following
	did []string   // succeeded
}

func (f *forbidden) leak(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.did) < 20 {
		f.did = append(f.did, time.Now().Format(time.StampMilli)+" "+what)
	}
}

func (f *forbidden) leaks() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.did
}

// tryForbidden sends datagrams and asks for connections between pairs of pods until the test ends.
func (c *cluster) tryForbidden(t *testing.T, pairs [][2]string) *forbidden {
	t.Helper()
	f := &forbidden{}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var closes []func() error
	t.Cleanup(func() {
		stop()
		for _, end := range closes {
			_ = end()
		}
		all.Wait()
	})
	listening := map[string]bool{}
	for i, p := range pairs {
		from, to := p[0], p[1]
		name := from + " to " + to
		there := netip.AddrPortFrom(c.address(t, to), stormPort+1+uint16(i))
		here := netip.AddrPortFrom(c.address(t, from), stormPort+1+uint16(i))
		receiver, err := c.DialUDP(within(t, patience), to, there, here)
		require.NoError(t, err)
		sender, err := c.DialUDP(within(t, patience), from, here, there)
		require.NoError(t, err)
		closes = append(closes, receiver.Close, sender.Close)
		all.Go(func() {
			for b := make([]byte, 10); ctx.Err() == nil; {
				if n, err := receiver.Read(b); err == nil && n > 0 {
					f.leak("a datagram from " + name)
				}
			}
		})
		all.Go(func() {
			tick := time.NewTicker(pace / 4)
			defer tick.Stop()
			for ctx.Err() == nil {
				if _, err := sender.Write([]byte("hello")); err == nil {
					f.packets.Add(1)
				}
				<-tick.C
			}
		})
		server := netip.AddrPortFrom(there.Addr(), stormPort)
		if !listening[to] {
			listening[to] = true
			ln, err := c.Listen(within(t, patience), to, netip.AddrPortFrom(netip.IPv4Unspecified(), stormPort))
			require.NoError(t, err)
			closes = append(closes, ln.Close)
		}
		all.Go(func() {
			for ctx.Err() == nil {
				f.connections.Add(1)
				if conn := c.tryDial(ctx, from, server); conn != nil {
					f.leak("a connection from " + name)
					_ = conn.Close()
				}
			}
		})
	}
	return f
}

// tryDial asks for a connection for a short time.
func (c *cluster) tryDial(ctx context.Context, from string, to netip.AddrPort) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, bound(200*time.Millisecond))
	defer cancel()
	conn, err := c.Dial(ctx, from, to)
	if err != nil {
		return nil
	}
	return conn
}
