//go:build lab

package rulestest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
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

// Probe counts packets at a hook of the node; expr is in nft's words. The count starts at each call.
func (w *World) Probe(hook, expr string) (count func() string) {
	w.t.Helper()
	w.Node.Run(w.t, `nft 'add table inet probe; delete table inet probe; add table inet probe
		add chain inet probe c { type filter hook `+hook+`; }
		add rule inet probe c `+expr+` counter'`)
	return func() string {
		_, after, _ := strings.Cut(w.Node.Run(w.t, "nft list table inet probe"), "counter packets ")
		n, _, _ := strings.Cut(after, " ")
		return n
	}
}

// Send sends one datagram of UDP, or with port 0 one packet of IP protocol 4, from a namespace.
func (w *World) Send(from *labtest.Namespace, source, to string, port int) {
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
			defer func() { _ = c.Close() }()
			inner := make([]byte, 28)
			inner[0], inner[3], inner[8], inner[9] = 0x45, 28, 64, 17
			_, err = c.Write(inner)
			return err
		}
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: src}, &net.UDPAddr{IP: dst, Port: port})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write(make([]byte, 8))
		return err
	})
}

// Hooks for Probe: behind policy on the way to the host, and where packets leave it.
const (
	AtHost = "input priority 10"
	Leaves = "postrouting priority 300"
)

// tunnels is a firewall under which all tunnels are on.
func tunnels() desired.FirewallDelta {
	d := BothOpen()
	d.Settings.EndpointToHost = desired.HostAccept
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: desired.VXLANDevice4}
	d.Settings.VXLAN6 = &desired.VXLANAdmission{Port: 4789, Device: desired.VXLANDevice6}
	d.Settings.IPIP = &desired.IPIPAdmission{Device: desired.IPIPDevice}
	return d
}

// Tunnel packets reach the host from known nodes only. Others' end before they are unpacked, and are not among the
// connections.
func (k Kind) testTunnelPacketsComeFromKnownNodesOnly(t *testing.T) {
	w := k.NewWorld(t)
	w.Apply(tunnels())
	cases := []struct {
		name, source, to, expr string
		port                   int
	}{
		{"VXLAN", OutsideAddr, NodeAddr, "meta nfproto ipv4 udp dport 4789", 4789},
		{"VXLAN over IPv6", "fd09::2", "fd09::1", "meta nfproto ipv6 udp dport 4789", 4789},
		{"IP-in-IP", OutsideAddr, NodeAddr, "meta nfproto ipv4 meta l4proto 4", 0},
	}
	connections := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(w.Node.Run(t, "cat /proc/sys/net/netfilter/nf_conntrack_count")))
		require.NoError(t, err)
		return n
	}
	arrives := func(name, hook, expr string, port int, source, to string, want string) {
		count := w.Probe(hook, expr)
		w.Send(w.Outside, source, to, port)
		w.Settle()
		assert.Equal(t, want, count(), "%s at %s", name, hook)
	}
	w.Node.Run(t, "sysctl -qw net.netfilter.nf_conntrack_icmp_timeout=600") // what is counted stays
	w.Settle()
	before := connections()
	for _, c := range cases {
		arrives(c.name+" from a stranger", AtHost, c.expr, c.port, c.source, c.to, "0")
	}
	assert.Equal(t, before+len(cases), connections(), "of settling alone")
	known := desired.FirewallDelta{}
	nodes := desired.Set{Type: view.SetNet, Members: Members(OutsideAddr+"/32", "fd09::2/128")}
	known.Sets.Put(desired.SetVXLANHosts, nodes)
	known.Sets.Put(desired.SetAllHosts, nodes)
	w.Apply(known)
	for _, c := range cases {
		arrives(c.name+" from a node", AtHost, c.expr, c.port, c.source, c.to, "1")
	}
	arrives("VXLAN is not tracked", AtHost, "udp dport 4789 ct state != untracked", 4789, OutsideAddr, NodeAddr, "0")
	w.Outside.Run(t, "ip addr add 192.168.9.3/24 dev eth0; ip -6 addr add fd09::3/64 dev eth0 nodad")
	arrives("another address of a node's", AtHost, "udp dport 4789", 4789, "192.168.9.3", NodeAddr, "0")
	arrives("another address of a node's, IPv6", AtHost, "udp dport 4789", 4789, "fd09::3", "fd09::1", "0")
	arrives("another address of a node's", AtHost, "meta l4proto 4", 0, "192.168.9.3", NodeAddr, "0")
	known.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet})
	known.Sets.Put(desired.SetAllHosts, desired.Set{Type: view.SetNet})
	w.Apply(known)
	for _, c := range cases {
		arrives(c.name+" from a node that is gone", AtHost, c.expr, c.port, c.source, c.to, "0")
	}
}

// Settle lets what was sent arrive: a packet that is sent later and must pass has.
func (w *World) Settle() {
	w.t.Helper()
	w.Outside.Run(w.t, "ping -c 1 -W 30 "+NodeAddr)
}

// Pods make no tunnel packets, to wherever and over whichever family, unless they are allowed to.
func (k Kind) testPodsMakeNoTunnelPackets(t *testing.T) {
	w := k.NewWorld(t)
	w.Apply(tunnels())
	type target struct {
		name, source, to, hook string
	}
	targets := []target{
		{"another machine", AddrA, OutsideAddr, Leaves},
		{"another pod", AddrA, AddrB, Leaves},
		{"its host", AddrA, NodeAddr, AtHost},
		{"another machine, IPv6", SixA, "fd09::2", Leaves},
		{"another pod, IPv6", SixA, SixB, Leaves},
		{"its host, IPv6", SixA, "fd09::1", AtHost},
	}
	try := func(want string, why string) {
		t.Helper()
		for _, x := range targets {
			for _, p := range []struct {
				expr string
				port int
			}{{"udp dport 4789", 4789}, {"meta l4proto 4", 0}} {
				count := w.Probe(x.hook, p.expr)
				w.Send(w.A, x.source, x.to, p.port)
				w.A.Run(t, "ping -c 1 -W 30 "+AddrB)
				assert.Equal(t, want, count(), "%s to %s: %s", p.expr, x.name, why)
			}
			count := w.Probe(x.hook, "udp dport 4790")
			w.Send(w.A, x.source, x.to, 4790)
			w.A.Run(t, "ping -c 1 -W 30 "+AddrB)
			assert.Equal(t, "1", count(), "other ports, to %s", x.name)
		}
	}
	try("0", "not allowed")
	d := tunnels()
	d.Settings.AllowIPIPFromWorkloads, d.Settings.AllowVXLANFromWorkloads = true, true
	nodes := desired.Set{Type: view.SetNet, Members: Members(AddrA+"/32", SixA+"/128")} // their host takes them from nodes only
	d.Sets.Put(desired.SetVXLANHosts, nodes)
	d.Sets.Put(desired.SetAllHosts, nodes)
	w.Apply(d)
	try("1", "allowed")
}

func (k Kind) testSpoofedSourcesAreDroppedInIPv6(t *testing.T) {
	w := k.NewWorld(t)
	w.A.Run(t, "ip -6 addr add fd99::5/128 dev lo nodad; ip -6 addr add fd00:1::77/128 dev lo nodad; ip -6 addr add fd09::2/128 dev lo nodad")
	w.Apply(BothOpen())
	arrives := func(source, want string) {
		t.Helper()
		count := w.Probe(Leaves, "ip6 daddr "+SixB+" udp dport 53")
		w.Send(w.A, source, SixB, 53)
		w.A.Run(t, "ping -c 1 -W 30 "+AddrB)
		assert.Equal(t, want, count(), source)
	}
	arrives(SixA, "1")
	arrives("fd99::5", "0")
	arrives("fd00:1::77", "0")
	arrives("fd09::2", "0") // another machine's
	c := desired.FirewallDelta{}
	x := Under("open")
	x.AllowedSources = Nets("fd99::/64")
	c.Workloads.Put("cali1", x)
	w.Apply(c)
	arrives("fd99::5", "1")
	arrives("fd00:1::77", "0")
}

// While no workload has IPv6 nothing of it passes from or to one, but what the host begins and what finds neighbours, and no policy of it
// is written; the moment one has it, all is.
func (k Kind) testIPv6ThatNoWorkloadHas(t *testing.T) {
	w := k.NewWorld(t)
	w.Driver.Whole()
	for _, in := range []*labtest.Namespace{w.Node, w.B} {
		w.Listen(in, ":80")
	}
	written := func() (n int) {
		require.True(t, w.Driver.InSync())
		for _, e := range w.Driver.Entries() {
			if strings.HasPrefix(e.Key, "ip6 ") && strings.Contains(e.Key, desired.PolicyChain("np/s/", desired.Ingress)) {
				n++
			}
		}
		return n
	}
	c := Firewall(map[string]desired.Workload{"cali1": Under("shared"), "cali2": Under("shared")},
		[]view.PolicyList{listOf("shared")}, AllowAll, policyOf("np/s/one", 80), policyOf("np/s/two", 81))
	for range 2 {
		c.Settings = &desired.Settings{WorkloadPrefixes: []string{"cali"}, EndpointToHost: desired.HostAccept, NoIPv6: true}
		w.Apply(c)
		assert.Zero(t, written())
		w.Passes(w.A, AddrB+":80", true, "IPv4 to a pod")
		w.Passes(w.A, NodeAddr+":80", true, "IPv4 to the host")
		w.Passes(w.A, "["+SixB+"]:80", false, "IPv6 to a pod")
		w.Passes(w.Outside, "["+SixB+"]:80", false, "IPv6 from elsewhere")
		w.Passes(w.A, "[fd09::1]:80", false, "IPv6 to the host")
		w.Passes(w.A, "[fe80::ecee:eeff:feee:eeee%eth0]:80", false, "IPv6 to the host's end of the link")
		w.Node.Run(t, "ip -6 neigh flush dev cali1; ping -c 1 -W 30 "+SixA)

		c.Settings = &desired.Settings{WorkloadPrefixes: []string{"cali"}, EndpointToHost: desired.HostAccept}
		w.Apply(desired.FirewallDelta{Settings: c.Settings})
		assert.Equal(t, 2, written())
		w.Passes(w.A, AddrB+":80", true, "IPv4 to a pod")
		w.Passes(w.A, "["+SixB+"]:80", true, "IPv6 to a pod")
		w.Passes(w.Outside, "["+SixB+"]:80", true, "IPv6 from elsewhere")
		w.Passes(w.A, "[fd09::1]:80", true, "IPv6 to the host")
	}
}

// What the host itself sends into a tunnel has the tunnel's address, so that the answer comes back the same way; pods keep
// theirs.
func (k Kind) testTheHostSendsIntoTunnelsFromTheTunnelsAddress(t *testing.T) {
	w := k.NewWorld(t)
	for _, c := range []struct{ device, own, to, network, host, pod string }{
		{desired.IPIPDevice, "10.88.0.1/32", "10.97.0.5", "10.97.0.0/24", NodeAddr, AddrA},
		{desired.VXLANDevice4, "10.88.0.2/32", "10.98.0.5", "10.98.0.0/24", NodeAddr, AddrA},
		{desired.VXLANDevice6, "fd88::1/128", "fd98::5", "fd98::/64", "fd09::1", SixA},
	} {
		// It stands for the tunnel: what matters is its name and address.
		w.Node.Run(t, fmt.Sprintf(`ip link add %[1]s type veth peer name far; ip addr add %[2]s dev %[1]s nodad; ip link set %[1]s up; ip link set far up
			ip route add %[3]s dev %[1]s; ip neigh add %[4]s lladdr 02:00:00:00:00:09 dev %[1]s nud permanent`,
			c.device, c.own, c.network, c.to))
		w.Node.AwaitLinks(t)
		w.Apply(tunnels())
		seen := sources(t, w.Node, c.device, netip.MustParseAddr(c.to))
		w.Send(w.Node, c.host, c.to, 53)
		assert.Equal(t, netip.MustParsePrefix(c.own).Addr().String(), heard(t, seen), "%s: the host", c.device)
		w.Send(w.Node, netip.MustParsePrefix(c.own).Addr().String(), c.to, 53)
		assert.Equal(t, netip.MustParsePrefix(c.own).Addr().String(), heard(t, seen), "%s: the tunnel's own address", c.device)
		w.Send(w.A, c.pod, c.to, 53)
		assert.Equal(t, c.pod, heard(t, seen), "%s: a pod", c.device)
		w.Node.Run(t, "ip link del "+c.device)
	}
}

// Outgoing NAT is a choice of each pool, and switched while pods talk.
func (k Kind) testOutgoingNATIsAPoolsChoice(t *testing.T) {
	w := k.NewWorld(t)
	heard4 := w.Listen(w.Outside, ":80")
	d := BothOpen()
	d.Settings.NATOutgoing = &desired.NATOutgoing{RandomizePorts: true}
	d.Sets.Put(desired.SetPools, desired.Set{Type: view.SetNet, Members: Members("10.0.1.0/31", "10.0.1.2/31", "fd00:1::/64")})
	d.Sets.Put(desired.SetMasqPools, desired.Set{Type: view.SetNet, Members: Members("10.0.1.0/31", "fd00:1::/64")})
	w.Apply(d)
	source := func(from *labtest.Namespace, to string) string {
		w.Passes(from, to, true, "outgoing")
		return (<-heard4).String()
	}
	assert.Equal(t, NodeAddr, source(w.A, OutsideAddr+":80"))
	assert.Equal(t, "fd09::1", source(w.A, "[fd09::2]:80"))
	assert.Equal(t, AddrB, source(w.B, OutsideAddr+":80"), "of a pool without")
	before, err := Dial(w.A, OutsideAddr+":80", Patience)
	require.NoError(t, err)
	defer before.Close()
	<-heard4
	w.Apply(desired.FirewallDelta{Members: map[string]desired.SetDelta{
		desired.SetMasqPools: {Added: Members("10.0.1.2/31"), Removed: Members("10.0.1.0/31", "fd00:1::/64")},
	}})
	assert.Equal(t, AddrA, source(w.A, OutsideAddr+":80"), "switched off")
	assert.Equal(t, SixA, source(w.A, "[fd09::2]:80"), "switched off")
	assert.Equal(t, NodeAddr, source(w.B, OutsideAddr+":80"), "switched on")
	assert.True(t, Alive(before, Patience), "what was established goes on")

	settings := *d.Settings
	w.Node.Run(t, "ip -6 addr add fd09::77/64 dev up0 nodad")
	settings.NATOutgoing = &desired.NATOutgoing{Source6: netip.MustParseAddr("fd09::77"), OutInterface: "up+", Ports: view.PortRange{First: 30000, Last: 30100}}
	w.Apply(desired.FirewallDelta{Settings: &settings, Members: map[string]desired.SetDelta{desired.SetMasqPools: {Added: Members("fd00:1::/64")}}})
	assert.Equal(t, "fd09::77", source(w.A, "[fd09::2]:80"), "the address that is asked for, by interfaces that are")
	assert.Equal(t, NodeAddr, source(w.B, OutsideAddr+":80"), "the other family has its interface's")
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
		// It wakes up now and then to see whether the test is over.
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
			return err
		}
		go func() {
			defer func() { _ = unix.Close(fd) }()
			for t.Context().Err() == nil {
				b := make([]byte, 256)
				n, _, err := unix.Recvfrom(fd, b, 0)
				switch {
				case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
					continue
				case err != nil: // the device is gone
					return
				}
				if src, dst := addresses(b[:n]); dst == to {
					select {
					case out <- src.String():
					default:
					}
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
	case <-time.After(Patience):
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
