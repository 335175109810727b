//go:build lab

package ipip_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/ipip"
	"github.com/muslin-net/muslin/felix/desired"
)

// eachPair runs a test for each pair of backends that this kernel has, so that all are proven to understand each other. BPF with
// itself is for kernels that have nothing else.
func eachPair(t *testing.T, test func(t *testing.T, a, b ipip.Backend)) {
	all := backends(t)
	for _, a := range all {
		for _, b := range all {
			if len(all) > 1 && a == ipip.BPF && b == ipip.BPF {
				continue
			}
			t.Run(short(a)+"-"+short(b), func(t *testing.T) { test(t, a, b) })
		}
	}
}

func short(b ipip.Backend) string {
	if b == ipip.BPF {
		return "bpf"
	}
	return "module"
}

func TestTraffic(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b ipip.Backend) {
		f := build(t, a, b)
		for i, from := range f.nodes {
			to := f.nodes[1-i]
			for _, size := range []int{28, 64, 1480} {
				from.pod.Run(t, ping(size, to.podAddr()))
			}
			from.Run(t, ping(1480, to.podAddr()))
			from.Run(t, ping(1480, to.tunnelAddr()))
			const size = 16 << 20
			took := bulk(t, from.pod, to.pod, to.podAddr(), size)
			t.Logf("%.2f Gbit/s", float64(size)*8/took.Seconds()/1e9)
			bulk(t, from.Namespace, to.Namespace, to.tunnelAddr(), size)
		}
	})
}

// A packet that came out of one tunnel goes into the next, as to the pod of a service on a third node.
func TestFromTunnelToTunnel(t *testing.T) {
	for _, middle := range alone(t) {
		t.Run(short(middle), func(t *testing.T) {
			f := build(t, ipip.BPF, middle, ipip.BPF)
			one, two, three := f.nodes[0], f.nodes[1], f.nodes[2]
			// The first and the third node know each other by way of the second.
			for _, n := range []*node{one, three} {
				var encaps desired.Delta[netip.Prefix, desired.Encap]
				for _, o := range []*node{one, three} {
					encaps.Put(o.block(), desired.Encap{Remote: two.addr()})
				}
				n.d.Update(desired.Delta[string, desired.IPIP]{}, encaps, desired.Delta[netip.Addr, desired.Decap]{})
				n.apply(t)
			}
			two.Run(t, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.tunl0.rp_filter=0 net.ipv4.conf.all.send_redirects=0")
			one.pod.Run(t, ping(1480, three.podAddr()))
			bulk(t, one.pod, three.pod, three.podAddr(), 16<<20)
			bulk(t, three.pod, one.pod, one.podAddr(), 16<<20)
		})
	}
}

// The outer header, field by field, with what the package's doc says of each backend.
func TestOuterHeader(t *testing.T) {
	for _, backend := range alone(t) {
		t.Run(short(backend), func(t *testing.T) {
			f := build(t, backend, backend)
			one, two := f.nodes[0], f.nodes[1]
			c := tap(t, f.router, "p1")
			for name, is := range map[string]struct {
				df  string
				tos uint8
				out uint8 // TOS of the outer header
			}{
				"DF":                          {df: "do", out: 0},
				"no DF":                       {df: "dont", out: 0},
				"class of service":            {df: "do", tos: 0xb8, out: 0xb8},
				"able to be told":             {df: "do", tos: 0x02, out: 0x02},
				"congested before the tunnel": {df: "do", tos: 0x03, out: 0x02},
			} {
				t.Run(name, func(t *testing.T) {
					one.pod.Run(t, fmt.Sprintf("ping -n -c 1 -W 30 -t 33 -M %s -Q %d -s 100 %s", is.df, is.tos, two.podAddr()))
					p := c.next(t, func(p gopacket.Packet) bool {
						return tunnelled(p) && headers(p)[0].SrcIP.Equal(one.addr().AsSlice())
					})
					outer, inner := headers(p)[0], headers(p)[1]
					assert.EqualValues(t, 4, outer.Version)
					assert.EqualValues(t, 5, outer.IHL)
					assert.EqualValues(t, inner.Length+20, outer.Length)
					assert.EqualValues(t, 20+8+100, inner.Length)
					assert.Equal(t, layers.IPProtocolIPv4, outer.Protocol)
					assert.True(t, outer.DstIP.Equal(two.addr().AsSlice()), outer.DstIP)
					assert.True(t, inner.SrcIP.Equal(one.podAddr().AsSlice()), inner.SrcIP)
					assert.True(t, inner.DstIP.Equal(two.podAddr().AsSlice()), inner.DstIP)
					assert.EqualValues(t, 0, outer.FragOffset)
					assert.Equal(t, is.df == "do", inner.Flags&layers.IPv4DontFragment != 0)
					df := layers.IPv4DontFragment
					if backend == ipip.Kernel {
						df = inner.Flags
					}
					assert.Equal(t, df, outer.Flags)
					assert.EqualValues(t, 32, inner.TTL, "one hop, the node")
					assert.EqualValues(t, is.tos, inner.TOS)
					assert.Zero(t, checksum(outer.Contents), "the right checksum")
					ttl := uint8(64)
					if backend == ipip.Kernel {
						ttl = inner.TTL
					}
					assert.Equal(t, ttl, outer.TTL)
					tos := is.out
					if backend == ipip.Kernel && one.fallback(t) {
						tos &= 3
					}
					assert.Equal(t, tos, outer.TOS)
				})
			}
		})
	}
}

// fallback tells whether a node uses the device that the module made by itself.
func (n *node) fallback(t *testing.T) bool {
	_, err := n.Try("ip -d link show tunl0 | grep -q 'local any'")
	return err == nil
}

func checksum(header []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(header[i])<<8 | uint32(header[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// Congestion that a router marks on the outer header reaches the receiver on the inner one, with a right checksum.
func TestCongestionIsToldInside(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b ipip.Backend) {
		f := build(t, a, b)
		one, two := f.nodes[0], f.nodes[1]
		c := tap(t, two.pod, "ens0")
		inner := packet(one.podAddr(), two.podAddr(), layers.IPv4{TOS: 0x02, Protocol: layers.IPProtocolUDP}, 60)
		f.inject(t, two, packet(one.addr(), two.addr(), layers.IPv4{TOS: 0x03, Protocol: layers.IPProtocolIPv4}, 0, inner...))
		p := c.next(t, func(p gopacket.Packet) bool {
			h := headers(p)
			return len(h) == 1 && h[0].Protocol == layers.IPProtocolUDP
		})
		assert.EqualValues(t, 0x03, headers(p)[0].TOS)
		assert.Zero(t, checksum(headers(p)[0].Contents))
	})
}

// packet is an IPv4 packet, with a payload of zeros of a length, or the given one.
func packet(src, dst netip.Addr, h layers.IPv4, zeros int, payload ...byte) []byte {
	h.Version, h.IHL, h.TTL, h.SrcIP, h.DstIP = 4, 5, 60, src.AsSlice(), dst.AsSlice()
	b := gopacket.NewSerializeBuffer()
	if payload == nil {
		payload = make([]byte, zeros)
	}
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &h, gopacket.Payload(payload)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// inject has the router send a packet to a node, as if it had come from elsewhere.
func (f *fabric) inject(t *testing.T, to *node, packet []byte) {
	t.Helper()
	f.router.Run(t, fmt.Sprintf("ping -n -c 1 -i 0.2 -w 60 %s", to.addr())) // so that the neighbour is known
	f.router.Do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.addr().As4()})
	})
}

// Only what known nodes send to the node's own address is unpacked in BPF; all else takes its way up the stack. (The
// module's device unpacks from everyone: rules guard it, felix/render.)
func TestOthersPacketsAreNotUnpacked(t *testing.T) {
	f := build(t, ipip.BPF, ipip.BPF)
	one, two := f.nodes[0], f.nodes[1]
	inner := packet(one.podAddr(), two.podAddr(), layers.IPv4{Protocol: layers.IPProtocolUDP}, 8)
	inPod, up := tap(t, two.pod, "ens0"), tap(t, two.Namespace, "tunl0")
	udp := func(p gopacket.Packet) bool {
		h := headers(p)
		return len(h) > 0 && h[len(h)-1].Protocol == layers.IPProtocolUDP
	}
	stranger := netip.MustParseAddr("10.0.9.9")
	ipip4 := layers.IPv4{Protocol: layers.IPProtocolIPv4}
	fragment := ipip4
	fragment.Flags = layers.IPv4MoreFragments
	spoiled := packet(one.addr(), two.addr(), ipip4, 0, inner...)
	spoiled[20] = 0x65 // not IPv4 inside
	for reason, p := range map[string][]byte{
		ipip.UnknownNode: packet(stranger, two.addr(), ipip4, 0, inner...),
		ipip.Fragment:    packet(one.addr(), two.addr(), fragment, 0, inner...),
		ipip.Malformed:   spoiled,
	} {
		before := counter(t, two, reason)
		f.inject(t, two, p)
		require.Eventually(t, func() bool { return counter(t, two, reason) == before+1 }, patience, 5*time.Millisecond, reason)
	}
	require.Nil(t, inPod.within(200*time.Millisecond, udp))
	require.Nil(t, up.within(200*time.Millisecond, udp))

	f.inject(t, two, packet(one.addr(), two.addr(), ipip4, 0, inner...))
	inPod.next(t, udp)
	up.next(t, udp)

	// A node that is forgotten is a stranger.
	var decaps desired.Delta[netip.Addr, desired.Decap]
	decaps.Remove(one.addr())
	two.d.Update(desired.Delta[string, desired.IPIP]{}, desired.Delta[netip.Prefix, desired.Encap]{}, decaps)
	two.apply(t)
	f.inject(t, two, packet(one.addr(), two.addr(), ipip4, 0, inner...))
	require.Nil(t, inPod.within(200*time.Millisecond, udp))
}

func counter(t *testing.T, n *node, name string) uint64 {
	t.Helper()
	c, err := n.d.Counters()
	require.NoError(t, err)
	require.Contains(t, c, name)
	return c[name]
}

// What cannot go into the tunnel is dropped and counted, and the sender of a packet too big is told.
func TestWhatDoesNotFit(t *testing.T) {
	for _, backend := range alone(t) {
		t.Run(short(backend), func(t *testing.T) {
			f := build(t, backend, backend)
			one, two := f.nodes[0], f.nodes[1]
			out, err := one.pod.Try(ping(1500, two.podAddr()))
			require.Error(t, err)
			require.Contains(t, out, "mtu = 1480")
			// Without DF the node cuts it before the tunnel.
			one.pod.Run(t, fmt.Sprintf("ip route flush cache; ping -n -c 1 -i 0.2 -w 60 -M dont -s 3000 %s", two.podAddr()))
			if backend == ipip.Kernel {
				return
			}
			one.Run(t, "ip route add 10.99.0.0/24 via 10.0.2.1 dev tunl0 onlink")
			lost := func(reason, ping string) {
				before, sent := counter(t, one, reason), counter(t, one, ipip.Sent)
				_, err := one.Try(ping)
				require.Error(t, err)
				require.Greater(t, counter(t, one, reason), before)
				require.Equal(t, sent, counter(t, one, ipip.Sent))
			}
			lost(ipip.NoNode, "ping -n -c 1 -W 1 10.99.0.1")
		})
	}
}

// Packets of UDP that the sender's kernel is to cut (UDP_SEGMENT) pass like those of TCP.
func TestSegmentsOfUDP(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b ipip.Backend) {
		f := build(t, a, b)
		one, two := f.nodes[0], f.nodes[1]
		var l, c *net.UDPConn
		two.pod.Do(t, func() (err error) {
			l, err = net.ListenUDP("udp4", &net.UDPAddr{IP: two.podAddr().AsSlice()})
			return err
		})
		defer l.Close()
		one.pod.Do(t, func() (err error) {
			c, err = net.DialUDP("udp4", nil, l.LocalAddr().(*net.UDPAddr))
			return err
		})
		defer c.Close()
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		const segment, count = 1000, 10
		require.NoError(t, raw.Control(func(fd uintptr) {
			require.NoError(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment))
		}))
		one.pod.Run(t, ping(100, two.podAddr())) // so that neighbours are known
		_, err = c.Write(make([]byte, segment*count))
		require.NoError(t, err)
		require.NoError(t, l.SetReadDeadline(time.Now().Add(patience)))
		for range count {
			n, err := l.Read(make([]byte, 65536))
			require.NoError(t, err)
			require.Equal(t, segment, n)
		}
	})
}

// Longest prefix wins, as among routes: a borrowed address is with another node than its block.
func TestBorrowedAddress(t *testing.T) {
	f := build(t, ipip.BPF, ipip.BPF, ipip.BPF)
	one, two, three := f.nodes[0], f.nodes[1], f.nodes[2]
	borrowed := netip.MustParseAddr("10.1.2.9")
	three.Run(t, fmt.Sprintf("ip route add %s dev cali1", borrowed))
	three.pod.Run(t, fmt.Sprintf("ip addr add %s/32 dev ens0", borrowed))
	one.Run(t, fmt.Sprintf("ip route add %s via %s dev tunl0 onlink", borrowed, three.addr()))
	var encaps desired.Delta[netip.Prefix, desired.Encap]
	encaps.Put(netip.PrefixFrom(borrowed, 32), desired.Encap{Remote: three.addr()})
	one.d.Update(desired.Delta[string, desired.IPIP]{}, encaps, desired.Delta[netip.Addr, desired.Decap]{})
	require.NoError(t, one.In(func() error { return one.d.Apply(context.Background()) }))
	one.pod.Run(t, ping(100, borrowed))
	one.pod.Run(t, ping(100, two.podAddr()))
}
