//go:build lab

package suite

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// moveTime is how long a cluster may take to follow a node to another address, over all nodes, on a machine
// that rests for seconds now and then.
const moveTime = 30 * time.Second

// monitored has each node's registration follow its addresses, as the DaemonSet's nodes do.
func monitored(topo *lab.Topology) {
	for i := range topo.Nodes {
		topo.Nodes[i].Env = map[string]string{"IP": "autodetect"}
		topo.Nodes[i].Processes = append(topo.Nodes[i].Processes, lab.ProcessMonitor)
	}
}

// TestReaddress: a node that gets another address while it runs, in its subnet or in another one. Routes, tunnels, sets and
// BGP sessions of all nodes follow, its pods keep their addresses and connections, and the old address is nowhere.
func TestReaddress(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeIPIP, lab.ModeDirect, lab.ModeVXLANCrossSubnet} {
		t.Run(string(mode), func(t *testing.T) {
			c := up(t, "suite-readdress", mode, func(topo *lab.Topology) {
				monitored(topo)
				forceBPF(t, topo)
			})
			talks := c.converse(t, [2]string{"pod-1", "pod-2"}, [2]string{"pod-2", "pod-1"})
			c.readdress(t, "worker-2", "10.30.0.77")
			talks.goOn(t, "worker-2 has another address")
			c.readdress(t, "worker-2", "10.30.0.56")
			talks.goOn(t, "worker-2 has its first address again")
			if mode == lab.ModeDirect {
				return // pods of a direct pool do not reach the other subnet
			}
			c.readdress(t, "worker-2", "10.30.1.77")
			talks.goOn(t, "worker-2 is in the other subnet")
		})
	}
	t.Run("both families", func(t *testing.T) {
		c := up(t, "suite-readdress", lab.ModeVXLAN, func(topo *lab.Topology) {
			dual, err := lab.DualStackTopology()
			require.NoError(t, err)
			*topo = dual
			monitored(topo)
		})
		talks := c.converse(t, [2]string{"pod-1", "pod-2"}, [2]string{"pod-2", "pod-1"})
		c.readdress(t, "worker-2", "10.30.0.77", "fd00:30::77")
		talks.goOn(t, "worker-2 has other addresses")
		c.readdress(t, "worker-2", "10.30.0.77", "fd00:30::78")
		talks.goOn(t, "worker-2 has another IPv6 address")
		c.readdress(t, "worker-2", "10.30.1.77", "fd00:31::77")
		talks.goOn(t, "worker-2 is in the other subnet")
	})
}

// readdress gives a node other addresses, with a move to their subnet if that is another one, and waits until the cluster has
// followed.
func (c *cluster) readdress(t *testing.T, node string, to ...string) {
	t.Helper()
	i := slices.IndexFunc(c.topology.Nodes, func(n lab.Node) bool { return n.Name == node })
	had := c.topology.Nodes[i].Addresses
	var has, gone []netip.Addr
	commands := "ip addr flush dev ens5 scope global"
	subnet := 0
	for _, text := range to {
		a := netip.MustParseAddr(text)
		has = append(has, a)
		subnet = slices.IndexFunc(c.topology.Subnets, func(s lab.Subnet) bool {
			return slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		})
		for j, p := range c.topology.Subnets[subnet].Prefixes {
			if p.Contains(a) {
				commands += fmt.Sprintf("; ip addr add %s/%d dev ens5; ip route replace default via %s", a, p.Bits(), c.topology.Subnets[subnet].Gateways[j])
			}
		}
	}
	for _, a := range had {
		if !slices.Contains(has, a) {
			gone = append(gone, a)
		}
	}
	began := time.Now()
	c.run(t, "fabric", "ip", "link", "set", node, "master", fmt.Sprintf("subnet%d", subnet))
	c.sh(t, node, commands)
	c.topology.Nodes = slices.Clone(c.topology.Nodes)
	c.topology.Nodes[i].Addresses = has

	eventually(t, patience, func() string {
		out := c.run(t, "master", "calicoctl", "get", "node", node, "-o", "yaml")
		for _, a := range has {
			if !strings.Contains(out, "Address: "+a.String()+"/") {
				return "the Node is not at " + a.String() + ":\n" + out
			}
		}
		for _, a := range gone {
			if strings.Contains(out, a.String()+"/") {
				return "the Node is still at " + a.String() + ":\n" + out
			}
		}
		return ""
	})
	registered := time.Since(began)
	require.NoError(t, c.AwaitPools(within(t, patience), c.topology))
	eventually(t, patience, func() string { return c.mentions(t, gone) })
	routed := time.Since(began)
	assert.Less(t, routed, moveTime)
	c.awaitPeers(t)
	t.Logf("to %s: registered after %s, routes and tunnels of all nodes after %s, BGP sessions after %s", to,
		registered.Round(time.Millisecond), routed.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	want := lab.Expect(c.topology, st.Pods, c.mode)
	for _, matrix := range []func(context.Context, lab.Expectation) (lab.Matrix, error){c.Matrix, c.MatrixIPv6}[:len(has)] {
		m, err := matrix(within(t, 2*patience), want)
		require.NoError(t, err)
		assert.Empty(t, m.Wrong(want))
		for _, cell := range m.Cells {
			for _, seen := range cell.Seen {
				require.NotContains(t, gone, seen.Outer.Src, "%s", seen.Packet)
				require.NotContains(t, gone, seen.Outer.Dst, "%s", seen.Packet)
			}
		}
	}
	assert.Empty(t, c.mentions(t, gone))
}

// kernelMentions prints all that felix writes into a node's kernel, but for the maps of IP-in-IP in BPF.
const kernelMentions = `ip -4 route show table all | sed 's/^/route /'
ip -6 route show table all | sed 's/^/route /'
ip -d link | sed 's/^/link /'
ip addr | sed 's/^/address /'
ip neigh show nud permanent | sed 's/^/neighbour /'
bridge fdb | sed 's/^/fdb /'
nft list ruleset | sed 's/^/nft /'
`

// mentions returns the first line in a kernel that still has one of some addresses.
func (c *cluster) mentions(t *testing.T, gone []netip.Addr) string {
	t.Helper()
	for _, n := range c.topology.Nodes {
		text, peers := c.sh(t, n.Name, kernelMentions), c.peersOfBPF(t, n.Name)
		for _, a := range gone {
			word := regexp.MustCompile(`(?m)^(.*[^0-9a-f:.])?` + regexp.QuoteMeta(a.String()) + `([^0-9a-f:.].*)?$`)
			if line := word.FindString(text); line != "" {
				return n.Name + " still has " + a.String() + ": " + line
			}
			if slices.Contains(peers, a) {
				return n.Name + " still takes IP-in-IP from " + a.String()
			}
		}
	}
	return ""
}

var programID = regexp.MustCompile(`\bid (\d+)`)

// peersOfBPF are the nodes whose IP-in-IP packets a node takes and sends, if it does that in BPF.
func (c *cluster) peersOfBPF(t *testing.T, node string) (peers []netip.Addr) {
	t.Helper()
	for _, m := range programID.FindAllStringSubmatch(c.sh(t, node, "tc filter show dev ens5 ingress"), -1) {
		id, err := strconv.ParseUint(m[1], 10, 32)
		require.NoError(t, err)
		program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		require.NoError(t, err)
		defer program.Close()
		info, err := program.Info()
		require.NoError(t, err)
		maps, _ := info.MapIDs()
		for _, id := range maps {
			m, err := ebpf.NewMapFromID(id)
			require.NoError(t, err)
			defer m.Close()
			if info, err := m.Info(); err != nil || info.Name != "ipip_decaps" {
				continue
			}
			var key [4]byte
			var by uint32
			all := m.Iterate()
			for all.Next(&key, &by) {
				peers = append(peers, netip.AddrFrom4(key))
			}
			require.NoError(t, all.Err())
		}
	}
	return peers
}

// awaitPeers waits until every node has sessions with exactly the addresses that the others have.
func (c *cluster) awaitPeers(t *testing.T) {
	t.Helper()
	c.awaitSessions(t)
	for _, n := range c.topology.Nodes {
		eventually(t, patience, func() string {
			out := c.run(t, n.Name, "calicoctl", "node", "status")
			peers := 0
			for _, other := range c.topology.Nodes {
				for _, a := range other.Addresses {
					if has := strings.Contains(out, "| "+a.String()+" "); has == (other.Name == n.Name) {
						return n.Name + " has other peers:\n" + out
					}
					peers++
				}
			}
			if got := strings.Count(out, "node-to-node mesh"); got != peers-len(n.Addresses) {
				return n.Name + " has more peers:\n" + out
			}
			return ""
		})
	}
}
