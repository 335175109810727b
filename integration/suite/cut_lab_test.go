//go:build lab

package suite

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// cutPort is the port that policy comes to forbid, freePort the one it goes on to allow.
const (
	cutPort  = 7100
	freePort = 7101
)

// longestCut is how long a forbidden connection may go on once the policy is written. A machine that has time does it in a
// tenth of a second; one that is starved rests for longer than that.
const longestCut = 10 * time.Second

// exchange is two ends that send to each other all the time, whatever arrives.
type exchange struct {
	name string
	ends [2]heard
}

// heard counts what arrived at one end.
type heard struct {
	messages atomic.Uint64
	last     atomic.Int64 // in nanoseconds of Unix time
}

// both keeps two ends sending, TCP or UDP, until the test ends.
func both(t *testing.T, name string, ends ...net.Conn) *exchange {
	x := &exchange{name: name}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i, c := range ends {
		all.Go(func() {
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					_ = c.SetWriteDeadline(time.Now().Add(pace)) // a full buffer must not stop it
					_, _ = c.Write([]byte("hello"))
				case <-ctx.Done():
					return
				}
			}
		})
		all.Go(func() {
			b := make([]byte, 1<<16)
			for ctx.Err() == nil {
				n, err := c.Read(b)
				if n > 0 {
					x.ends[i].messages.Add(1)
					x.ends[i].last.Store(time.Now().UnixNano())
				}
				if err != nil {
					if _, datagrams := c.(*net.UDPConn); !datagrams {
						return
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		for _, c := range ends {
			_ = c.Close()
		}
		all.Wait()
	})
	return x
}

func (x *exchange) counts() [2]uint64 {
	return [2]uint64{x.ends[0].messages.Load(), x.ends[1].messages.Load()}
}

// flows waits until both ends hear.
func (x *exchange) flows(t *testing.T) {
	t.Helper()
	before := x.counts()
	eventually(t, patience, func() string {
		if now := x.counts(); now[0] < before[0]+5 || now[1] < before[1]+5 {
			return x.name + " does not flow both ways"
		}
		return ""
	})
}

// stopped is when the last of either end arrived.
func (x *exchange) stopped() time.Time {
	return time.Unix(0, max(x.ends[0].last.Load(), x.ends[1].last.Load()))
}

// tcp makes a connection from one pod to a server in another, by any address that leads there.
func (c *cluster) tcp(t *testing.T, from, server string, to netip.AddrPort, port uint16) (client, accepted net.Conn) {
	t.Helper()
	ctx := within(t, patience)
	ln, err := c.Listen(ctx, server, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	require.NoError(t, err)
	defer ln.Close()
	client, err = c.Dial(ctx, from, to)
	require.NoError(t, err)
	accepted, err = ln.AcceptTCP()
	require.NoError(t, err)
	return client, accepted
}

// udp makes both ends of a conversation in datagrams; the server answers from the pod's own address.
func (c *cluster) udp(t *testing.T, from, server string, to netip.AddrPort) (client, accepted net.Conn) {
	t.Helper()
	const clientPort = 7102
	ctx := within(t, patience)
	here, there := netip.AddrPortFrom(c.address(t, from), clientPort+portOf(server)), netip.AddrPortFrom(c.address(t, server), to.Port())
	accepted, err := c.DialUDP(ctx, server, there, here)
	require.NoError(t, err)
	client, err = c.DialUDP(ctx, from, here, to)
	require.NoError(t, err)
	// The client's packet comes first: if the server's did, its node would take it for the one who began, and the client's
	// for answers, which no policy forbids.
	_, err = client.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, accepted.SetReadDeadline(time.Now().Add(patience)))
	_, err = accepted.Read(make([]byte, 5))
	require.NoError(t, err)
	require.NoError(t, accepted.SetReadDeadline(time.Time{}))
	return client, accepted
}

// portOf tells servers apart.
func portOf(server string) (n uint16) {
	for _, b := range []byte(server) {
		n += uint16(b)
	}
	return n
}

func policyOf(ports ...int) string {
	var rules []string
	for _, p := range ports {
		for _, protocol := range []string{"TCP", "UDP"} {
			rules = append(rules, fmt.Sprintf("{action: Allow, protocol: %s, destination: {ports: [%d]}}", protocol, p))
		}
	}
	return `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: cut}
spec:
  order: 10
  selector: all()
  types: [Ingress]
  ingress: [` + strings.Join(rules, ", ") + "]\n"
}

// TestEstablishedConnectionsAreCut: a policy that comes to forbid a connection ends it, in both directions and for good, although
// both ends go on sending, and touches no other connection of the same pods.
func TestEstablishedConnectionsAreCut(t *testing.T) {
	for driver, mode := range ruleDrivers {
		t.Run(driver, func(t *testing.T) { establishedConnectionsAreCut(t, driver, mode) })
	}
}

// ruleDrivers are the modes of FelixConfiguration that choose them.
var ruleDrivers = map[string]string{"nftables": "Enabled", "iptables": "Disabled"}

// useRules chooses the rule driver of all nodes, and waits for it.
func (c *cluster) useRules(t *testing.T, mode string) {
	t.Helper()
	c.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {nftablesMode: %s}
`, mode))
	for _, n := range c.topology.Nodes {
		c.awaitRules(t, n.Name, mode)
	}
}

// awaitRules waits until a node's rules are those of the driver that a mode chooses.
func (c *cluster) awaitRules(t *testing.T, node, mode string) {
	t.Helper()
	eventually(t, patience, func() string {
		_, ours := c.try(t, node, "nft", "list", "table", "ip", "calico")
		if strings.Contains(ours, "filter-FORWARD") == (mode == "Enabled") {
			return ""
		}
		return "the rules of " + node + " have not moved"
	})
}

func establishedConnectionsAreCut(t *testing.T, driver, mode string) {
	c := up(t, "cut-"+driver, lab.ModeVXLAN, nil)
	c.useRules(t, mode)
	c.apply(t, policyOf(cutPort, freePort))
	service := netip.MustParseAddr("10.96.7.7")
	// A service as kube-proxy would make it, on the node of the client.
	c.sh(t, "worker-1", fmt.Sprintf(`nft -f - <<'END'
		table ip service {
			chain pre {
				type nat hook prerouting priority dstnat
				ip daddr %s dnat ip to %s
			}
		}
END`, service, c.address(t, "pod-3")))
	near := c.add(t, "near", "worker-1")
	defer c.del(t, "near")
	paths := []struct {
		name, from, server string
		address            netip.Addr
	}{
		{"to another node", "pod-1", "pod-2", c.address(t, "pod-2")},
		{"on one node", "pod-1", "near", near.Addresses[0]},
		{"by a service", "pod-1", "pod-3", service},
	}
	var forbidden []*exchange
	var allowed conversations
	for _, p := range paths {
		client, server := c.tcp(t, p.from, p.server, netip.AddrPortFrom(p.address, cutPort), cutPort)
		forbidden = append(forbidden, both(t, "TCP "+p.name, client, server))
		here, there := c.udp(t, p.from, p.server, netip.AddrPortFrom(p.address, cutPort))
		forbidden = append(forbidden, both(t, "UDP "+p.name, here, there))
		allowed = append(allowed, c.steady(t, fmt.Sprint("allowed ", p.name), p.from, p.server, netip.AddrPortFrom(p.address, freePort)))
	}
	for _, x := range forbidden {
		x.flows(t)
	}
	allowed.goOn(t, "before")
	allowed.takeLongest()

	began := time.Now()
	c.apply(t, policyOf(freePort))
	written := time.Now()
	silent := bound(5 * time.Second)
	eventually(t, 2*patience, func() string {
		for _, x := range forbidden {
			if time.Since(x.stopped()) < silent {
				return x.name + " goes on"
			}
		}
		return ""
	})
	for _, x := range forbidden {
		took := x.stopped().Sub(written)
		t.Logf("%s: cut %v after the policy was written (which took %v)", x.name, took, written.Sub(began))
		assert.Less(t, took, bound(longestCut), x.name)
	}
	allowed.goOn(t, "after the cut")
	allowed.wereSmooth(t, bound(longestGap))

	for _, p := range paths {
		ctx, cancel := context.WithTimeout(t.Context(), bound(time.Second))
		conn, err := c.Dial(ctx, p.from, netip.AddrPortFrom(p.address, cutPort))
		cancel()
		if err == nil {
			_ = conn.Close()
		}
		assert.Error(t, err, "a new connection %s", p.name)
	}
	before := make([][2]uint64, len(forbidden))
	for i, x := range forbidden {
		before[i] = x.counts()
	}
	c.run(t, "worker-1", "calico-node", "-felix-ready")
	for i, x := range forbidden {
		assert.Equal(t, before[i], x.counts(), "%s stays cut", x.name)
	}

	c.apply(t, policyOf(cutPort, freePort))
	for i, p := range paths {
		eventually(t, patience, func() string {
			ctx, cancel := context.WithTimeout(t.Context(), bound(5*time.Second))
			defer cancel()
			// A listener of the same port is still there as a connection only.
			ln, err := c.Listen(ctx, p.server, netip.AddrPortFrom(netip.IPv4Unspecified(), cutPort))
			if err != nil {
				return err.Error()
			}
			defer ln.Close()
			conn, err := c.Dial(ctx, p.from, netip.AddrPortFrom(p.address, cutPort))
			if err != nil {
				return "a new connection " + p.name + " fails: " + err.Error()
			}
			return errorText(conn.Close())
		})
		forbidden[2*i+1].flows(t) // UDP begins anew by itself
	}
	allowed.goOn(t, "at the end")
	eventually(t, 2*patience, func() string {
		if strings.Contains(c.sh(t, "worker-1", "nft list ruleset; iptables-legacy-save; iptables-nft-save"), "has come to forbid") {
			return "the rule for connections that are cut is still there"
		}
		return ""
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// steady is a conversation with a server by any address that leads to it.
func (c *cluster) steady(t *testing.T, name, from, server string, to netip.AddrPort) *conversation {
	t.Helper()
	client, accepted := c.tcp(t, from, server, to, to.Port())
	talk := &conversation{name: name}
	var all sync.WaitGroup
	all.Go(func() { _, _ = io.Copy(accepted, accepted) })
	all.Go(func() { talk.talk(client.(*net.TCPConn)) })
	t.Cleanup(func() {
		_ = client.Close()
		_ = accepted.Close()
		all.Wait()
	})
	return talk
}
