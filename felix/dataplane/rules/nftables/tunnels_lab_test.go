//go:build lab

package nftables_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// probe counts packets at a hook of the node; expr is in nft's words. The count starts at each call.
func (w *world) probe(hook, expr string) (count func() string) {
	w.t.Helper()
	w.node.Run(w.t, `nft 'add table inet probe; delete table inet probe; add table inet probe
		add chain inet probe c { type filter hook `+hook+`; }
		add rule inet probe c `+expr+` counter'`)
	return func() string {
		_, after, _ := strings.Cut(w.node.Run(w.t, "nft list table inet probe"), "counter packets ")
		n, _, _ := strings.Cut(after, " ")
		return n
	}
}

// send sends one datagram of UDP, or with port 0 one packet of IP protocol 4, from a namespace.
func (w *world) send(from *labtest.Namespace, source, to string, port int) {
	w.t.Helper()
	src, dst := net.ParseIP(source), net.ParseIP(to)
	from.Do(w.t, func() error {
		if port == 0 {
			family := "ip4:4"
			if dst.To4() == nil {
				family = "ip6:4"
			}
			c, err := net.DialIP(family, &net.IPAddr{IP: src}, &net.IPAddr{IP: dst})
			if err != nil {
				return err
			}
			defer c.Close()
			inner := make([]byte, 28)
			inner[0], inner[3], inner[8], inner[9] = 0x45, 28, 64, 17
			_, err = c.Write(inner)
			return err
		}
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: src}, &net.UDPAddr{IP: dst, Port: port})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, 8))
		return err
	})
}

const (
	// first is between raw's chains and connection tracking.
	first  = "prerouting priority -290"
	atHost = "input priority 10"
	leaves = "postrouting priority 300"
)

// tunnels is a firewall under which all tunnels are on.
func tunnels() desired.FirewallDelta {
	d := bothOpen()
	d.Settings.EndpointToHost = desired.HostAccept
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: desired.VXLANDevice4}
	d.Settings.VXLAN6 = &desired.VXLANAdmission{Port: 4789, Device: desired.VXLANDevice6}
	d.Settings.IPIP = &desired.IPIPAdmission{Device: desired.IPIPDevice}
	return d
}

// Tunnel packets reach the host from known nodes only. Others' end before connections are tracked.
func TestTunnelPacketsComeFromKnownNodesOnly(t *testing.T) {
	w := newWorld(t)
	w.apply(tunnels())
	cases := []struct {
		name, source, to, expr string
		port                   int
	}{
		{"VXLAN", outsideAddr, nodeAddr, "meta nfproto ipv4 udp dport 4789", 4789},
		{"VXLAN over IPv6", "fd09::2", "fd09::1", "meta nfproto ipv6 udp dport 4789", 4789},
		{"IP-in-IP", outsideAddr, nodeAddr, "meta nfproto ipv4 meta l4proto 4", 0},
	}
	arrives := func(name, hook, expr string, port int, source, to string, want string) {
		count := w.probe(hook, expr)
		w.send(w.outside, source, to, port)
		w.settle()
		assert.Equal(t, want, count(), "%s at %s", name, hook)
	}
	for _, c := range cases {
		arrives(c.name+" from a stranger", first, c.expr, c.port, c.source, c.to, "0")
	}
	known := desired.FirewallDelta{}
	nodes := desired.Set{Type: view.SetNet, Members: members(outsideAddr+"/32", "fd09::2/128")}
	known.Sets.Put(desired.SetVXLANHosts, nodes)
	known.Sets.Put(desired.SetAllHosts, nodes)
	w.apply(known)
	for _, c := range cases {
		arrives(c.name+" from a node", atHost, c.expr, c.port, c.source, c.to, "1")
	}
	arrives("VXLAN is not tracked", atHost, "udp dport 4789 ct state != untracked", 4789, outsideAddr, nodeAddr, "0")
	w.outside.Run(t, "ip addr add 192.168.9.3/24 dev eth0; ip -6 addr add fd09::3/64 dev eth0 nodad")
	arrives("another address of a node's", first, "udp dport 4789", 4789, "192.168.9.3", nodeAddr, "0")
	arrives("another address of a node's, IPv6", first, "udp dport 4789", 4789, "fd09::3", "fd09::1", "0")
	arrives("another address of a node's", first, "meta l4proto 4", 0, "192.168.9.3", nodeAddr, "0")
	known.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet})
	known.Sets.Put(desired.SetAllHosts, desired.Set{Type: view.SetNet})
	w.apply(known)
	for _, c := range cases {
		arrives(c.name+" from a node that is gone", first, c.expr, c.port, c.source, c.to, "0")
	}
}

// settle lets what was sent arrive: a packet that is sent later and must pass has.
func (w *world) settle() {
	w.t.Helper()
	w.outside.Run(w.t, "ping -c 1 -W 2 "+nodeAddr)
}

// Pods make no tunnel packets, to wherever and over whichever family, unless they are allowed to.
func TestPodsMakeNoTunnelPackets(t *testing.T) {
	w := newWorld(t)
	w.apply(tunnels())
	type target struct {
		name, source, to, hook string
	}
	targets := []target{
		{"another machine", addrA, outsideAddr, leaves},
		{"another pod", addrA, addrB, leaves},
		{"its host", addrA, nodeAddr, atHost},
		{"another machine, IPv6", sixA, "fd09::2", leaves},
		{"another pod, IPv6", sixA, sixB, leaves},
		{"its host, IPv6", sixA, "fd09::1", atHost},
	}
	try := func(want string, why string) {
		t.Helper()
		for _, x := range targets {
			for _, p := range []struct {
				expr string
				port int
			}{{"udp dport 4789", 4789}, {"meta l4proto 4", 0}} {
				count := w.probe(x.hook, p.expr)
				w.send(w.a, x.source, x.to, p.port)
				w.a.Run(t, "ping -c 1 -W 2 "+addrB)
				assert.Equal(t, want, count(), "%s to %s: %s", p.expr, x.name, why)
			}
			count := w.probe(x.hook, "udp dport 4790")
			w.send(w.a, x.source, x.to, 4790)
			w.a.Run(t, "ping -c 1 -W 2 "+addrB)
			assert.Equal(t, "1", count(), "other ports, to %s", x.name)
		}
	}
	try("0", "not allowed")
	d := tunnels()
	d.Settings.AllowIPIPFromWorkloads, d.Settings.AllowVXLANFromWorkloads = true, true
	nodes := desired.Set{Type: view.SetNet, Members: members(addrA+"/32", sixA+"/128")} // their host takes them from nodes only
	d.Sets.Put(desired.SetVXLANHosts, nodes)
	d.Sets.Put(desired.SetAllHosts, nodes)
	w.apply(d)
	try("1", "allowed")
}

func TestSpoofedSourcesAreDroppedInIPv6(t *testing.T) {
	w := newWorld(t)
	w.a.Run(t, "ip -6 addr add fd99::5/128 dev lo; ip -6 addr add fd00:1::77/128 dev lo; ip -6 addr add fd09::2/128 dev lo")
	w.apply(bothOpen())
	arrives := func(source, want string) {
		t.Helper()
		count := w.probe(leaves, "ip6 daddr "+sixB+" udp dport 53")
		w.send(w.a, source, sixB, 53)
		w.a.Run(t, "ping -c 1 -W 2 "+addrB)
		assert.Equal(t, want, count(), source)
	}
	arrives(sixA, "1")
	arrives("fd99::5", "0")
	arrives("fd00:1::77", "0")
	arrives("fd09::2", "0") // another machine's
	c := desired.FirewallDelta{}
	x := under("open")
	x.AllowedSources = nets("fd99::/64")
	c.Workloads.Put("cali1", x)
	w.apply(c)
	arrives("fd99::5", "1")
	arrives("fd00:1::77", "0")
}

// What the host itself sends into a tunnel has the tunnel's address, so that the answer comes back the same way; pods keep
// theirs.
func TestTheHostSendsIntoTunnelsFromTheTunnelsAddress(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ device, own, to, network, host, pod string }{
		{desired.IPIPDevice, "10.88.0.1/32", "10.97.0.5", "10.97.0.0/24", nodeAddr, addrA},
		{desired.VXLANDevice4, "10.88.0.2/32", "10.98.0.5", "10.98.0.0/24", nodeAddr, addrA},
		{desired.VXLANDevice6, "fd88::1/128", "fd98::5", "fd98::/64", "fd09::1", sixA},
	} {
		// It stands for the tunnel: what matters is its name and address.
		w.node.Run(t, fmt.Sprintf(`ip link add %[1]s type veth peer name far; ip addr add %[2]s dev %[1]s nodad; ip link set %[1]s up; ip link set far up
			ip route add %[3]s dev %[1]s; ip neigh add %[4]s lladdr 02:00:00:00:00:09 dev %[1]s nud permanent`,
			c.device, c.own, c.network, c.to))
		w.apply(tunnels())
		seen := sources(t, w.node, c.device, netip.MustParseAddr(c.to))
		w.send(w.node, c.host, c.to, 53)
		assert.Equal(t, netip.MustParsePrefix(c.own).Addr().String(), heard(t, seen), "%s: the host", c.device)
		w.send(w.node, netip.MustParsePrefix(c.own).Addr().String(), c.to, 53)
		assert.Equal(t, netip.MustParsePrefix(c.own).Addr().String(), heard(t, seen), "%s: the tunnel's own address", c.device)
		w.send(w.a, c.pod, c.to, 53)
		assert.Equal(t, c.pod, heard(t, seen), "%s: a pod", c.device)
		w.node.Run(t, "ip link del "+c.device)
	}
}

// Outgoing NAT is a choice of each pool, and switched while pods talk.
func TestOutgoingNATIsAPoolsChoice(t *testing.T) {
	w := newWorld(t)
	heard4 := w.listen(w.outside, ":80")
	d := bothOpen()
	d.Settings.NATOutgoing = &desired.NATOutgoing{RandomizePorts: true}
	d.Sets.Put(desired.SetPools, desired.Set{Type: view.SetNet, Members: members("10.0.1.0/31", "10.0.1.2/31", "fd00:1::/64")})
	d.Sets.Put(desired.SetMasqPools, desired.Set{Type: view.SetNet, Members: members("10.0.1.0/31", "fd00:1::/64")})
	w.apply(d)
	source := func(from *labtest.Namespace, to string) string {
		w.passes(from, to, true, "outgoing")
		return (<-heard4).String()
	}
	assert.Equal(t, nodeAddr, source(w.a, outsideAddr+":80"))
	assert.Equal(t, "fd09::1", source(w.a, "[fd09::2]:80"))
	assert.Equal(t, addrB, source(w.b, outsideAddr+":80"), "of a pool without")
	before, err := dial(w.a, outsideAddr+":80", patience)
	require.NoError(t, err)
	defer before.Close()
	<-heard4
	w.apply(desired.FirewallDelta{Members: map[string]desired.SetDelta{
		desired.SetMasqPools: {Added: members("10.0.1.2/31"), Removed: members("10.0.1.0/31", "fd00:1::/64")},
	}})
	assert.Equal(t, addrA, source(w.a, outsideAddr+":80"), "switched off")
	assert.Equal(t, sixA, source(w.a, "[fd09::2]:80"), "switched off")
	assert.Equal(t, nodeAddr, source(w.b, outsideAddr+":80"), "switched on")
	assert.True(t, alive(before, patience), "what was established goes on")

	settings := *d.Settings
	w.node.Run(t, "ip -6 addr add fd09::77/64 dev up0 nodad")
	settings.NATOutgoing = &desired.NATOutgoing{Source6: netip.MustParseAddr("fd09::77"), OutInterface: "up+", Ports: view.PortRange{First: 30000, Last: 30100}}
	w.apply(desired.FirewallDelta{Settings: &settings, Members: map[string]desired.SetDelta{desired.SetMasqPools: {Added: members("fd00:1::/64")}}})
	assert.Equal(t, "fd09::77", source(w.a, "[fd09::2]:80"), "the address that is asked for, by interfaces that are")
	assert.Equal(t, nodeAddr, source(w.b, outsideAddr+":80"), "the other family has its interface's")
}

// sources reads the sources of packets to an address that leave by an interface.
func sources(t *testing.T, ns *labtest.Namespace, iface string, to netip.Addr) <-chan string {
	out := make(chan string, 16)
	ns.Do(t, func() error {
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			return err
		}
		go func() {
			defer unix.Close(fd)
			for {
				b := make([]byte, 256)
				n, _, err := unix.Recvfrom(fd, b, 0)
				if err != nil {
					return
				}
				src, dst := addresses(b[:n])
				if dst == to {
					out <- src.String()
				}
			}
		}()
		return nil
	})
	return out
}

func heard(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case s := <-from:
		return s
	case <-time.After(patience):
		return "nothing"
	}
}

// addresses are the source and destination of an IP packet.
func addresses(b []byte) (src, dst netip.Addr) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	}
	return src, dst
}
