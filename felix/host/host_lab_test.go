//go:build lab

package host

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/state"
)

// enter moves the test into a network namespace of its own, whose thread is never given back.
func enter(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace and needs root: run it as root, or under unshare -Urnm")
	}
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
}

func sh(t *testing.T, command string) {
	t.Helper()
	out, err := exec.Command("sh", "-ec", command).CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
}

func TestTheHostsNetworkIsToldAndFollowed(t *testing.T) {
	enter(t)
	sh(t, `ip link set lo up
		ip link add eth0 type veth peer name cali1; ip link set cali1 up
		ip addr add 10.30.0.206/24 dev eth0; ip -6 addr add fd00:30::206/64 dev eth0 nodad; ip link set eth0 mtu 1400 up
		ip route add 10.30.1.0/24 via 10.30.0.1 dev eth0 metric 50`)
	w := New(slog.New(slog.DiscardHandler))
	hop, beyond, nowhere := netip.MustParseAddr("10.30.0.56"), netip.MustParseAddr("10.30.1.66"), netip.MustParseAddr("203.0.113.1")
	w.Resolve([]netip.Addr{hop, beyond, nowhere, netip.MustParseAddr("10.30.0.206")})

	// Everything of the watcher runs on this thread, which alone is in the namespace; what changes is changed in between.
	changes := []string{
		"ip addr add 10.31.0.1/24 dev eth0",
		"ip link set eth0 mtu 1300",
		"ip route add 203.0.113.0/24 via 10.30.0.1",
		"ip link set eth0 down",
		"ip link del eth0",
	}
	var told []state.Host
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	settled := map[int]func(state.Host) bool{
		1: func(h state.Host) bool { return len(h.Interfaces["eth0"].Addresses) == 3 },
		2: func(h state.Host) bool { return h.Interfaces["eth0"].MTU == 1300 },
		3: func(h state.Host) bool { return h.NextHops[nowhere].Link == "eth0" },
		4: func(h state.Host) bool { return !h.Interfaces["eth0"].Up && h.NextHops[beyond].Link == "" },
		5: func(h state.Host) bool { return len(h.Interfaces) == 0 },
	}
	stage := 0
	require.NoError(t, w.Run(ctx, func(h state.Host) {
		if is := settled[stage]; is != nil && !is(h) {
			return // more events follow
		}
		told = append(told, h)
		if stage == len(changes) {
			cancel()
			return
		}
		sh(t, changes[stage])
		stage++
	}))
	require.Equal(t, len(changes)+1, len(told), "stuck after %v", changes[:stage])
	first := told[0]
	require.Len(t, first.Interfaces, 1, "neither workloads' interfaces nor the loopback")
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.30.0.206/24"), netip.MustParsePrefix("fd00:30::206/64")}, first.Interfaces["eth0"].Addresses)
	require.Equal(t, 1400, first.Interfaces["eth0"].MTU)
	require.True(t, first.Interfaces["eth0"].Up)
	require.Equal(t, state.NextHop{Via: hop, Link: "eth0"}, first.NextHops[hop])
	require.Equal(t, "10.30.0.1", first.NextHops[beyond].Via.String(), "by a router")
	require.Equal(t, state.NextHop{}, first.NextHops[nowhere])
	require.Equal(t, state.NextHop{}, first.NextHops[netip.MustParseAddr("10.30.0.206")], "the node itself is no way to anywhere")
}

// While pods come and go among many, the node's own interfaces are told as they are, or not at all: without them felix would take its
// tunnels down.
func TestPodsThatComeAndGoHideNothing(t *testing.T) {
	enter(t)
	sh(t, `ip link set lo up; ip link add eth0 type veth peer name cali0; ip addr add 10.30.0.206/24 dev eth0; ip link set eth0 up
		for i in $(seq 300); do
			echo link add cali$i type veth peer name cali-$i
			for end in cali$i cali-$i; do for n in 1 2 3 4; do echo address add 10.$n.$((i / 250)).$((i % 250)) dev $end; done; done
		done | ip -batch -`)
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	require.NoError(t, err)
	defer kernel.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		pod, err := kernel.LinkByName("cali1")
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(169, 254, 1, 1), Mask: net.CIDRMask(32, 32)}}
		for ctx.Err() == nil && err == nil {
			err = errors.Join(kernel.AddrAdd(pod, addr), kernel.AddrDel(pod, addr))
			time.Sleep(time.Millisecond) // there are moments in which nothing changes
		}
		ended <- err
	}()
	w := New(slog.New(slog.DiscardHandler))
	told := 0
	require.NoError(t, w.Run(ctx, func(h state.Host) {
		if assert.Len(t, h.Interfaces["eth0"].Addresses, 1); told == 100 || t.Failed() {
			cancel()
		}
		told++
		w.again()
	}))
	require.NoError(t, <-ended)
	require.Positive(t, told)
}

// The links that really carry packets to other nodes are told, whatever their names, and followed.
func TestUplinksAreThoseReallyUsed(t *testing.T) {
	enter(t)
	sh(t, `ip link set lo up
		for name in bond0 storage0; do ip link add $name type veth peer name cali$name; ip link set cali$name up; ip link set $name up; done
		ip addr add 10.30.0.206/24 dev bond0; ip link set bond0 mtu 8950
		ip addr add 10.40.0.1/24 dev storage0
		ip route add 10.30.1.0/24 via 10.30.0.1`)
	w := New(slog.New(slog.DiscardHandler))
	near, far := netip.MustParseAddr("10.30.0.56"), netip.MustParseAddr("10.30.1.66")
	w.Peers([]netip.Addr{near, far}, false)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stage := 0
	require.NoError(t, w.Run(ctx, func(h state.Host) {
		switch {
		case stage == 0:
			require.Equal(t, []string{"bond0"}, h.Uplinks)
			require.Nil(t, h.Ways, "all lead there")
			w.Peers([]netip.Addr{far}, false)
			sh(t, "ip route replace 10.30.1.0/24 via 10.40.0.9")
			stage++
		case stage == 1 && slices.Equal(h.Uplinks, []string{"storage0"}):
			w.Peers(nil, false)
			stage++
		case stage == 2 && len(h.Uplinks) == 0:
			w.Peers([]netip.Addr{far}, false)
			sh(t, "ip route replace 10.30.1.0/24 nexthop via 10.30.0.1 nexthop via 10.40.0.9")
			stage++
		case stage == 3 && slices.Equal(h.Uplinks, []string{"bond0", "storage0"}):
			require.Contains(t, h.Uplinks, h.Ways[far], "one of the two")
			w.Peers([]netip.Addr{near, far}, false)
			sh(t, "ip route replace 10.30.1.0/24 via 10.40.0.9")
			stage++
		case stage == 4 && maps.Equal(h.Ways, map[netip.Addr]string{near: "bond0", far: "storage0"}):
			require.Equal(t, []string{"bond0", "storage0"}, h.Uplinks)
			sh(t, "ip route add 10.30.0.56/32 via 10.40.0.9") // it is in the subnet of bond0 all the same
			stage++
		case stage == 5 && slices.Equal(h.Uplinks, []string{"storage0"}):
			sh(t, "ip link set storage0 down; ip route replace 10.30.1.0/24 via 10.30.0.1")
			stage++
		case stage == 6 && slices.Equal(h.Uplinks, []string{"bond0"}):
			require.Nil(t, h.Ways)
			stage++
			cancel()
		}
	}))
	require.Equal(t, 7, stage)
}

// Addresses that others may know the host by may be on the loopback.
func TestAddressesOnTheLoopback(t *testing.T) {
	enter(t)
	sh(t, "ip link set lo up; ip addr add 10.9.0.2/32 dev lo; ip addr add 10.9.0.1/32 dev lo; ip -6 addr add fd00:9::1/128 dev lo")
	h, err := New(slog.New(slog.DiscardHandler)).read()
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd00:9::1")}, h.Loopback)
	require.Empty(t, h.Interfaces)
}

// Each pod's interface has routes to link-local and multicast addresses, which the kernel makes: they lead to no node.
func TestRoutesOfPodsInterfacesAreNotHeard(t *testing.T) {
	enter(t)
	sh(t, "ip link set lo up")
	var heard atomic.Int32
	stop, err := subscribeToRoutes(func(netip.Prefix) { heard.Add(1) }, func(error) {})
	require.NoError(t, err)
	defer stop()
	sh(t, `ip link add cali1 type veth peer name pod1; ip link set pod1 up; ip link set cali1 up
		until ip -6 route show dev cali1 | grep -q fe80; do sleep 0.01; done
		ip link del cali1
		ip route add 203.0.113.0/24 dev lo`)
	require.Eventually(t, func() bool { return heard.Load() >= 1 }, time.Minute, time.Millisecond)
	sh(t, "ip -6 route add fd00:30::/64 dev lo")
	require.Eventually(t, func() bool { return heard.Load() >= 2 }, time.Minute, time.Millisecond)
	require.EqualValues(t, 2, heard.Load())
}

// The route to a pod is of nobody who is asked for, as long as no pod is a router.
func TestOnlyRoutesToThoseAskedForConcern(t *testing.T) {
	enter(t)
	sh(t, "ip link set lo up; ip link add eth0 type veth peer name cali1; ip link set cali1 up; ip link set eth0 up; ip addr add 10.30.0.206/24 dev eth0")
	w := New(slog.New(slog.DiscardHandler))
	w.Resolve([]netip.Addr{netip.MustParseAddr("10.88.0.9"), netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd00:88::1")})
	w.Peers([]netip.Addr{netip.MustParseAddr("10.30.0.56")}, false)
	told := make(chan bool, 64)
	stop, err := subscribeToRoutes(func(dst netip.Prefix) { told <- w.concerns(dst) }, func(error) {})
	require.NoError(t, err)
	defer stop()
	for _, c := range []struct {
		route    string
		concerns bool
	}{
		{"10.88.0.5 dev cali1", false},
		{"10.88.0.8/30 dev cali1", true}, // a next hop is in it
		{"10.88.0.1 dev cali1", true},    // and may be a pod
		{"10.30.0.56 dev eth0", true},    // a node
		{"10.99.0.0/16 via 10.30.0.1", false},
		{"default via 10.30.0.1", true},
		{"fd00:88::1 dev cali1", true},
		{"fd00:88::2 dev cali1", false},
	} {
		for _, verb := range []string{"add", "del"} {
			sh(t, "ip route "+verb+" "+c.route)
			select {
			case is := <-told:
				require.Equal(t, c.concerns, is, "%s %s", verb, c.route)
			case <-time.After(time.Minute):
				require.Fail(t, "nothing was heard", "%s %s", verb, c.route)
			}
		}
	}
	require.True(t, w.concerns(netip.Prefix{}), "what is not known may be")
}
