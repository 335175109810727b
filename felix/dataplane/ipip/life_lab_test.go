//go:build lab

package ipip_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/ipip"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
)

func eachBackend(t *testing.T, test func(t *testing.T, b ipip.Backend)) {
	for _, b := range alone(t) {
		t.Run(short(b), func(t *testing.T) { test(t, b) })
	}
}

// state is all that a driver writes, as the tools print it.
func (n *node) state() string {
	out, _ := n.Try(`for d in tunl0 tunl0.peer; do ip -d link show $d 2>/dev/null || true; done; ip -4 addr show tunl0 2>&1 || true
		for d in tunl0 eth0 eth1; do tc qdisc show dev $d clsact; tc filter show dev $d ingress; tc filter show dev $d egress; done 2>&1`)
	return out
}

// A restart adopts what is there without a write, and no packet is lost from before to after it.
func TestRestartAdopts(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend)
		one, two := f.nodes[0], f.nodes[1]
		before := one.state()
		const packets = 300
		pinged := make(chan string, 1)
		go func() {
			out, _ := one.pod.Try(fmt.Sprintf("ping -n -i 0.005 -c %d -W 30 %s", packets, two.podAddr()))
			pinged <- out
		}()
		require.NoError(t, one.d.Close())
		one.pod.Run(t, ping(1480, two.podAddr())) // felix is dead
		one.open(t, backend)
		one.apply(t) // nothing is known yet
		f.tell(one)
		one.apply(t)
		assert.Zero(t, one.d.Writes())
		assert.Equal(t, before, one.state())
		for _, e := range one.d.Entries() {
			assert.Equal(t, e.Desired, e.Actual, e.String())
		}
		assert.Contains(t, <-pinged, fmt.Sprintf("%d received, 0%% packet loss", packets))
		one.d.Resync()
		one.apply(t)
		assert.Zero(t, one.d.Writes())
	})
}

// Entries of a former felix that are not wanted any more are removed when all is known, not before.
func TestRestartRemovesWhatIsNotWanted(t *testing.T) {
	f := build(t, ipip.BPF, ipip.BPF, ipip.BPF)
	one, two := f.nodes[0], f.nodes[1]
	require.NoError(t, one.d.Close())
	one.open(t, ipip.BPF)
	var devices desired.Delta[string, desired.IPIP]
	var encaps desired.Delta[netip.Prefix, desired.Encap]
	var decaps desired.Delta[netip.Addr, desired.Decap]
	devices.Put(desired.IPIPDevice, one.want)
	encaps.Put(two.block(), desired.Encap{Remote: two.addr()})
	decaps.Put(two.addr(), desired.Decap{})
	one.d.Update(devices, encaps, decaps)
	one.apply(t)
	assert.Len(t, one.d.Entries(), 1+2+2)
	one.pod.Run(t, ping(100, f.nodes[2].podAddr()))
	one.d.Whole()
	one.apply(t)
	assert.Len(t, one.d.Entries(), 1+1+1)
	assert.EqualValues(t, 2, one.d.Writes())
}

// Whatever is broken by hand is put back within a second.
func TestDamageIsRepaired(t *testing.T) {
	common := []string{
		"ip link del tunl0", "ip addr flush dev tunl0", "ip addr add 10.7.7.7/32 dev tunl0", "ip link set tunl0 down",
		"ip link set tunl0 mtu 1300",
		// One flush may be as many as felix is quick, see iproute2's ipaddr_flush.
		"for i in 1 2 3 4; do ip addr flush dev tunl0; timeout 60 sh -c 'until ip -4 -o addr show tunl0 | grep -q inet; do :; done'; done",
	}
	of := map[ipip.Backend][]string{
		ipip.Kernel: common,
		ipip.BPF: append(common,
			"ip link del tunl0.peer", "ip link set tunl0.peer down", "ip link set tunl0 arp on",
			"ip link set tunl0 name mine || ip link set tunl0 down", // kernels before 6.2 rename only what is down
			"tc qdisc del dev tunl0 clsact", "tc filter del dev tunl0 egress", "tc qdisc del dev eth0 clsact", "tc filter del dev eth0 ingress",
			"tc qdisc del dev tunl0 clsact; tc qdisc add dev tunl0 ingress || true", // the repair may be faster
		),
	}
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend)
		one, two := f.nodes[0], f.nodes[1]
		one.watch(t)
		for _, damage := range of[backend] {
			t.Run(damage, func(t *testing.T) {
				one.Run(t, damage)
				start := time.Now()
				check := fmt.Sprintf(`ip link show tunl0 | grep -q 'mtu 1480' && ip link show tunl0 | grep -q ',UP' && ! ip link show mine 2>/dev/null
					[ "$(ip -4 -o addr show tunl0 | wc -l)" = 1 ]; ip addr show tunl0 | grep -q '%s/32'`, one.tunnelAddr())
				require.Eventually(t, func() bool {
					_, err := one.Try(check)
					return err == nil
				}, patience, time.Millisecond)
				// The route went with the device: it is the route driver's to repair.
				one.Run(t, fmt.Sprintf("ip route replace %s via %s dev tunl0 onlink", two.block(), two.addr()))
				require.Eventually(t, func() bool {
					_, err := one.pod.Try(fmt.Sprintf("ping -n -c 1 -W 0.2 -s 1452 -M do %s", two.podAddr()))
					return err == nil
				}, patience, time.Millisecond)
				t.Logf("repaired after %d ms", time.Since(start).Milliseconds())
			})
		}
	})
}

// A node gets another address on another device: the programs move, and leave nothing behind.
func TestReaddressed(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend)
		one, two := f.nodes[0], f.nodes[1]
		one.Run(t, fmt.Sprintf("ip link add eth1 type veth peer name q1; ip link set q1 netns %s; ip addr add 10.0.7.1/24 dev eth1; ip link set eth1 up", f.router.Path))
		f.router.Run(t, "ip addr add 10.0.7.254/24 dev q1; ip link set q1 up")
		one.Run(t, "ip route replace default via 10.0.7.254; tc qdisc show dev eth0")
		one.want.Local, one.want.Parent, one.want.Uplinks = netip.MustParseAddr("10.0.7.1"), "eth1", "eth1"
		f.tell(one)
		one.apply(t)
		var encaps desired.Delta[netip.Prefix, desired.Encap]
		var decaps desired.Delta[netip.Addr, desired.Decap]
		encaps.Put(one.block(), desired.Encap{Remote: one.want.Local})
		decaps.Put(one.want.Local, desired.Decap{})
		two.d.Update(desired.Delta[string, desired.IPIP]{}, encaps, decaps)
		two.apply(t)
		two.Run(t, fmt.Sprintf("ip route replace %s via 10.0.7.1 dev tunl0 onlink", one.block()))
		one.pod.Run(t, ping(1480, two.podAddr()))
		assert.NotContains(t, one.Run(t, "tc qdisc show dev eth0"), "clsact")
	})
}

// Filters of others on the parent are left alone, with the qdisc that bears them.
func TestFiltersOfOthersStay(t *testing.T) {
	f := build(t, ipip.BPF, ipip.BPF)
	one, two := f.nodes[0], f.nodes[1]
	one.Run(t, "tc filter add dev eth0 ingress pref 90 protocol all u32 match u32 0 0 flowid 1:1")
	one.pod.Run(t, ping(100, two.podAddr()))
	unwant(t, one)
	out := one.Run(t, "tc filter show dev eth0 ingress; tc qdisc show dev eth0")
	assert.NotContains(t, out, "ipip_in")
	assert.Contains(t, out, "pref 90")
	assert.Contains(t, out, "clsact")

	// A qdisc of the elder type will do, and is not ours to remove.
	two.Run(t, "tc qdisc del dev eth0 clsact; tc qdisc add dev eth0 ingress")
	two.d.Resync()
	two.apply(t)
	assert.Contains(t, two.Run(t, "tc filter show dev eth0 ingress"), "ipip_in")
	unwant(t, two)
	assert.Contains(t, two.Run(t, "tc qdisc show dev eth0"), "qdisc ingress")
}

func unwant(t *testing.T, n *node) {
	t.Helper()
	var devices desired.Delta[string, desired.IPIP]
	devices.Remove(desired.IPIPDevice)
	n.d.Update(devices, desired.Delta[netip.Prefix, desired.Encap]{}, desired.Delta[netip.Addr, desired.Decap]{})
	n.apply(t)
}

// What is not wanted any more is gone; what the module made by itself is at rest.
func TestNotWanted(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		f := build(t, backend, backend)
		one, two := f.nodes[0], f.nodes[1]
		fallback := backend == ipip.Kernel && one.fallback(t)
		unwant(t, one)
		if out, err := one.Try("ip addr show tunl0"); fallback {
			require.NoError(t, err)
			assert.NotContains(t, out, "UP")
			assert.NotContains(t, out, "inet ")
		} else {
			require.Error(t, err, out)
		}
		left := one.state()
		assert.NotContains(t, left, "tunl0.peer")
		assert.NotContains(t, left, "clsact")
		writes := one.d.Writes()
		one.d.Resync()
		one.apply(t)
		assert.Equal(t, writes, one.d.Writes(), "and that is the end of it")

		f.tell(one)
		one.apply(t)
		one.Run(t, fmt.Sprintf("ip route replace %s via %s dev tunl0 onlink", two.block(), two.addr()))
		one.pod.Run(t, ping(1480, two.podAddr()))
	})
}

// A tunl0 of somebody else is left alone, and named.
func TestForeignDeviceIsRefused(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		for kind, create := range map[string]string{
			"bridge": "ip link add tunl0 type bridge; ip link set tunl0 alias 'the VPN of Ann'",
			"veth":   "ip link add tunl0 type veth peer name other; ip link set tunl0 alias 'the VPN of Ann'",
		} {
			t.Run(kind, func(t *testing.T) {
				f := &fabric{router: labtest.New(t)}
				n := f.join(t, 1, backend)
				n.Try("ip link set tunl0 name tunl0.was") // where the module made one
				n.Run(t, create)
				before := n.state()
				f.tell(n)
				err := n.In(func() error { return n.d.Apply(context.Background()) })
				require.ErrorContains(t, err, "tunl0")
				require.ErrorContains(t, err, "of type "+kind)
				require.ErrorContains(t, err, "the VPN of Ann")
				require.ErrorContains(t, err, "rename it")
				assert.Equal(t, before, n.state())
				assert.Zero(t, n.d.Writes())
				n.watch(t)
				n.Run(t, "ip link del tunl0")
				require.Eventually(t, func() bool { return strings.Contains(n.state(), n.tunnelAddr().String()) }, patience, 5*time.Millisecond)
			})
		}
	})
}

func TestParentMustBeEthernet(t *testing.T) {
	f := &fabric{router: labtest.New(t)}
	n := f.join(t, 1, ipip.BPF)
	n.Run(t, "ip link add vpn0 type vxlan dstport 4790 external gpe; ip link set vpn0 up")
	for _, refused := range []struct{ parent, reason string }{{"vpn0", "needs Ethernet devices"}, {"eth9", "is not there"}} {
		n.want.Parent = refused.parent
		f.tell(n)
		err := n.In(func() error { return n.d.Apply(context.Background()) })
		require.ErrorContains(t, err, refused.parent)
		require.ErrorContains(t, err, refused.reason)
	}
	n.watch(t)
	n.Run(t, "ip link add eth9 type veth peer name e9")
	require.Eventually(t, func() bool { return strings.Contains(n.state(), n.tunnelAddr().String()) }, patience, 5*time.Millisecond)

	// One of several uplinks that is not of Ethernet, or not there, does not keep the others from their work.
	n.want.Parent, n.want.Uplinks = "eth0", "eth0 eth1 eth8 vpn0"
	f.tell(n)
	n.Run(t, "ip link add eth1 type veth peer name e1")
	n.apply(t)
	require.Contains(t, n.Run(t, "tc filter show dev eth1 ingress"), "ipip_in")
	n.Run(t, "ip link add eth8 type veth peer name e8")
	require.Eventually(t, func() bool {
		out, err := n.Try("tc filter show dev eth8 ingress")
		return err == nil && strings.Contains(out, "ipip_in")
	}, patience, 5*time.Millisecond)
}

// A node changes from one backend to the other, as when the module was installed: the old device makes room.
func TestBackendsGiveWayToEachOther(t *testing.T) {
	all := backends(t)
	f := build(t, ipip.BPF, ipip.BPF)
	one, two := f.nodes[0], f.nodes[1]
	for _, backend := range append(all, all...) {
		require.NoError(t, one.d.Close())
		one.open(t, backend)
		f.tell(one)
		one.apply(t)
		one.Run(t, fmt.Sprintf("ip route replace %s via %s dev tunl0 onlink", two.block(), two.addr()))
		one.pod.Run(t, ping(1480, two.podAddr()))
		kind := "veth"
		if backend == ipip.Kernel {
			kind = "ipip"
			assert.NotContains(t, one.state(), "clsact")
		}
		assert.Contains(t, one.Run(t, "ip -d link show tunl0"), kind)
	}
}

func TestProbe(t *testing.T) {
	all := backends(t)
	ns := labtest.New(t)
	before := ns.Run(t, "ip -o link | cut -d: -f2")
	ns.Do(t, func() error {
		for _, b := range all {
			got, err := ipip.Probe(b)
			require.NoError(t, err)
			require.Equal(t, b, got)
		}
		best, err := ipip.Probe(ipip.Auto)
		require.NoError(t, err)
		require.Equal(t, all[len(all)-1], best)
		if len(all) == 1 {
			_, err := ipip.Probe(ipip.Kernel)
			require.ErrorAs(t, err, new(*tunnel.CapabilityError))
			require.ErrorContains(t, err, "load the module ipip")
			require.ErrorContains(t, err, "vxlanMode")
		}
		return nil
	})
	assert.Equal(t, before, ns.Run(t, "ip -o link | cut -d: -f2"), "nothing is left")
}

// In a user namespace BPF is not to be had, and the error says so.
func TestBPFNeedsRoot(t *testing.T) {
	if os.Getenv("LAB_PROBE") != "" {
		_, err := ipip.Probe(ipip.BPF)
		t.Log(err)
		return
	}
	c := exec.Command("unshare", "-Urn", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), "LAB_PROBE=1")
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "the kernel has no IP-in-IP: BPF: loading a program needs root")
}
