//go:build lab

package ipip_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/ipip"
	"github.com/muslin-net/muslin/felix/desired"
)

// backends are those that this kernel has. The second kernel must have both.
func backends(t *testing.T) []ipip.Backend {
	t.Helper()
	ns := labtest.New(t)
	out, err := ns.Try("ip link add trial type ipip local 192.0.2.3 remote 192.0.2.4 && ip link del trial")
	if err == nil {
		return []ipip.Backend{ipip.BPF, ipip.Kernel}
	}
	if secondKernel {
		t.Fatalf("the second kernel should have the module ipip, but it has not: %s", out)
	}
	return []ipip.Backend{ipip.BPF}
}

// alone are the backends that tests of one backend by itself are for. The second kernel is slow, and has the host's BPF beside
// the module in the tests of pairs.
func alone(t *testing.T) []ipip.Backend {
	t.Helper()
	all := backends(t)
	return all[len(all)-1:]
}

// patience is how long tests wait for what is to happen at once: emulated processors are slow.
const patience = time.Minute

// node is a host with one pod. Number n has the address 10.0.n.1, the pod 10.1.n.2 of the block 10.1.n.0/26, and its
// tunl0 10.1.n.1; the gateway is 10.0.n.254.
type node struct {
	*labtest.Namespace
	n    int
	pod  *labtest.Namespace
	d    *ipip.Driver
	want desired.IPIP
	by   map[netip.Addr]int // the interface to send to a node by, if not want.Parent
}

func (n *node) addr() netip.Addr       { return netip.AddrFrom4([4]byte{10, 0, byte(n.n), 1}) }
func (n *node) podAddr() netip.Addr    { return netip.AddrFrom4([4]byte{10, 1, byte(n.n), 2}) }
func (n *node) tunnelAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(n.n), 1}) }
func (n *node) block() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n.n), 0}), 26)
}

// fabric is nodes in subnets of their own behind a router, so that every outer packet needs a gateway.
type fabric struct {
	router *labtest.Namespace
	nodes  []*node
}

// build makes a fabric with a node for each backend, all of which know each other.
func build(t *testing.T, of ...ipip.Backend) *fabric {
	t.Helper()
	f := &fabric{router: labtest.New(t)}
	f.router.Run(t, "sysctl -qw net.ipv4.ip_forward=1")
	for i, backend := range of {
		f.nodes = append(f.nodes, f.join(t, i+1, backend))
	}
	for _, n := range f.nodes {
		f.tell(n)
		n.apply(t)
		for _, o := range f.nodes {
			if o != n {
				n.Run(t, fmt.Sprintf("ip route add %s via %s dev tunl0 onlink", o.block(), o.addr()))
			}
		}
	}
	for _, n := range f.nodes {
		n.AwaitLinks(t)
		n.pod.AwaitLinks(t)
	}
	f.router.AwaitLinks(t)
	return f
}

func (f *fabric) join(t *testing.T, number int, backend ipip.Backend) *node {
	n := &node{Namespace: labtest.New(t), n: number, pod: labtest.New(t)}
	n.want = desired.IPIP{Name: desired.IPIPDevice, Local: n.addr(), Parent: "eth0", Uplinks: "eth0", MTU: 1480, Address: n.tunnelAddr()}
	n.Run(t, fmt.Sprintf(`
		ip link add eth0 type veth peer name p%[1]d; ip link set p%[1]d netns %[2]s
		ip link add cali1 type veth peer name ens0; ip link set ens0 netns %[3]s
		ip addr add %[4]s/24 dev eth0; ip link set eth0 up; ip link set cali1 up
		ip route add default via 10.0.%[1]d.254
		ip route add %[5]s dev cali1 scope link; ip addr add 169.254.1.1/32 dev cali1
		sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1`,
		n.n, f.router.Path, n.pod.Path, n.addr(), n.podAddr()))
	f.router.Run(t, fmt.Sprintf("ip addr add 10.0.%[1]d.254/24 dev p%[1]d; ip link set p%[1]d up", n.n))
	n.pod.Run(t, fmt.Sprintf("ip addr add %s/32 dev ens0; ip link set ens0 up; ip route add 169.254.1.1 dev ens0; ip route add default via 169.254.1.1", n.podAddr()))
	n.open(t, backend)
	return n
}

// open starts a driver, as felix does.
func (n *node) open(t *testing.T, backend ipip.Backend) {
	n.Do(t, func() (err error) {
		n.d, err = ipip.New(ipip.Config{Backend: backend})
		return err
	})
	d := n.d
	t.Cleanup(func() { d.Close() })
}

func (n *node) apply(t *testing.T) {
	t.Helper()
	n.Do(t, func() error { return n.d.Apply(context.Background()) })
}

// tell a node's driver all that is to be known.
func (f *fabric) tell(n *node) {
	var devices desired.Delta[string, desired.IPIP]
	var encaps desired.Delta[netip.Prefix, desired.Encap]
	var decaps desired.Delta[netip.Addr, desired.Decap]
	devices.Put(desired.IPIPDevice, n.want)
	for _, o := range f.nodes {
		if o != n {
			encaps.Put(o.block(), desired.Encap{Remote: o.addr()})
			decaps.Put(o.addr(), desired.Decap{Out: n.by[o.addr()]})
		}
	}
	n.d.Update(devices, encaps, decaps)
	n.d.Whole()
}

// watch has a node's driver repair what is broken, until the test ends.
func (n *node) watch(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	wake, ended := make(chan struct{}, 1), make(chan error, 2)
	go func() {
		ended <- n.In(func() error {
			return n.d.Watch(ctx, func(...dataplane.Drift) {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
		})
	}()
	go func() {
		ended <- n.In(func() error {
			retry := time.NewTimer(0)
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-wake:
				case <-retry.C:
				}
				if n.d.Apply(ctx) != nil { // seen by what the test waits for, and tried again as the agent does
					retry.Reset(100 * time.Millisecond)
				}
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
	})
}

// ping asks again and again until there is an answer, or an error: packets may be lost where something has just been changed.
func ping(size int, to netip.Addr) string {
	const headers = 20 + 8
	return fmt.Sprintf("ping -n -c 1 -i 0.2 -w %.0f -M do -s %d %s", patience.Seconds(), size-headers, to)
}

// bulk sends bytes by TCP from one namespace to an address in another and returns how long it took.
func bulk(t *testing.T, from, to *labtest.Namespace, addr netip.Addr, size int) time.Duration {
	t.Helper()
	var l *net.TCPListener
	to.Do(t, func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: addr.AsSlice()})
		return err
	})
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	var c *net.TCPConn
	from.Do(t, func() (err error) {
		c, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
		return err
	})
	start := time.Now()
	require.NoError(t, c.SetDeadline(start.Add(5*time.Minute)))
	_, err := io.Copy(c, io.LimitReader(zeros{}, int64(size)))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	select {
	case n := <-got:
		require.EqualValues(t, size, n)
	case <-time.After(5 * time.Minute):
		t.Fatal("the other end did not get everything within minutes")
	}
	c.Close()
	return time.Since(start)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// capture is a tap on a device.
type capture struct{ fd int }

func tap(t *testing.T, ns *labtest.Namespace, device string) capture {
	t.Helper()
	var c capture
	ns.Do(t, func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// next is the next packet that pleases, within a time.
func (c capture) next(t *testing.T, pleases func(gopacket.Packet) bool) gopacket.Packet {
	t.Helper()
	p := c.within(patience, pleases)
	require.NotNil(t, p, "no such packet came")
	return p
}

func (c capture) within(limit time.Duration, pleases func(gopacket.Packet) bool) gopacket.Packet {
	end := time.Now().Add(limit)
	buf := make([]byte, 1<<17)
	for time.Now().Before(end) {
		tv := unix.NsecToTimeval(int64(max(time.Until(end), time.Millisecond)))
		_ = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err != nil {
			continue
		}
		p := gopacket.NewPacket(bytes.Clone(buf[:n]), layers.LayerTypeEthernet, gopacket.Default)
		if pleases(p) {
			return p
		}
	}
	return nil
}

// headers are the IPv4 headers of a packet, the outer one first.
func headers(p gopacket.Packet) (out []*layers.IPv4) {
	for _, l := range p.Layers() {
		if ip, ok := l.(*layers.IPv4); ok {
			out = append(out, ip)
		}
	}
	return out
}

func tunnelled(p gopacket.Packet) bool { return len(headers(p)) == 2 }
