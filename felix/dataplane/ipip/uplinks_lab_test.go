//go:build lab

package ipip_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/ipip"
)

// second gives the first node another link to the router, eth1 (10.0.11.1), by which the router sends it what is for a
// prefix. The node's routes are as they were.
func (f *fabric) second(t *testing.T, prefix string) {
	t.Helper()
	one := f.nodes[0]
	one.Run(t, fmt.Sprintf("ip link add eth1 type veth peer name q1; ip link set q1 netns %s; ip addr add 10.0.11.1/24 dev eth1; ip link set eth1 up",
		f.router.Path))
	f.router.Run(t, fmt.Sprintf("ip addr add 10.0.11.254/24 dev q1; ip link set q1 up; ip route add %s via 10.0.11.1", prefix))
}

// uplinks tells a node's driver by which devices packets leave.
func (f *fabric) uplinks(t *testing.T, n *node, parent, uplinks string) {
	t.Helper()
	n.want.Parent, n.want.Uplinks = parent, uplinks
	f.tell(n)
	n.apply(t)
}

// index is that of a node's interface.
func (n *node) index(t *testing.T, name string) (index int) {
	n.Do(t, func() error {
		i, err := net.InterfaceByName(name)
		if err == nil {
			index = i.Index
		}
		return err
	})
	return index
}

// both tells whether two nodes' pods reach each other, by small and by full packets.
func both(t *testing.T, one, two *node) {
	t.Helper()
	one.pod.Run(t, ping(1480, two.podAddr()))
	two.pod.Run(t, ping(1480, one.podAddr()))
	bulk(t, one.pod, two.pod, two.podAddr(), 4<<20)
}

// Packets may come by another link than that with the node's address.
func TestSeveralUplinks(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend)
		one, two := f.nodes[0], f.nodes[1]
		f.second(t, "10.0.1.1/32")
		one.Run(t, "ip route replace default nexthop via 10.0.1.254 dev eth0 nexthop via 10.0.11.254 dev eth1")
		f.uplinks(t, one, "eth0", "eth0 eth1")
		both(t, one, two)
	})
}

// Each node is sent to by the link that leads to it, also while that changes.
func TestSendsByTheLinkThatLeadsThere(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend, backend)
		one, two, three := f.nodes[0], f.nodes[1], f.nodes[2]
		f.second(t, "192.0.2.1/32") // the router sends all for the node by its first link
		f.router.Run(t, "ip rule add iif p1 to 10.0.3.0/24 unreachable; ip rule add iif q1 to 10.0.2.0/24 unreachable")
		// What comes back comes by the other link, which the kernel's own device minds, and takes the source of the route.
		one.Run(t, "sysctl -qw net.ipv4.conf.eth0.rp_filter=2; ip route add 10.0.3.0/24 via 10.0.11.254 dev eth1 src 10.0.1.1")
		one.by = map[netip.Addr]int{three.addr(): one.index(t, "eth1")}
		f.uplinks(t, one, "eth0", "eth0 eth1")
		both(t, one, two)
		both(t, one, three)
		before := one.state()
		require.NoError(t, one.d.Close())
		one.open(t, backend) // a restart does not know at first by which links packets leave, and changes nothing
		by := one.by
		one.by = nil
		f.uplinks(t, one, "eth0", "")
		both(t, one, two)
		both(t, one, three)
		one.by = by
		f.uplinks(t, one, "eth0", "eth0 eth1")
		assert.Equal(t, before, one.state())
		assert.Zero(t, one.d.Writes())

		f.router.Run(t, "ip rule del iif p1 to 10.0.3.0/24 unreachable; ip rule del iif q1 to 10.0.2.0/24 unreachable; ip rule add iif p1 to 10.0.2.0/24 unreachable")
		one.Run(t, "ip route del 10.0.3.0/24; ip route add 10.0.2.0/24 via 10.0.11.254 dev eth1 src 10.0.1.1")
		one.by = map[netip.Addr]int{two.addr(): one.index(t, "eth1")}
		f.uplinks(t, one, "eth0", "eth0 eth1")
		both(t, one, two)
		both(t, one, three)
	})
}

// The node's address may be on no link at all, but on the loopback, and reached by several. One may fail.
func TestAddressOnTheLoopback(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend)
		one, two := f.nodes[0], f.nodes[1]
		f.second(t, "10.0.1.1/32")
		one.Run(t, `ip addr del 10.0.1.1/24 dev eth0; ip addr add 10.0.1.2/24 dev eth0; ip addr add 10.0.1.1/32 dev lo
			ip route replace default src 10.0.1.1 nexthop via 10.0.1.254 dev eth0 nexthop via 10.0.11.254 dev eth1`)
		f.uplinks(t, one, "lo", "")
		f.uplinks(t, one, "lo", "eth0 eth1")
		both(t, one, two)

		// A restart does not know at first by which links packets leave, and takes nothing away.
		before := one.state()
		require.NoError(t, one.d.Close())
		one.open(t, backend)
		f.uplinks(t, one, "lo", "")
		assert.Equal(t, before, one.state())
		assert.Zero(t, one.d.Writes())
		both(t, one, two)
		f.uplinks(t, one, "lo", "eth0 eth1")
		assert.Equal(t, before, one.state())

		one.Run(t, "ip link set eth0 down; ip route replace default via 10.0.11.254 src 10.0.1.1")
		f.uplinks(t, one, "lo", "eth1")
		both(t, one, two)
		if backend == ipip.BPF {
			assert.NotContains(t, one.Run(t, "tc qdisc show dev eth0"), "clsact")
		}
	})
}
