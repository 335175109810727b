//go:build lab

package dataplane_test

import (
	"context"
	"encoding/binary"
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
	"github.com/muslin-net/muslin/felix/dataplane/rules"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
)

// node is a node with all drivers and one pod. Node n has 192.168.9.n, the block 10.0.n.0/26 with its tunnel address
// .0 and its pod .1.
type node struct {
	ns, pod *labtest.Namespace
	n       int
	links   *link.Driver
	tunnels *tunnel.Driver
	routes  *route.Table
	rules   *rules.Driver
}

func newNode(t *testing.T, n int) *node {
	x := &node{ns: labtest.New(t), pod: labtest.New(t), n: n}
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
		x.rules, err = rules.New(rules.Config{})
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
	return netip.AddrFrom4([4]byte{10, 0, byte(x.n), byte(last)})
}
func (x *node) block() netip.Prefix { return netip.PrefixFrom(x.addr(0), 26) }
func (x *node) address() netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 9, byte(x.n)}) }
func (x *node) mac() desired.MAC    { return desired.MAC{0x66, 0, 0, 0, 0, byte(x.n)} }

// want is the desired state of a node that has one other.
func (x *node) want(other *node) (c desired.Changes) {
	l := desired.WorkloadLink{Name: "cali1", MTU: 1450, IPv4: true}
	c.Links.Put(l.Name, l)
	for _, s := range desired.HostSysctls(true) {
		c.Sysctls.Put(s.Path, s)
	}
	v := desired.VXLAN{
		Name: desired.VXLANDevice4, VNI: desired.DefaultVXLANVNI, Port: desired.DefaultVXLANPort, Local: x.address(),
		Parent: "eth0", MAC: x.mac(), MTU: 1450, Address: x.addr(0),
	}
	c.VXLANs.Put(v.Name, v)
	f := desired.FDB{Link: v.Name, MAC: other.mac(), Remote: other.address()}
	c.FDB.Put(f.Key(), f)
	nb := desired.Neighbor{Link: v.Name, Addr: other.addr(0), MAC: other.mac()}
	c.Neighbors.Put(nb.Key(), nb)
	hole, _ := desired.BlockBlackhole(x.block())
	for _, r := range []desired.Route{
		hole, desired.WorkloadRoute(x.addr(1), "cali1", desired.ProtocolBoot),
		desired.VXLANRoute(other.block(), other.addr(0), v.Name, 1450, desired.ProtocolBoot),
	} {
		c.Routes.Put(r.Key(), r)
	}
	for _, chain := range desired.PolicyChains(view.Policy{ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}}, "") {
		c.Firewall.Chains.Put(chain.Name, chain)
	}
	for _, chain := range desired.ListChains(view.PolicyList{ID: "open", Profiles: []string{"pro/all"}}) {
		c.Firewall.Chains.Put(chain.Name, chain)
	}
	c.Firewall.Settings = &desired.Settings{
		WorkloadPrefixes: []string{"cali"}, VXLAN4: &desired.VXLANAdmission{Port: v.Port, Device: v.Name},
	}
	c.Firewall.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet, Members: []view.Member{{Prefix: netip.PrefixFrom(other.address(), 32)}}})
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

// TestPodsOfTwoNodesTalkThroughVXLAN puts all drivers together, and looks at the packets between the nodes.
func TestPodsOfTwoNodesTalkThroughVXLAN(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2)
	a.ns.Run(t, "ip link add eth0 type veth peer name eth0 netns "+b.ns.Path)
	for _, x := range []*node{a, b} {
		x.ns.Run(t, fmt.Sprintf("ip addr add %s/24 dev eth0; ip link set eth0 up", x.address()))
		x.ns.Do(t, func() error {
			_, err := x.links.Wire(context.Background(), link.Pod{Netns: x.pod.Path, Interface: "eth0", Host: "cali1", MTU: 1450, Addresses: []netip.Addr{x.addr(1)}})
			return err
		})
	}
	a.apply(t, a.want(b))
	b.apply(t, b.want(a))
	packets := capture(t, b.ns, "eth0")
	a.pod.Run(t, "ping -c 2 -i 0.1 -W 2 "+b.addr(1).String())
	seen := map[string]bool{}
	for timeout := time.After(2 * time.Second); len(seen) < 2; {
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
		"192.168.9.1>192.168.9.2 10.0.1.1>10.0.2.1": true,
		"192.168.9.2>192.168.9.1 10.0.2.1>10.0.1.1": true,
	}, seen)
	a.ns.Run(t, "ping -c 1 -W 2 "+b.addr(1).String()) // a node, from its tunnel address

	// Packets of the size that fits, but none larger, and a pod that is not there is no loop.
	a.pod.Run(t, fmt.Sprintf("ping -c 1 -W 2 -M do -s %d %s", 1450-28, b.addr(1)))
	_, err := a.pod.Try(fmt.Sprintf("ping -c 1 -W 1 -M do -s %d %s", 1450-27, b.addr(1)))
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
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
			return err
		}
		go func() {
			for {
				b := make([]byte, 2048)
				n, _, err := unix.Recvfrom(fd, b, 0)
				if err != nil {
					return
				}
				select {
				case out <- b[:n]:
				default:
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

// parseVXLAN reads Ethernet, IPv4, UDP, VXLAN (RFC 7348), Ethernet and IPv4 headers.
func parseVXLAN(b []byte) (v vxlanPacket, ok bool) {
	const eth, ip, udp, vxlan = 14, 20, 8, 8
	if len(b) < eth+ip+udp+vxlan+eth+ip || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP || b[eth+9] != unix.IPPROTO_UDP ||
		binary.BigEndian.Uint16(b[eth+ip+2:]) != desired.DefaultVXLANPort {
		return v, false
	}
	addrs := func(b []byte) [2]netip.Addr {
		return [2]netip.Addr{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))}
	}
	v.vni = binary.BigEndian.Uint32(b[eth+ip+udp+4:]) >> 8
	v.outer, v.inner = addrs(b[eth:]), addrs(b[eth+ip+udp+vxlan+eth:])
	return v, binary.BigEndian.Uint16(b[eth+ip+udp+vxlan+12:]) == unix.ETH_P_IP
}
