//go:build lab

package rules_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/generate"
	"github.com/muslin-net/muslin/integration/oracle/node"
)

// TestKernelsDoWhatPolicyMeans makes up worlds and packets, as the test of the oracle's own package does, and has the kernel
// agree on every packet: it is sent from where it comes from, and looked for where it goes.
func TestKernelsDoWhatPolicyMeans(t *testing.T) {
	const probes = 5_200
	for _, k := range []rulestest.Kind{
		{Name: "nftables", New: func(*labtest.Namespace) (rulestest.Driver, error) { return nftables.New(nftables.Config{}) }},
		{Name: "iptables-legacy", New: func(ns *labtest.Namespace) (rulestest.Driver, error) {
			return iptables.New(iptables.Config{Variant: iptables.Legacy, In: ns.In})
		}},
		{Name: "iptables-nft", New: func(ns *labtest.Namespace) (rulestest.Driver, error) {
			return iptables.New(iptables.Config{Variant: iptables.NFT, In: ns.In})
		}},
	} {
		t.Run(k.Name, func(t *testing.T) {
			b := newBench(t)
			require.Greater(t, b.agree(k, probes, false), probes/10)
			require.Greater(t, b.agree(k, probes/8, true), probes/8/20)
		})
	}
}

// agree has the kernel agree with the oracle about so many packets, and counts those that passed.
func (b *bench) agree(k rulestest.Kind, probes int, onlyIPv4 bool) (passed int) {
	const ofAWorld = 130
	sent := 0
	for seed := uint64(5_000); sent < probes; seed++ {
		g := generate.New(seed)
		if onlyIPv4 {
			g.OnlyIPv4()
		}
		c, err := oracle.New(g.World())
		require.NoError(b.t, err)
		b.enforce(k, g)
		batch := b.batch(g, c, ofAWorld)
		var wrong []*probe
		for _, p := range b.send(batch) {
			if p.want.Allowed != p.got {
				wrong = append(wrong, p)
			}
			if p.got {
				passed++
			}
		}
		if len(wrong) > 0 {
			p := wrong[0]
			require.Fail(b.t, "the kernel does not do what policy means",
				"seed %d, %d of %d packets, the first: way %+v, packet %+v, settings %+v\npassed: %t\noracle: %+v\n%s",
				seed, len(wrong), len(batch), p.way, p.packet, g.Settings(), p.got, p.want, g.World().YAML())
		}
		sent += len(batch)
	}
	b.t.Logf("%d packets sent, %d of them passed; IPv4 only: %t", sent, passed, onlyIPv4)
	return passed
}

// bench is a node, in the test's namespace, with the interfaces of the workloads that worlds have, and one towards elsewhere.
// All their other ends are in one namespace, where nothing answers.
type bench struct {
	t       testing.TB
	node    *labtest.Namespace
	ends    *labtest.Namespace
	fd      int    // packet socket of the other ends
	senders [2]int // raw sockets of the node, by family
	takers  []int  // raw sockets of the node that get what is let in to it, one for each protocol and family
	index   map[string]int
	name    map[int]string
	last    uint32 // number of the last probe
}

// MAC addresses of the node's ends and of the others.
var (
	nodeMAC = [6]byte{2, 0, 0, 0, 0, 1}
	endMAC  = [6]byte{2, 0, 0, 0, 0, 2}
)

func newBench(t *testing.T) *bench {
	b := &bench{t: t, ends: labtest.New(t), index: map[string]int{}, name: map[int]string{}}
	b.node = labtest.Enter(t)
	b.node.Run(t, `
		mkdir -p /run/netns
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
		sysctl -qw net.ipv6.conf.default.accept_dad=0 net.netfilter.nf_conntrack_checksum=0`)
	b.ends.Run(t, "sysctl -qw net.ipv4.conf.default.disable_policy=1 net.ipv6.conf.default.disable_ipv6=1")
	wire := func(name string, addrs ...string) {
		b.ends.Run(t, fmt.Sprintf(`
			ip link add end%[1]s address 02:00:00:00:00:02 type veth peer name %[1]s address 02:00:00:00:00:01
			ip link set end%[1]s up
			ip link set %[1]s netns %[2]s`, name, b.node.Path))
		b.node.Run(t, "ip link set "+name+" up")
		for _, a := range addrs {
			b.node.Run(t, fmt.Sprintf("ip route add %[1]s dev %[2]s; ip neigh replace %[1]s lladdr 02:00:00:00:00:02 dev %[2]s nud permanent", a, name))
		}
	}
	for _, e := range generate.New(1).Local() {
		wire(e.Spec.InterfaceName, strings.Split(e.Spec.IPNetworks[0], "/")[0], strings.Split(e.Spec.IPNetworks[1], "/")[0])
	}
	wire("eth0", "192.168.9.2", "fd00:9::2")
	b.node.Run(t, `
		ip addr add 192.168.9.1/32 dev eth0; ip addr add fd00:9::1/128 dev eth0 nodad
		ip route add default via 192.168.9.2 dev eth0 onlink; ip -6 route add default via fd00:9::2 dev eth0 onlink`)
	b.node.AwaitLinks(t)
	b.ends.AwaitLinks(t)
	b.ends.Do(t, func() error {
		var err error
		if b.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ALL))); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(b.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if name, ok := strings.CutPrefix(l.Attrs().Name, "end"); ok {
				b.index[name], b.name[l.Attrs().Index] = l.Attrs().Index, name
			}
		}
		return nil
	})
	raw := func(family, protocol int) int {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		require.NoError(t, err)
		return fd
	}
	b.senders = [2]int{raw(unix.AF_INET, unix.IPPROTO_RAW), raw(unix.AF_INET6, unix.IPPROTO_RAW)}
	for _, protocol := range []uint8{oracle.TCP, oracle.UDP, oracle.SCTP, oracle.UDPLite, oracle.ICMP, oracle.ICMPv6, oracle.IPIP, gre} {
		if protocol != oracle.ICMPv6 {
			b.takers = append(b.takers, raw(unix.AF_INET, int(protocol)))
		}
		if protocol != oracle.ICMP {
			b.takers = append(b.takers, raw(unix.AF_INET6, int(protocol)))
		}
	}
	t.Cleanup(func() {
		for _, fd := range append(b.takers, b.fd, b.senders[0], b.senders[1]) {
			_ = unix.Close(fd)
		}
	})
	return b
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// enforce has a driver that starts anew bring the rules of a world in, in the place of those of the world before.
func (b *bench) enforce(k rulestest.Kind, g *generate.Generator) {
	d := k.Open(b.t, b.node)
	d.Update(node.Firewall(g.World(), g.Settings(), generate.Node))
	d.Whole()
	require.NoError(b.t, d.Apply(context.Background()))
	require.True(b.t, d.InSync())
	require.NoError(b.t, d.Close())
	require.NoError(b.t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
}

// probe is a packet that is sent.
type probe struct {
	way    oracle.Way
	packet oracle.Packet
	want   oracle.Verdict
	from   string // interface; "" is the node itself
	to     string
	number uint32
	got    bool
}

// batch makes up packets that the kernel takes for the first of a connection, whatever the others are.
func (b *bench) batch(g *generate.Generator, c *oracle.Cluster, n int) (out []*probe) {
	interfaces := map[api.Key]string{{}: "eth0"}
	for _, e := range g.Local() {
		interfaces[api.KeyOf(e)] = e.Spec.InterfaceName
	}
	type flow struct {
		from, to         netip.Addr
		protocol         uint8
		sport, dport, id uint16
	}
	seen := map[flow]bool{}
	for tries := 0; len(out) < n && tries < 40*n; tries++ {
		w, p := g.Packet()
		if !ordinary(p) {
			continue
		}
		f := flow{p.Source, p.Destination, p.Protocol, p.SourcePort, p.DestinationPort, 0}
		back := flow{p.Destination, p.Source, p.Protocol, p.DestinationPort, p.SourcePort, 0}
		if seen[f] || seen[back] {
			continue
		}
		seen[f] = true
		b.last++
		one := &probe{way: w, packet: p, want: c.Passes(w, p, g.Settings()), from: interfaces[w.From], to: interfaces[w.To], number: b.last}
		if w.FromHost {
			one.from = ""
		}
		if w.ToHost {
			one.to = ""
		}
		out = append(out, one)
	}
	return out
}

// ordinary tells whether a packet may go between networks and begin a connection.
func ordinary(p oracle.Packet) bool {
	for _, a := range []netip.Addr{p.Source, p.Destination} {
		if a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 224) || !a.IsGlobalUnicast() {
			return false
		}
	}
	switch p.Protocol {
	case oracle.ICMP:
		return p.Type == 8
	case oracle.ICMPv6:
		return p.Type == 128
	}
	return true
}

// send sends packets and finds out which of them arrive. Those that must not are sent first: by the time that the others
// have arrived, they would have.
func (b *bench) send(batch []*probe) []*probe {
	missing := map[uint32]*probe{}
	for _, allowed := range []bool{false, true} {
		for _, p := range batch {
			if p.want.Allowed != allowed {
				continue
			}
			missing[p.number] = p
			b.sendOne(p)
		}
	}
	due := 0
	for _, p := range batch {
		if p.want.Allowed {
			due++
		}
	}
	arrived := func(number uint32, at string) {
		if p := missing[number]; p != nil && p.to == at && !p.got {
			if p.got = true; p.want.Allowed {
				due--
			}
		}
	}
	const patience, quiet = rulestest.Patience, 20 * time.Millisecond
	for end := time.Now().Add(patience); time.Now().Before(end); {
		wait := time.Until(end)
		if due == 0 {
			wait = quiet
		}
		if !b.receive(wait, arrived) {
			break
		}
	}
	return batch
}

func (b *bench) sendOne(p *probe) {
	f := frame(p.packet, p.number)
	if p.from != "" {
		to := &unix.SockaddrLinklayer{Ifindex: b.index[p.from], Halen: 6}
		copy(to.Addr[:], nodeMAC[:])
		require.NoError(b.t, unix.Sendto(b.fd, f, 0, to))
		return
	}
	var err error
	if d := p.packet.Destination; d.Is6() {
		err = unix.Sendto(b.senders[1], f[ethernet:], 0, &unix.SockaddrInet6{Addr: d.As16()})
	} else {
		err = unix.Sendto(b.senders[0], f[ethernet:], 0, &unix.SockaddrInet4{Addr: d.As4()})
	}
	if !errors.Is(err, unix.EPERM) { // which is how the sender is told that it was dropped
		require.NoError(b.t, err)
	}
}

// receive waits for packets and tells of those that there are, by their numbers and the interfaces they left by, "" for those
// that the node itself got. It tells whether there were any.
func (b *bench) receive(wait time.Duration, arrived func(number uint32, at string)) bool {
	fds := []unix.PollFd{{Fd: int32(b.fd), Events: unix.POLLIN}}
	for _, fd := range b.takers {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	ready, err := unix.Poll(fds, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return true
	}
	require.NoError(b.t, err)
	buf := make([]byte, 2048)
	for _, fd := range fds {
		if fd.Revents == 0 {
			continue
		}
		n, from, err := unix.Recvfrom(int(fd.Fd), buf, unix.MSG_DONTWAIT)
		require.NoError(b.t, err)
		if n < 4 {
			continue
		}
		at := ""
		if l, ok := from.(*unix.SockaddrLinklayer); ok {
			if l.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			at = b.name[l.Ifindex]
		}
		arrived(binary.BigEndian.Uint32(buf[n-4:n]), at)
	}
	return ready > 0
}
