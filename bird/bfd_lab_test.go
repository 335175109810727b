//go:build lab

package main_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/bird/bfd"
	"github.com/muslin-net/muslin/bird/client"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// with is a configuration with routers as peers.
func with(generation uint64, n *node, list ...terms) *birdv1.Config {
	var peers []*birdv1.Peer
	for _, c := range list {
		p := &birdv1.Peer{
			Name: "Global_" + strings.NewReplacer(".", "_", ":", "_").Replace(c.own.String()), Type: birdv1.PeerType_PEER_TYPE_GLOBAL,
			Source: "BGPPeer(tor)", Address: c.own.AsSlice(), AsNumber: uint32(c.as), SourceAddress: c.node.AsSlice(),
		}
		if c.interval > 0 {
			interval := durationpb.New(time.Duration(c.interval) * time.Millisecond)
			p.Bfd = &birdv1.Bfd{MinTx: interval, MinRx: interval, Multiplier: 3, Multihop: c.multihop}
		}
		peers = append(peers, p)
	}
	m := config(generation, n, nil, peers...)
	m.Export.Pools = append(m.Export.Pools, &birdv1.ExportPool{Prefix: &birdv1.Prefix{Address: netip.MustParseAddr("fd00:77::").AsSlice(), Length: 48}})
	return m
}

// took measures how long it is until something is so.
func took(t *testing.T, what string, since time.Time, ok func() bool) time.Duration {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
	return time.Since(since)
}

// takenBack tells what was taken back since the last call.
func (n *node) takenBack() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	lost := n.lost
	n.lost = nil
	return lost
}

// answers tells whether a router has answered with its routes.
func answers(out string) bool {
	return strings.Contains(out, "BIRD") || strings.Contains(out, "Displayed")
}

// missing looks without pause whether a router has a route, until stop is called, which tells whether it ever had not.
func missing(r router, prefix string) (stop func() (missed bool)) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan bool, 1)
	go func() {
		missed := false
		for ctx.Err() == nil {
			out := r.bgp()
			missed = missed || answers(out) && !strings.Contains(out, prefix)
		}
		result <- missed
	}()
	return func() bool { cancel(); return <-result }
}

const (
	ours4 = "192.168.1.0/26"
	ours6 = "fd00:77::/122"
)

// Intervals in these tests are long: a starved machine lets processes rest for seconds, which must not be taken for a
// loss. That a loss was noticed by BFD is shown by the reason; the hold time of BGP is far longer in any case.
const usual = 1500 // milliseconds

// TestBFD runs BFD with other vendors' routers: over one hop and several, IPv4 and IPv6. Sessions come up, timers change while
// they are up, a restart of ours goes unnoticed, a frozen router is noticed within the detection time, and a router that ends
// BFD in order keeps its routes.
func TestBFD(t *testing.T) {
	for i, c := range []struct {
		name     string
		start    func(*world, string, terms) router
		v6       bool
		multihop bool
	}{
		{"BIRD", (*world).birdRouter, false, false},
		{"BIRD over several hops", (*world).birdRouter, false, true},
		{"BIRD IPv6", (*world).birdRouter, true, false},
		{"FRR", (*world).frrRouter, false, false},
		{"FRR over several hops", (*world).frrRouter, false, true},
		{"FRR IPv6", (*world).frrRouter, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			n := w.node("a", fmt.Sprintf("10.%d.0.1/24", 110+i))
			run(t, "ip", "-n", n.ns, "address", "add", "fd00:9::1/64", "dev", "eth0", "nodad")
			at := terms{own: netip.AddrFrom4([4]byte{10, byte(110 + i), 0, 9}), node: n.address, as: 65009, interval: usual, multihop: c.multihop, prefix: "172.20.0.0/16"}
			ours := ours4
			if c.v6 {
				at.own, at.node, at.prefix, ours = netip.MustParseAddr("fd00:9::9"), netip.MustParseAddr("fd00:9::1"), "2001:db8:20::/48", ours6
			}
			testBFD(t, n, c.start(w, "tor", at), at, ours)
		})
	}
}

func testBFD(t *testing.T, n *node, r router, at terms, ours string) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.bfd(), r.bgp(), n.peer(at.own))
		}
	})
	n.announce(ours)
	n.apply(with(1, n, at))
	becomes := func(want string) {
		t.Helper()
		soon(t, want, func() bool { return n.peer(at.own).BFD == want })
	}
	exchanged := func() bool { return n.has(at.prefix, at.own)() && r.fresh(ours) }
	soon(t, "BGP and BFD are up", func() bool { return exchanged() && n.peer(at.own).BFD == "up, 1.5s x 3" })
	t.Log(r.bfd())

	before := n.peer(at.own).Since
	slower := at
	slower.interval = 2 * usual
	n.apply(with(2, n, slower))
	becomes("up, 3s x 3")
	r.timers(t, 4*usual)
	becomes("up, 6s x 3")
	r.timers(t, usual)
	becomes("up, 3s x 3")
	n.apply(with(3, n, at))
	becomes("up, 1.5s x 3")
	require.Equal(t, before, n.peer(at.own).Since, "changed timers are no loss")

	restarted := func(how syscall.Signal, state string) {
		t.Helper()
		stop := missing(r, ours)
		require.NoError(t, n.process.Process.Signal(how))
		_ = n.process.Wait()
		n.start()
		soon(t, "it is back", func() bool {
			return exchanged() && n.peer(at.own).BFD == state && n.peer(at.own).State == client.Established
		})
		require.False(t, stop(), "the router kept our route through a restart by %s", how)
	}
	restarted(syscall.SIGTERM, "up, 1.5s x 3")
	slow := at
	slow.interval = 2 * usual // a busy machine needs a while to start bird again after kill -9
	n.apply(with(4, n, slow))
	r.timers(t, 2*usual)
	becomes("up, 3s x 3")
	restarted(syscall.SIGKILL, "up, 3s x 3")
	n.apply(with(5, n, at))
	r.timers(t, usual)
	becomes("up, 1.5s x 3")
	n.takenBack()

	began := time.Now()
	r.signal(t, syscall.SIGSTOP)
	t.Logf("frozen router: path gone after %s (1.5s x 3)", took(t, "the path is gone", began, n.hasNot(at.prefix)))
	soon(t, "the reason is told", func() bool {
		p := n.peer(at.own)
		return p.LastError == "BFD: control detection time expired" && p.BFD == "down: control detection time expired" && p.State == client.Idle
	})
	r.signal(t, syscall.SIGCONT)
	began = time.Now()
	soon(t, "it is back after the frost", func() bool { return exchanged() && n.peer(at.own).BFD == "up, 1.5s x 3" })
	t.Logf("back %s after the frost", time.Since(began))
	n.takenBack()

	r.withdraw(t)
	soon(t, "BFD is over", func() bool { return !strings.HasPrefix(n.peer(at.own).BFD, "up") })
	t.Log(n.peer(at.own).BFD, n.peer(at.own).State)
	if !at.multihop && at.own.Is4() { // some end BFD without a word, and are believed to be gone for a while
		require.Eventually(t, exchanged, bfd.Patience+20*time.Second, 50*time.Millisecond, "BGP goes on without BFD")
		require.Contains(t, []string{"waiting for peer's BFD", "down: the peer says: neighbor signaled session down"}, n.peer(at.own).BFD)
	}
}

// TestFailover has two routers announce one prefix, of which the first is better. It measures how soon the second one's path
// is in use when the first is cut off without a sign, when it freezes, and when our own link goes down.
func TestFailover(t *testing.T) {
	w := newWorld(t)
	n := w.node("a", "10.120.0.1/24")
	const prefix = "172.20.0.0/16"
	first := terms{own: netip.MustParseAddr("10.120.0.9"), node: n.address, as: 65009, interval: usual, prefix: prefix}
	second := terms{own: netip.MustParseAddr("10.120.0.8"), node: n.address, as: 65008, interval: usual, prefix: prefix, prepend: true}
	r := w.birdRouter("tor1", first)
	w.birdRouter("tor2", second)
	n.announce(ours4)
	n.apply(with(1, n, first, second))
	better := func() bool {
		return n.has(prefix, first.own)() && strings.HasPrefix(n.peer(first.own).BFD, "up") && strings.HasPrefix(n.peer(second.own).BFD, "up") &&
			n.peer(second.own).State == client.Established && n.peer(second.own).Received == 1
	}
	soon(t, "both are there", better)

	began := time.Now()
	run(t, "ip", "-n", w.swtch, "link", "set", "tor1", "nomaster") // both ends keep their carrier
	t.Logf("dead router: other path after %s (1.5s x 3)", took(t, "the other path", began, n.has(prefix, second.own)))
	require.False(t, n.has(prefix, first.own)())
	run(t, "ip", "-n", w.swtch, "link", "set", "tor1", "master", "br0")
	soon(t, "it is back", better)

	began = time.Now()
	r.signal(t, syscall.SIGSTOP)
	t.Logf("frozen router: other path after %s (1.5s x 3)", took(t, "the other path", began, n.has(prefix, second.own)))
	r.signal(t, syscall.SIGCONT)
	soon(t, "it is back", better)

	first.interval, second.interval = 0, 0 // links are watched without BFD
	n.apply(with(2, n, first, second))
	gone := n.hasNot(prefix)
	began = time.Now()
	run(t, "ip", "-n", w.swtch, "link", "set", "dev", "a", "down")
	lasted := took(t, "all paths are gone", began, gone)
	soon(t, "the session has ended", func() bool { return n.peer(first.own).LastError == "link eth0 is down" })
	t.Logf("link without carrier: paths gone after %s", lasted)
	began = time.Now()
	run(t, "ip", "-n", w.swtch, "link", "set", "dev", "a", "up")
	t.Logf("link is back: path after %s", took(t, "the path is back", began, n.has(prefix, first.own)))

	soon(t, "both are back", func() bool { return n.peer(second.own).State == client.Established })
	began = time.Now()
	run(t, "ip", "-n", n.ns, "link", "set", "eth0", "down")
	t.Logf("link taken down: paths gone after %s", took(t, "all paths are gone", began, gone))
	run(t, "ip", "-n", n.ns, "link", "set", "eth0", "up")
	soon(t, "the path is back", n.has(prefix, first.own))
}

// TestMeshBFD runs BFD between nodes of ours: a bird that is killed and back in time is not noticed, one that freezes is, and
// one that is killed and stays away takes its routes with it, which without BFD it would not.
func TestMeshBFD(t *testing.T) {
	w := newWorld(t)
	nodes := []*node{w.node("a", "10.121.0.1/24"), w.node("b", "10.121.0.2/24")}
	a, b := nodes[0], nodes[1]
	b.announce("192.168.2.0/26")
	a.announce("192.168.1.0/26")
	for _, n := range nodes {
		c := config(1, n, nodes)
		for _, p := range c.Peers {
			p.Bfd = &birdv1.Bfd{MinTx: durationpb.New(2 * usual * time.Millisecond), MinRx: durationpb.New(2 * usual * time.Millisecond)}
		}
		n.apply(c)
	}
	whole := func() bool {
		return a.has("192.168.2.0/26", b.address)() && b.has("192.168.1.0/26", a.address)() && a.peer(b.address).BFD == "up, 3s x 3" &&
			b.peer(a.address).BFD == "up, 3s x 3" && !a.peer(b.address).Restarting && a.peer(b.address).State == client.Established
	}
	soon(t, "mesh", whole)
	a.takenBack()
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		require.NoError(t, b.process.Process.Signal(how))
		_ = b.process.Wait()
		b.start()
		soon(t, "back", whole)
		require.Empty(t, a.takenBack(), "after %s", how)
		for _, h := range a.peer(b.address).History {
			require.NotContains(t, h.Reason, "BFD")
		}
	}

	began := time.Now()
	require.NoError(t, b.process.Process.Signal(syscall.SIGSTOP))
	t.Logf("frozen node: path gone after %s (3s x 3)", took(t, "the path is gone", began, a.hasNot("192.168.2.0/26")))
	require.NoError(t, b.process.Process.Signal(syscall.SIGCONT))
	soon(t, "back", whole)

	began = time.Now()
	b.kill()
	t.Logf("killed node: path gone after %s (3s x 3)", took(t, "the path is gone", began, a.hasNot("192.168.2.0/26")))
	b.start()
	soon(t, "back", whole)
}

// TestBFDWhileBusy has a router send 100,000 routes, twice: BFD does not call anyone lost while BGP has its hands full. How
// long a process may rest at most is up to the machine; intervals are long for that.
//
// Then bird is frozen while the router takes them back, so that it is lost with many of them on their way. Felix is told of
// each all the same.
func TestBFDWhileBusy(t *testing.T) {
	const count = 100_000
	w := newWorld(t)
	n := w.node("a", "10.122.0.1/24")
	at := terms{own: netip.MustParseAddr("10.122.0.9"), node: n.address, as: 65009, interval: usual, prefix: "172.20.0.0/16", many: count}
	r := w.birdRouter("tor", at).(*birdRouter)
	n.announce(ours4)
	n.apply(with(1, n, at))
	full := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.best) == count+1
	}
	gone := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.best) == 0
	}
	for range 2 {
		require.Eventually(t, full, 2*time.Minute, 100*time.Millisecond, "all routes are there")
		require.Equal(t, "up, 1.5s x 3", n.peer(at.own).BFD)
		r.ask("disable", "static1")
		require.Eventually(t, gone, 2*time.Minute, 100*time.Millisecond, "they go")
		r.ask("enable", "static1")
	}
	for _, h := range n.peer(at.own).History {
		require.NotContains(t, h.Reason, "BFD")
	}

	require.Eventually(t, full, 2*time.Minute, 100*time.Millisecond, "all routes are there")
	require.NoError(t, n.process.Process.Signal(syscall.SIGSTOP))
	r.ask("disable", "static1")
	soon(t, "the router has noticed", func() bool { return !strings.Contains(r.ask("show", "bfd", "sessions"), "Up") })
	require.NoError(t, n.process.Process.Signal(syscall.SIGCONT))
	require.Eventually(t, gone, 2*time.Minute, 100*time.Millisecond, "they go")
}

// TestLinkIPv6 takes links of IPv6 peers away and brings them back, without BFD. The kernel drops IPv6 addresses with the link.
func TestLinkIPv6(t *testing.T) {
	w := newWorld(t)
	n := w.node("a", "10.123.0.1/24")
	address := []string{"ip", "-n", n.ns, "address", "add", "fd00:9::1/64", "dev", "eth0", "nodad"}
	run(t, address...)
	at := terms{own: netip.MustParseAddr("fd00:9::9"), node: netip.MustParseAddr("fd00:9::1"), as: 65009, prefix: "2001:db8:20::/48"}
	w.birdRouter("tor", at)
	n.announce(ours6)
	n.apply(with(1, n, at))
	for _, down := range []struct {
		where []string
		back  func()
	}{
		{[]string{w.swtch, "link", "set", "dev", "a"}, func() {}},
		{[]string{n.ns, "link", "set", "dev", "eth0"}, func() { run(t, address...) }},
	} {
		soon(t, "the path is there", n.has(at.prefix, at.own))
		require.Empty(t, n.peer(at.own).BFD)
		began := time.Now()
		run(t, append(append([]string{"ip", "-n"}, down.where...), "down")...)
		t.Logf("paths gone after %s", took(t, "the path is gone", began, n.hasNot(at.prefix)))
		soon(t, "the session has ended", func() bool { return n.peer(at.own).LastError == "link eth0 is down" })
		began = time.Now()
		run(t, append(append([]string{"ip", "-n"}, down.where...), "up")...)
		down.back()
		t.Logf("path back after %s", took(t, "the path is back", began, n.has(at.prefix, at.own)))
	}
}
