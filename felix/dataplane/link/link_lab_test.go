//go:build lab

package link_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/desired"
)

const host = "cali12345678901"

func start(t *testing.T) (node, pod *labtest.Namespace, d *link.Driver, p link.Pod) {
	node, pod = labtest.Enter(t), labtest.New(t)
	d, err := link.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return node, pod, d, link.Pod{
		Netns: pod.Path, Interface: "eth0", Host: host, MTU: 1400,
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("fd00:77::7")},
	}
}

func tell(d *link.Driver, l desired.WorkloadLink) {
	var links desired.Delta[string, desired.WorkloadLink]
	var sysctls desired.Delta[string, desired.Sysctl]
	links.Put(l.Name, l)
	for _, s := range desired.HostSysctls(true) {
		sysctls.Put(s.Path, s)
	}
	d.Update(links, sysctls)
}

var wanted = desired.WorkloadLink{Name: host, MTU: 1400, IPv4: true, IPv6: true}

func TestAPodIsWiredAsItsUsersKnowIt(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()
	p.MAC = desired.MAC{0x02, 0, 0, 0, 0, 0x07}
	require.NoError(t, d.Wire(ctx, p))
	tell(d, wanted)
	require.NoError(t, d.Apply(ctx))
	require.True(t, d.Programmed(host))

	require.Contains(t, pod.Run(t, "ip link show eth0"), p.MAC.String())
	require.Contains(t, pod.Run(t, "ip link show eth0"), "mtu 1400")
	require.Contains(t, pod.Run(t, "ip addr show eth0"), "inet 192.168.1.7/32")
	require.Contains(t, pod.Run(t, "ip addr show eth0"), "inet6 fd00:77::7/128")
	require.NotContains(t, pod.Run(t, "ip addr show eth0"), "tentative")
	routes := pod.Run(t, "ip route; ip -6 route")
	require.Contains(t, routes, "default via 169.254.1.1 dev eth0")
	require.Contains(t, routes, "169.254.1.1 dev eth0 scope link")
	require.Contains(t, routes, "default via fe80::ecee:eeff:feee:eeee dev eth0")
	require.Equal(t, "0\n", pod.Run(t, "cat /proc/sys/net/ipv4/ip_forward"))

	side := node.Run(t, "ip link show "+host)
	require.Contains(t, side, "ee:ee:ee:ee:ee:ee")
	require.Contains(t, side, "UP")
	for path, value := range map[string]string{
		"ipv4/conf/" + host + "/proxy_arp": "1", "ipv4/conf/" + host + "/forwarding": "1", "ipv4/conf/" + host + "/route_localnet": "1",
		"ipv6/conf/" + host + "/proxy_ndp": "1", "ipv6/conf/" + host + "/accept_ra": "0", "ipv4/ip_forward": "1",
	} {
		require.Equal(t, value+"\n", node.Run(t, "cat /proc/sys/net/"+path), path)
	}
	require.NoError(t, d.Check(ctx, p))

	// The pod reaches its host's address through the gateway that answers by proxy.
	node.Run(t, "ip route add 192.168.1.7/32 dev "+host+"; ip addr add 10.9.9.9/32 dev lo; ping -c1 -i0.2 -w30 192.168.1.7")
	pod.Run(t, "ping -c1 -i0.2 -w30 10.9.9.9")
}

func TestAPodMayForward(t *testing.T) {
	_, pod, d, p := start(t)
	p.Forwarding = true
	require.NoError(t, d.Wire(context.Background(), p))
	require.Equal(t, "1\n", pod.Run(t, "cat /proc/sys/net/ipv4/ip_forward"))
	require.Equal(t, "1\n", pod.Run(t, "cat /proc/sys/net/ipv6/conf/all/forwarding"))
}

func TestWireAgainChangesNothing(t *testing.T) {
	_, pod, d, p := start(t)
	require.NoError(t, d.Wire(context.Background(), p))
	before := pod.Run(t, "ip -o link show eth0")
	require.NoError(t, d.Wire(context.Background(), p))
	require.Equal(t, before, pod.Run(t, "ip -o link show eth0"))
}

func TestALeftoverOfAnEarlierPodGivesWay(t *testing.T) {
	node, _, d, p := start(t)
	node.Run(t, "ip link add "+host+" type veth peer name old")
	require.NoError(t, d.Wire(context.Background(), p))
	require.NoError(t, d.Apply(context.Background()))
	_, err := node.Try("ip link show old")
	require.Error(t, err, "the old pair is gone")
}

func TestFailuresNameTheCauseAndLeaveNothing(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()

	gone := p
	gone.Netns = "/nonexistent"
	err := d.Wire(ctx, gone)
	require.ErrorContains(t, err, "/nonexistent")

	pod.Run(t, "ip link add eth0 type veth peer name other")
	err = d.Wire(ctx, p)
	require.ErrorContains(t, err, "already has an interface eth0")
	_, err = node.Try("ip link show " + host)
	require.Error(t, err)
	pod.Run(t, "ip link del eth0")

	bad := p
	bad.Addresses = []netip.Addr{netip.MustParseAddr("192.168.1.7"), {}}
	err = d.Wire(ctx, bad)
	require.Error(t, err)
	_, err = node.Try("ip link show " + host)
	require.Error(t, err, "a failed Wire takes its pair back")
}

func TestUnwireRemovesThePairAndIsIdempotent(t *testing.T) {
	_, pod, d, p := start(t)
	require.NoError(t, d.Wire(context.Background(), p))
	require.NoError(t, d.Unwire(host))
	require.NoError(t, d.Unwire(host))
	_, err := pod.Try("ip link show eth0")
	require.Error(t, err)
}

func TestCheckNamesTheFirstDifference(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()
	mac := desired.MAC{0x02, 0, 0, 0, 0, 0x07}
	p.MAC = mac
	require.NoError(t, d.Wire(ctx, p))
	tell(d, wanted)
	require.NoError(t, d.Apply(ctx))
	require.NoError(t, d.Check(ctx, p))
	for _, c := range []struct{ spoil, repair, want string }{
		{"ip addr del 192.168.1.7/32 dev eth0", "ip addr add 192.168.1.7/32 dev eth0; ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1; ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent", "lacks address 192.168.1.7"},
		{"ip route del default", "ip route add default via 169.254.1.1", "lacks the route to 0.0.0.0/0"},
		{"sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0", "sysctl net/ipv4/ip_forward in the pod is 1, not 0"},
		{"ip neigh del 169.254.1.1 dev eth0", "ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent", "does not know the Ethernet address of its gateway 169.254.1.1"},
		{"ip link set eth0 address 02:00:00:00:00:01", "ip link set eth0 address " + mac.String(), "has address 02:00:00:00:00:01"},
	} {
		pod.Run(t, c.spoil)
		require.ErrorContains(t, d.Check(ctx, p), c.want)
		_, _ = pod.Try(c.repair)
	}
	node.Run(t, "ip link set "+host+" down")
	require.ErrorContains(t, d.Check(ctx, p), "is down")
}

func TestLinksAreRepairedAndWaitedFor(t *testing.T) {
	node, _, d, p := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	tell(d, wanted)
	require.NoError(t, d.Apply(ctx), "a link that is not there is no error")
	require.False(t, d.Programmed(host))

	woken, ended := make(chan struct{}, 64), make(chan error, 1)
	go func() {
		node.Set(t)
		ended <- d.Watch(ctx, func(...dataplane.Drift) { woken <- struct{}{} })
	}()
	defer func() { cancel(); require.NoError(t, <-ended) }()
	mended := func() bool {
		side := node.Run(t, "ip link show "+host)
		return strings.Contains(side, "mtu 1400") && strings.Contains(side, "ee:ee:ee:ee:ee:ee") && strings.Contains(side, ",UP")
	}
	for heard := false; !heard; { // the subscription may not be open yet
		require.NoError(t, d.Wire(ctx, p))
		select {
		case <-woken:
			heard = true
		case <-time.After(200 * time.Millisecond):
			require.NoError(t, d.Unwire(host))
		}
	}
	require.NoError(t, d.Apply(ctx))
	require.True(t, d.Programmed(host))
	for _, broken := range []string{"ip link set " + host + " down", "ip link set " + host + " mtu 1280", "ip link set " + host + " address 02:00:00:00:00:09"} {
		node.Run(t, broken)
		require.False(t, mended(), broken)
		for !mended() { // Apply is run only when the driver asks for it
			select {
			case <-woken:
				require.NoError(t, errors.Join(d.Apply(ctx), d.Grow(ctx)))
			case <-time.After(30 * time.Second):
				t.Fatal("nobody woke: " + broken)
			}
		}
	}
}

// What the kernel told of a link before it was set up, and is read only afterwards, makes nobody believe that it is not: while hundreds
// of pods start, notifications are late.
func TestLateNotificationsUndoNothing(t *testing.T) {
	node, _, d, p := start(t)
	require.NoError(t, d.Wire(t.Context(), p))
	tell(d, wanted)
	require.NoError(t, d.Apply(t.Context()))
	next := wanted
	next.Name = "cali2"
	tell(d, next) // its coming is what all is read by

	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan dataplane.Drift, 64), make(chan error, 1)
	go func() {
		node.Set(t)
		ended <- d.Watch(ctx, func(all ...dataplane.Drift) {
			for _, drift := range all {
				woken <- drift
			}
		})
	}()
	defer func() { cancel(); require.NoError(t, <-ended) }()
	node.Run(t, "ip link add cali2 type veth peer name far2")
	drift := <-woken
	require.Equal(t, "link cali2 came", drift.String()+" "+drift.What)
	require.True(t, d.Programmed(host))
}

// While pods start, all links can be looked at again: that one of them is as wanted does not depend on how the others change.
func TestManyPairsAtOnce(t *testing.T) {
	node, _, d, _ := start(t)
	const pods, atOnce = 300, 30
	var spaces [atOnce]*labtest.Namespace // one is wired at a time in each: it moves the default route
	for i := range spaces {
		spaces[i] = labtest.New(t)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		node.Set(t)
		ended <- d.Watch(ctx, func(...dataplane.Drift) {})
	}()
	defer func() { cancel(); require.NoError(t, <-ended) }()
	made := make(chan link.Pod, pods)
	var workers sync.WaitGroup
	for worker := range atOnce {
		workers.Go(func() {
			node.Set(t)
			for i := worker; i < pods; i += atOnce {
				p := link.Pod{
					Netns: spaces[worker].Path, Interface: fmt.Sprintf("eth%d", i), Host: fmt.Sprintf("cali%d", i), MTU: 1400,
					Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
				}
				if assert.NoError(t, d.Wire(ctx, p)) {
					made <- p
				}
			}
		})
	}
	defer workers.Wait()
	go func() { workers.Wait(); close(made) }()
	done := []string{}
	for p := range made {
		l := wanted
		l.Name, l.IPv6 = p.Host, false
		tell(d, l)
		if len(done)%10 == 0 {
			d.Resync() // as an audit does
		}
		require.NoError(t, d.Apply(ctx))
		done = append(done, p.Host)
		for _, name := range done {
			require.True(t, d.Programmed(name), "%s, when there are %d", name, len(done))
		}
	}
	require.Len(t, done, pods)
}

func TestARestartWritesNothing(t *testing.T) {
	_, _, d, p := start(t)
	require.NoError(t, d.Wire(context.Background(), p))
	tell(d, wanted)
	require.NoError(t, d.Apply(context.Background()))
	again, err := link.New()
	require.NoError(t, err)
	defer again.Close()
	tell(again, wanted)
	require.NoError(t, again.Apply(context.Background()))
	require.Zero(t, again.Writes())
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
