//go:build lab && secondkernel

package main_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/bird/client"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// step sets the machine's clock forward or back. Time since the machine started goes on as it was.
func step(t *testing.T, by time.Duration) {
	t.Helper()
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_REALTIME, &now))
	now = unix.NsecToTimespec(now.Nano() + by.Nanoseconds())
	require.NoError(t, unix.ClockSettime(unix.CLOCK_REALTIME, &now))
}

// TestClockJumps sets the clock of the machine, whose kernel is a guest's, by days back and forth under two nodes and a BIRD with
// BFD. No session may end for longer than any of their timers lasts, routes go on to be learned and taken back in each
// direction, and a bird that is killed and comes back in another time keeps what it had.
func TestClockJumps(t *testing.T) {
	const (
		hold  = 9 * time.Second
		day   = 24 * time.Hour
		block = "192.168.1.0/26"
		world = "172.20.0.0/16"
	)
	w := newWorld(t)
	a, b := w.node("a", "10.97.0.1/24"), w.node("b", "10.97.0.2/24")
	// BFD gives up after 12 s: an emulated machine takes its time to start a bird that was killed.
	tor := terms{own: netip.MustParseAddr("10.97.0.9"), node: a.address, as: 65009, interval: 4000, prefix: world}
	router := w.birdRouter("tor", tor).(*birdRouter)
	hasty := func(c *birdv1.Config) *birdv1.Config {
		for _, p := range c.Peers {
			p.HoldTime = durationpb.New(hold)
		}
		return c
	}
	mesh := []*node{a, b}
	a.announce(block)
	a.apply(hasty(config(1, a, mesh, with(1, a, tor).Peers...)))
	b.announce("192.168.2.0/26")
	b.apply(hasty(config(1, b, mesh)))
	// inStep: what each of the three says reaches the others.
	inStep := func() bool {
		return a.has("192.168.2.0/26", b.address)() && b.has(block, a.address)() && a.has(world, tor.own)() && router.fresh(block) && router.fresh("192.168.2.0/26")
	}
	sessions := func() (list []client.Peer) {
		for _, n := range mesh {
			st, err := n.bird.Peers(context.Background(), "")
			require.NoError(t, err)
			list = append(list, st.Peers...)
		}
		return list
	}
	soon(t, "everybody knows everything", inStep)
	soon(t, "BFD is up", func() bool { return strings.HasPrefix(a.peer(tor.own).BFD, "up") })
	before := sessions()
	require.Len(t, before, 3)

	for _, by := range []time.Duration{-2 * day, 3 * day, -10 * 365 * day, 10*365*day - day} {
		t.Logf("the clock is set by %s", by)
		a.takenBack()
		b.takenBack()
		step(t, by)
		began := time.Now()
		<-time.After(2 * hold)
		require.Less(t, time.Since(began), time.Hour, "time since the start goes on")
		for i, p := range sessions() {
			require.Equal(t, client.Established, p.State)
			require.Equal(t, before[i].Since, p.Since, "%s has been up all the time", p.Name)
			require.Len(t, p.History, len(before[i].History))
			require.True(t, p.BFD == "" || strings.HasPrefix(p.BFD, "up"), p.BFD)
		}
		require.Empty(t, append(a.takenBack(), b.takenBack()...))
		require.True(t, inStep())

		require.Contains(t, router.ask("disable", "static1"), "disabled")
		soon(t, "what the router takes back is gone", a.hasNot(world))
		require.Contains(t, router.ask("enable", "static1"), "enabled")
		b.routes.Withdraw(netip.MustParsePrefix("192.168.2.0/26"))
		soon(t, "what the other node takes back is gone", a.hasNot("192.168.2.0/26"))
		b.announce("192.168.2.0/26")
		soon(t, "what is said now is heard", inStep)
	}

	for _, by := range []time.Duration{-3 * day, 3 * day} {
		t.Logf("bird is killed, and the clock is set by %s before it comes back", by)
		a.takenBack()
		b.takenBack()
		missed := missing(router, block)
		a.kill()
		step(t, by)
		a.start()
		soon(t, "everybody knows everything again", inStep)
		soon(t, "nobody waits any more", func() bool { return !b.peer(a.address).Restarting })
		require.False(t, missed(), "the router has kept the block")
		require.Empty(t, append(a.takenBack(), b.takenBack()...))
	}
}
