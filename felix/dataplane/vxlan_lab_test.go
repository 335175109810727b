//go:build lab

package dataplane_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/dataplane/route"
	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
)

// node is a node with all drivers and one pod. Node n has 192.168.9.n, the block 10.0.n.0/26 with its tunnel address
// .0 and its pod .1; over IPv6 fd09::n, the block fd00:n::/122 and the same in it.
type node struct {
	ns, pod *labtest.Namespace
	n       int
	v6      bool
	links   *link.Driver
	tunnels *tunnel.Driver
	routes  *route.Table
	rules   *nftables.Driver
}

func newNode(t *testing.T, n int, v6 bool) *node {
	x := &node{ns: labtest.New(t), pod: labtest.New(t), n: n, v6: v6}
	x.ns.Do(t, func() (err error) {
		if x.links, err = link.New(); err != nil {
			return err
		}
		if x.tunnels, err = tunnel.New(); err != nil {
			return err
		}
		if x.routes, err = route.New(route.Config{}); err != nil {
			return err
		}
		x.rules, err = nftables.New(nftables.Config{})
		return err
	})
	t.Cleanup(func() {
		_ = x.links.Close()
		_ = x.tunnels.Close()
		_ = x.routes.Close()
		_ = x.rules.Close()
	})
	return x
}

func (x *node) addr(last int) netip.Addr {
	if x.v6 {
		return netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(x.n), 15: byte(last)})
	}
	return netip.AddrFrom4([4]byte{10, 0, byte(x.n), byte(last)})
}

func (x *node) block() netip.Prefix { return netip.PrefixFrom(x.addr(0), x.addr(0).BitLen()-6) }

func (x *node) address() netip.Addr {
	if x.v6 {
		return netip.AddrFrom16([16]byte{0xfd, 9, 15: byte(x.n)})
	}
	return netip.AddrFrom4([4]byte{192, 168, 9, byte(x.n)})
}

// device is the VXLAN device with its MTU.
func (x *node) device() (string, int) {
	if x.v6 {
		return desired.VXLANDevice6, 1430
	}
	return desired.VXLANDevice4, 1450
}

func (x *node) mac() desired.MAC { return desired.MAC{0x66, 0, 0, 0, 0, byte(x.n)} }

// want is the desired state of a node that has one other.
func (x *node) want(other *node) (c desired.Changes) {
	device, mtu := x.device()
	l := desired.WorkloadLink{Name: "cali1", MTU: mtu, IPv4: !x.v6, IPv6: x.v6}
	c.Links.Put(l.Name, l)
	for _, s := range desired.HostSysctls(true) {
		c.Sysctls.Put(s.Path, s)
	}
	v := desired.VXLAN{
		Name: device, VNI: desired.DefaultVXLANVNI, Port: desired.DefaultVXLANPort, Local: x.address(),
		Parent: "eth0", MAC: x.mac(), MTU: mtu, Address: x.addr(0),
	}
	c.VXLANs.Put(v.Name, v)
	c.FDB.Put(desired.FDBKey{Link: v.Name, MAC: other.mac()}, other.address())
	c.Neighbors.Put(desired.NeighborKey{Link: v.Name, Addr: other.addr(0)}, other.mac())
	hole, _ := desired.BlockBlackhole(x.block())
	for _, r := range []desired.Route{
		hole, desired.WorkloadRoute(x.addr(1), "cali1", desired.ProtocolBoot),
		desired.VXLANRoute(other.block(), other.addr(0), v.Name, mtu, desired.ProtocolBoot),
	} {
		c.Routes.Put(r.Key(), r)
	}
	for _, chain := range desired.PolicyChains(view.Policy{ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}}, "") {
		c.Firewall.Chains.Put(chain.Name, chain)
	}
	for _, chain := range desired.ListChains(view.PolicyList{ID: "open", Profiles: []string{"pro/all"}}) {
		c.Firewall.Chains.Put(chain.Name, chain)
	}
	c.Firewall.Settings = &desired.Settings{WorkloadPrefixes: []string{"cali"}}
	admission := &desired.VXLANAdmission{Port: v.Port, Device: v.Name}
	if x.v6 {
		c.Firewall.Settings.VXLAN6 = admission
	} else {
		c.Firewall.Settings.VXLAN4 = admission
	}
	c.Firewall.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet, Members: []view.Member{{Prefix: netip.PrefixFrom(other.address(), other.address().BitLen())}}})
	c.Firewall.Workloads.Put("cali1", desired.Workload{Endpoint: "k8s/test/pod/eth0", Ingress: "cali-tw-open", Egress: "cali-fw-open"})
	return c
}

func (x *node) apply(t *testing.T, c desired.Changes) {
	t.Helper()
	ctx := context.Background()
	x.ns.Do(t, func() error { // sysctls are those of the thread's namespace
		x.links.Update(c.Links, c.Sysctls)
		return x.links.Apply(ctx)
	})
	x.tunnels.Update(c.VXLANs, c.Neighbors, c.FDB)
	x.tunnels.Whole()
	require.NoError(t, x.tunnels.Apply(ctx))
	x.rules.Update(c.Firewall)
	x.rules.Whole()
	require.NoError(t, x.rules.Apply(ctx))
	x.routes.Resync() // nobody watches for devices here
	x.routes.Update(c.Routes)
	x.routes.Whole()
	require.NoError(t, x.routes.Apply(ctx))
}

// patience is for a machine on which much else runs.
const patience = 30 * time.Second

// TestPodsOfTwoNodesTalkThroughVXLAN puts all drivers together, and looks at the packets between the nodes.
func TestPodsOfTwoNodesTalkThroughVXLAN(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { talkThroughVXLAN(t, false, 24) })
	t.Run("IPv6", func(t *testing.T) { talkThroughVXLAN(t, true, 64) })
}

func talkThroughVXLAN(t *testing.T, v6 bool, subnet int) {
	a, b := newNode(t, 1, v6), newNode(t, 2, v6)
	a.ns.Run(t, "ip link add eth0 type veth peer name eth0 netns "+b.ns.Path)
	_, mtu := a.device()
	for _, x := range []*node{a, b} {
		x.ns.Run(t, fmt.Sprintf("ip addr add %s/%d dev eth0 nodad; ip link set eth0 up", x.address(), subnet))
		x.ns.Do(t, func() error {
			err := x.links.Wire(context.Background(), link.Pod{Netns: x.pod.Path, Interface: "eth0", Host: "cali1", MTU: mtu, Addresses: []netip.Addr{x.addr(1)}})
			return err
		})
	}
	a.apply(t, a.want(b))
	b.apply(t, b.want(a))
	packets := capture(t, b.ns, "eth0")
	require.Eventually(t, func() bool { // an IPv6 device takes a moment to be ready
		_, err := a.pod.Try("ping -c 1 -W 1 " + b.addr(1).String())
		return err == nil
	}, patience, time.Millisecond)
	a.pod.Run(t, "ping -c 2 -i 0.1 -W 30 "+b.addr(1).String())
	seen := map[string]bool{}
	for timeout := time.After(patience); len(seen) < 2; {
		select {
		case p := <-packets:
			if v, ok := parseVXLAN(p); ok {
				assert.EqualValues(t, desired.DefaultVXLANVNI, v.vni)
				seen[fmt.Sprintf("%s>%s %s>%s", v.outer[0], v.outer[1], v.inner[0], v.inner[1])] = true
			}
		case <-timeout:
			t.Fatalf("saw only %v", seen)
		}
	}
	assert.Equal(t, map[string]bool{
		fmt.Sprintf("%s>%s %s>%s", a.address(), b.address(), a.addr(1), b.addr(1)): true,
		fmt.Sprintf("%s>%s %s>%s", b.address(), a.address(), b.addr(1), a.addr(1)): true,
	}, seen)
	a.ns.Run(t, "ping -c 1 -i 0.2 -w 30 "+b.addr(1).String()) // a node, from its tunnel address

	// Packets of the size that fits, but none larger, and a pod that is not there is no loop.
	headers := 28
	if v6 {
		headers = 48
	}
	a.pod.Run(t, fmt.Sprintf("ping -c 1 -i 0.2 -w 30 -M do -s %d %s", mtu-headers, b.addr(1)))
	_, err := a.pod.Try(fmt.Sprintf("ping -c 1 -W 1 -M do -s %d %s", mtu-headers+1, b.addr(1)))
	assert.Error(t, err)
	_, err = a.pod.Try("ping -c 1 -W 1 " + b.addr(9).String())
	assert.Error(t, err)

	// Whoever is not a known node cannot get packets in.
	c := desired.Changes{}
	c.Firewall.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet})
	b.apply(t, c)
	_, err = a.pod.Try("ping -c 1 -W 1 " + b.addr(1).String())
	assert.Error(t, err)
}

// capture reads all packets of an interface.
func capture(t *testing.T, ns *labtest.Namespace, iface string) <-chan []byte {
	out := make(chan []byte, 1024)
	ns.Do(t, func() error {
		allProtocols := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(allProtocols))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		req, err := unix.NewIfreq(iface)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: int(req.Uint32())}); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
			return err
		}
		done, ended := make(chan struct{}), make(chan struct{})
		t.Cleanup(func() {
			close(done)
			<-ended
		})
		go func() {
			defer close(ended)
			for {
				b := make([]byte, 2048)
				n, _, err := unix.Recvfrom(fd, b, 0)
				if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
					return
				}
				select {
				case <-done:
					return
				default:
				}
				if err == nil {
					select {
					case out <- b[:n]:
					default:
					}
				}
			}
		}()
		return nil
	})
	return out
}

type vxlanPacket struct {
	outer, inner [2]netip.Addr // source, destination
	vni          uint32
}

// parseVXLAN reads Ethernet, IP, UDP, VXLAN (RFC 7348), Ethernet and IP headers; IPv6 without extensions.
func parseVXLAN(b []byte) (v vxlanPacket, ok bool) {
	const udp, vxlan = 8, 8
	protocol, rest, outer, ok := parseIP(b)
	if !ok || protocol != unix.IPPROTO_UDP || len(rest) < udp+vxlan || binary.BigEndian.Uint16(rest[2:]) != desired.DefaultVXLANPort {
		return v, false
	}
	v.outer, v.vni = outer, binary.BigEndian.Uint32(rest[udp+4:])>>8
	protocol, _, v.inner, ok = parseIP(rest[udp+vxlan:])
	return v, ok && (protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6)
}

// parseIP reads an Ethernet frame with an IP packet: its protocol, what is in it, and its source and destination.
func parseIP(b []byte) (protocol byte, rest []byte, addrs [2]netip.Addr, ok bool) {
	const eth, ip4, ip6 = 14, 20, 40
	switch {
	case len(b) >= eth+ip6 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IPV6:
		b = b[eth:]
		return b[6], b[ip6:], [2]netip.Addr{netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))}, true
	case len(b) >= eth+ip4 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IP:
		b = b[eth:]
		return b[9], b[ip4:], [2]netip.Addr{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))}, true
	}
	return 0, nil, addrs, false
}
