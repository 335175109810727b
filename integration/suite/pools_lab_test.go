//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// The pools of TestPools, by what they are.
const (
	poolIPIP   = "tunnelled"
	poolVXLAN  = "across"
	poolDirect = "bare"
	poolIPv6   = "six"
)

// severalPools gives the cluster pools of all kinds at once, and each worker a pod of each IPv4 pool; all pods have an address
// of the IPv6 pool, too.
func severalPools(t *testing.T, topo *lab.Topology) {
	t.Helper()
	dual, err := lab.DualStackTopology()
	require.NoError(t, err)
	*topo = dual
	topo.Pools, topo.Pods = nil, nil
	for _, p := range []struct {
		name, cidr string
		mode       lab.Mode
	}{
		{poolIPIP, "192.168.0.0/18", lab.ModeIPIP},
		{poolVXLAN, "192.168.64.0/18", lab.ModeVXLANCrossSubnet},
		{poolDirect, "192.168.128.0/18", lab.ModeDirect},
		{poolIPv6, "fd00:192::/48", lab.ModeVXLAN},
	} {
		pool := lab.NewPool(netip.MustParsePrefix(p.cidr)).WithMode(p.mode)
		pool.Name = p.name
		topo.Pools = append(topo.Pools, pool)
		for i := 1; i <= 3 && p.name != poolIPv6; i++ {
			topo.Pods = append(topo.Pods, lab.Pod{
				Name: fmt.Sprintf("%s-%d", p.name, i), Namespace: "default", Node: fmt.Sprintf("worker-%d", i), IPv4Pools: []string{p.name},
			})
		}
	}
	forceBPF(t, topo)
}

// TestPools: pools of several modes at once, each pod of the pool that it asked for. What is on the wire is as the pool of the
// packet's destination says. The last IP-in-IP pool that is made a direct one takes the tunnel with it, and brings it back.
// Outgoing traffic is translated or not as each pool says, at any time.
func TestPools(t *testing.T) {
	c := up(t, "suite-pools", lab.ModeDirect, func(topo *lab.Topology) { severalPools(t, topo) })
	pods, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range pods.Pods {
		assert.Equal(t, strings.TrimRight(p.ID, "-0123456789"), c.poolOf(firstOf(p, false)).Name, "%s has %v", p.ID, p.Addresses)
		assert.Equal(t, poolIPv6, c.poolOf(firstOf(p, true)).Name, "%s has %v", p.ID, p.Addresses)
		if strings.HasPrefix(p.ID, poolDirect) { // a network that takes part in the routing of this pool
			block, err := firstOf(p, false).Prefix(26)
			require.NoError(t, err)
			i := slices.IndexFunc(pods.Nodes, func(n lab.NodeStatus) bool { return n.Name == p.Node })
			c.run(t, "router", "ip", "route", "add", block.String(), "via", pods.Nodes[i].Addresses[0].String())
		}
	}
	t.Run("each as its pool says", c.travelAsPoolsSay)
	t.Run("a connection between pools lives on", func(t *testing.T) {
		talks := c.converse(t, [2]string{poolIPIP + "-1", poolVXLAN + "-3"})
		c.tunnelGoes(t)
		talks.goOn(t, "there is no IP-in-IP pool")
		c.tunnelComes(t)
		talks.goOn(t, "there is one again")
	})
	t.Run("floating addresses", c.floating)
	t.Run("outgoing", c.outgoing)
}

// poolOf is the pool that an address is of.
func (c *cluster) poolOf(a netip.Addr) lab.Pool {
	for _, p := range c.topology.Pools {
		if p.CIDR.Contains(a) {
			return p
		}
	}
	return lab.Pool{}
}

// travelAsPoolsSay probes from each pod to each one on another node, over both families, and requires that each packet on the
// wire has the shape that the pool of its destination asks for.
func (c *cluster) travelAsPoolsSay(t *testing.T) {
	ctx := within(t, 2*patience)
	st, err := c.Status(ctx)
	require.NoError(t, err)
	nodeOf := map[netip.Addr]string{}
	var requests []lab.ProbeRequest
	for _, from := range st.Pods {
		for _, a := range from.Addresses {
			nodeOf[a] = from.Node
		}
		for _, to := range st.Pods {
			if from.Node != to.Node {
				r := lab.ProbeRequest{From: from.ID, To: to.ID, Timeout: lab.AnswerPatience}
				r6 := r
				r6.IPv6 = true
				requests = append(requests, r, r6)
			}
		}
	}
	results, err := c.Probes(ctx, requests)
	require.NoError(t, err)
	shape := map[lab.Path]lab.Encapsulation{lab.PathIPIP: lab.EncapIPIP, lab.PathVXLAN: lab.EncapVXLAN, lab.PathNone: lab.EncapNone, lab.PathDirect: lab.EncapNone}
	kinds := map[string]int{}
	for _, r := range results {
		if !assert.True(t, r.OK, "%s to %s (%s): %s", r.From, r.To, r.Target, r.Error) {
			continue
		}
		assert.NotEmpty(t, r.Seen, "%s to %s", r.From, r.To)
		for _, seen := range r.Seen {
			pool := c.poolOf(seen.Inner.Dst)
			way := lab.Expect(c.topology, nil, pool.Mode())(nodeOf[seen.Inner.Src], nodeOf[seen.Inner.Dst])
			if !assert.Equal(t, shape[way], seen.Encap, "pool %s, %s to %s, on %s: %s", pool.Name, r.From, r.To, seen.Node, seen.Packet) {
				break
			}
			kinds[pool.Name+" "+string(seen.Encap)]++
		}
	}
	t.Logf("%d probes; packets by pool and shape: %v", len(results), kinds)
}

// setPool changes a pool's mode, and what the test knows of it.
func (c *cluster) setPool(t *testing.T, name string, mode lab.Mode) {
	t.Helper()
	require.NoError(t, c.SetMode(within(t, patience), name, mode))
	for i, p := range c.topology.Pools {
		if p.Name == name {
			c.topology.Pools[i] = p.WithMode(mode)
		}
	}
	require.NoError(t, c.AwaitPools(within(t, patience), c.topology))
}

// tunnelGoes sets the only IP-in-IP pool to Never: no node has tunl0 or an address for it, and all routes of the pool are on
// the nodes' own interfaces.
func (c *cluster) tunnelGoes(t *testing.T) {
	t.Helper()
	had := map[string]netip.Addr{}
	for _, n := range c.topology.Nodes {
		had[n.Name] = c.tunnelAddress(t, n.Name)
		require.True(t, had[n.Name].IsValid(), "%s has no address on tunl0", n.Name)
		held := c.run(t, "master", "calicoctl", "ipam", "show", "--ip="+had[n.Name].String())
		assert.Contains(t, held, "ipipTunnelAddress")
		assert.Contains(t, held, n.Name)
	}
	for _, p := range []string{"1", "2", "3"} { // as above
		block, err := firstOf(c.pod(t, poolIPIP+"-"+p), false).Prefix(26)
		require.NoError(t, err)
		i := slices.IndexFunc(c.topology.Nodes, func(n lab.Node) bool { return n.Name == "worker-"+p })
		c.run(t, "router", "ip", "route", "add", block.String(), "via", c.topology.Nodes[i].Addresses[0].String())
	}
	began := time.Now()
	c.setPool(t, poolIPIP, lab.ModeDirect)
	for _, n := range c.topology.Nodes {
		eventually(t, patience, func() string {
			if links := c.sh(t, n.Name, "ip -o link show tunl0 2>/dev/null || true"); links != "" {
				return n.Name + " still has " + links
			}
			routes, err := c.Routes(within(t, patience), n.Name, netip.MustParsePrefix("192.168.0.0/18"))
			require.NoError(t, err)
			for _, r := range routes {
				if r.Gateway != "" && r.Dev != "ens5" {
					return fmt.Sprintf("%s has a route that is not on its own interface: %+v", n.Name, r)
				}
			}
			if node := c.run(t, "master", "calicoctl", "get", "node", n.Name, "-o", "yaml"); strings.Contains(node, "ipv4IPIPTunnelAddr") {
				return n.Name + " still has a tunnel address:\n" + node
			}
			if held := c.run(t, "master", "calicoctl", "ipam", "show", "--ip="+had[n.Name].String()); !strings.Contains(held, "not assigned") {
				return fmt.Sprintf("%s of %s is not released: %s", had[n.Name], n.Name, held)
			}
			return ""
		})
	}
	t.Logf("tunl0 and its addresses are gone after %s", time.Since(began).Round(time.Millisecond))
	c.travelAsPoolsSay(t)
}

// tunnelComes sets the pool back: tunl0 is there again, with an address.
func (c *cluster) tunnelComes(t *testing.T) {
	t.Helper()
	began := time.Now()
	c.setPool(t, poolIPIP, lab.ModeIPIP)
	for _, n := range c.topology.Nodes {
		eventually(t, patience, func() string {
			a := c.tunnelAddress(t, n.Name)
			if !a.IsValid() || c.poolOf(a).Name != poolIPIP {
				return fmt.Sprintf("%s has address %s on tunl0", n.Name, a)
			}
			node := c.run(t, "master", "calicoctl", "get", "node", n.Name, "-o", "yaml")
			if !strings.Contains(node, "ipv4IPIPTunnelAddr: "+a.String()) {
				return fmt.Sprintf("%s has %s on tunl0, and stored is:\n%s", n.Name, a, node)
			}
			if held := c.run(t, "master", "calicoctl", "ipam", "show", "--ip="+a.String()); !strings.Contains(held, "ipipTunnelAddress") {
				return fmt.Sprintf("%s of %s is not its tunnel's: %s", a, n.Name, held)
			}
			return ""
		})
	}
	t.Logf("tunl0 and its addresses are back after %s", time.Since(began).Round(time.Millisecond))
	c.travelAsPoolsSay(t)
}

// tunnelAddress is the address on a node's tunl0; the zero Addr if there is none.
func (c *cluster) tunnelAddress(t *testing.T, node string) netip.Addr {
	t.Helper()
	f := strings.Fields(c.sh(t, node, "ip -o -4 addr show tunl0 2>/dev/null || true"))
	if len(f) < 4 {
		return netip.Addr{}
	}
	p, err := netip.ParsePrefix(f[3])
	require.NoError(t, err)
	return p.Addr()
}

// outgoing toggles natOutgoing of pools and looks at the source that is seen behind the router.
func (c *cluster) outgoing(t *testing.T) {
	world := map[bool]netip.Addr{false: netip.MustParseAddr("198.51.100.9"), true: netip.MustParseAddr("2001:db8::9")}
	for _, a := range world {
		c.run(t, "router", "ip", "addr", "add", a.String(), "dev", "lo")
	}
	wire := c.capture(t, "router", "eth0") // the subnet of worker-1
	node := map[bool]netip.Addr{}
	for _, n := range c.topology.Nodes {
		for _, a := range n.Addresses {
			if n.Name == "worker-1" {
				node[a.Is6()] = a
			}
		}
	}
	// seen is the source of a packet from a pod when it comes to the router; none if it does not come.
	seen := func(pod string, v6 bool) (source netip.Addr) {
		_, err := wire.Drain()
		require.NoError(t, err)
		_, _ = c.Run(within(t, patience), pod, "ping", "-c1", "-W0.2", world[v6].String()) // nobody may know a way back
		came, err := wire.Drain()
		require.NoError(t, err)
		for _, p := range came {
			if p.Inner.Dst == world[v6] && strings.HasPrefix(p.Inner.Proto, "icmp") && !p.Outgoing {
				source = p.Inner.Src
			}
		}
		return source
	}
	pods := []string{poolIPIP + "-1", poolVXLAN + "-1", poolDirect + "-1"}
	is := func(translated map[string]bool, when string) {
		t.Helper()
		for _, pod := range pods {
			for _, v6 := range []bool{false, true} {
				own := firstOf(c.pod(t, pod), v6)
				want := own
				if translated[c.poolOf(own).Name] {
					want = node[v6]
				}
				eventually(t, patience, func() string {
					if got := seen(pod, v6); got != want {
						return fmt.Sprintf("%s: the world sees %s as %s, not %s", when, pod, got, want)
					}
					return ""
				})
			}
		}
	}
	now := map[string]bool{}
	for _, p := range c.topology.Pools {
		now[p.Name] = *p.NATOutgoing
	}
	is(now, "at first")
	for _, change := range []struct {
		pool string
		on   bool
	}{{poolIPIP, false}, {poolVXLAN, false}, {poolIPIP, true}, {poolIPv6, !now[poolIPv6]}, {poolVXLAN, true}, {poolDirect, false}} {
		c.run(t, "master", "calicoctl", "patch", "ippool", change.pool, "--patch", fmt.Sprintf(`{"spec":{"natOutgoing":%t}}`, change.on))
		now[change.pool] = change.on
		is(now, fmt.Sprintf("natOutgoing of %s is %t", change.pool, change.on))
	}
}
