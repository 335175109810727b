//go:build lab

package route_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/route"
	"github.com/muslin-net/muslin/felix/desired"
)

var (
	prefix = netip.MustParsePrefix
	ip     = netip.MustParseAddr
)

func node(t testing.TB) *labtest.Namespace {
	ns := labtest.Enter(t)
	ns.Run(t, `
		ip link add cali1 type veth peer name p1; ip link set cali1 up
		ip link add cali2 type veth peer name p2; ip link set cali2 up
		ip link add eth0 type veth peer name wire; ip link set eth0 up; ip link set wire up
		ip addr add 192.168.9.1/24 dev eth0; ip addr add fd09::1/64 dev eth0 nodad`)
	return ns
}

func open(t testing.TB, cfg route.Config) *route.Table {
	tab, err := route.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = tab.Close() })
	return tab
}

func set(routes ...desired.Route) (d desired.Delta[desired.RouteKey, desired.Route]) {
	for _, r := range routes {
		d.Put(r.Key(), r)
	}
	return d
}

func sample() []desired.Route {
	hole, _ := desired.BlockBlackhole(prefix("10.1.0.0/26"))
	hole6, _ := desired.BlockBlackhole(prefix("fd00:1::/122"))
	return []desired.Route{
		hole, hole6,
		desired.WorkloadRoute(ip("10.1.0.1"), "cali1", 3),
		desired.WorkloadRoute(ip("fd00:1::1"), "cali1", 3),
		desired.DirectRoute(prefix("10.1.2.0/26"), ip("192.168.9.7"), "eth0", 80),
		desired.DirectRoute(prefix("fd00:2::/122"), ip("fd09::7"), "eth0", 80),
	}
}

func TestRoutesAreMadeAsSpecified(t *testing.T) {
	ns := node(t)
	tab := open(t, route.Config{})
	tab.Update(set(sample()...))
	require.NoError(t, tab.Apply(context.Background()))
	v4 := ns.Run(t, "ip -4 route show")
	assert.Contains(t, v4, "10.1.0.1 dev cali1 scope link metric 1024")
	assert.Contains(t, v4, "blackhole 10.1.0.0/26 proto 80")
	assert.Contains(t, v4, "10.1.2.0/26 via 192.168.9.7 dev eth0 proto 80 onlink")
	v6 := ns.Run(t, "ip -6 route show")
	assert.Contains(t, v6, "fd00:1::1 dev cali1 metric 1024")
	assert.Contains(t, v6, "blackhole fd00:1::/122 dev lo proto 80 metric 1024")
	assert.Contains(t, v6, "fd00:2::/122 via fd09::7 dev eth0 proto 80 metric 1024 onlink")
	tab.Resync()
	written := tab.Writes()
	require.NoError(t, tab.Apply(context.Background()))
	assert.Equal(t, written, tab.Writes(), "what was read back is what was written")
}

func TestRestartAdoptsWithoutWriting(t *testing.T) {
	ns := node(t)
	first := open(t, route.Config{})
	first.Update(set(sample()...))
	require.NoError(t, first.Apply(context.Background()))
	ns.Run(t, "ip route add 10.1.0.1/32 dev cali2 metric 9 proto boot; ip route add 10.66.0.0/16 dev eth0 proto 80")

	second := open(t, route.Config{})
	second.Update(set(sample()...))
	require.NoError(t, second.Apply(context.Background()))
	assert.Zero(t, second.Writes(), "a restart that changes nothing writes nothing, and removes nothing before it is whole")
	second.Whole()
	require.NoError(t, second.Apply(context.Background()))
	left := ns.Run(t, "ip route show")
	assert.NotContains(t, left, "10.66.0.0/16", "protocol 80 is ours wherever it is")
	assert.Contains(t, left, "10.1.0.1 dev cali2", "another's route on a workload interface has its grace period")
}

func TestReplaceRemoveAndForeign(t *testing.T) {
	ns := node(t)
	ns.Run(t, "ip route add 10.1.0.1/32 dev eth0 metric 1024; ip route add 10.50.0.0/16 via 192.168.9.3 proto static")
	tab := open(t, route.Config{})
	tab.Whole()
	tab.Update(set(sample()...))
	require.NoError(t, tab.Apply(context.Background()))
	assert.Contains(t, ns.Run(t, "ip route show 10.1.0.1"), "dev cali1", "a local workload wins over a stale route")

	moved := desired.WorkloadRoute(ip("10.1.0.1"), "cali2", 3)
	d := set(moved)
	hole, _ := desired.BlockBlackhole(prefix("10.1.0.0/26"))
	d.Remove(hole.Key())
	hole6, _ := desired.BlockBlackhole(prefix("fd00:1::/122"))
	d.Remove(hole6.Key())
	tab.Update(d)
	require.NoError(t, tab.Apply(context.Background()))
	got := ns.Run(t, "ip route show; ip -6 route show")
	assert.Contains(t, got, "10.1.0.1 dev cali2")
	assert.NotContains(t, got, "dev cali1 scope link")
	assert.NotContains(t, got, "blackhole")
	assert.Contains(t, got, "10.50.0.0/16 via 192.168.9.3", "what is not ours stays")
}

func TestOneBadRouteDoesNotBlockOthers(t *testing.T) {
	ns := node(t)
	tab := open(t, route.Config{})
	bad := desired.DirectRoute(prefix("10.9.0.0/16"), ip("203.0.113.1"), "eth0", 80)
	bad.Src = ip("198.51.100.1") // not an address of this host
	tab.Update(set(append(sample(), bad)...))
	err := tab.Apply(context.Background())
	var one *dataplane.ObjectError
	require.ErrorAs(t, err, &one)
	assert.Equal(t, "10.9.0.0/16", one.Key)
	assert.Contains(t, ns.Run(t, "ip route"), "10.1.2.0/26")
	assert.True(t, tab.Programmed(sample()[2].Key()))
	assert.False(t, tab.Programmed(bad.Key()))
	ns.Run(t, "ip addr add 198.51.100.1/32 dev lo")
	require.NoError(t, tab.Apply(context.Background()), "it stayed due")
	assert.True(t, tab.Programmed(bad.Key()))
}

// watch runs the repair loop that felix runs, and returns where it reports drifts.
func watch(t *testing.T, tab *route.Table) {
	ctx, stop := context.WithCancel(context.Background())
	due := make(chan struct{}, 1)
	done := make(chan struct{}, 2)
	go func() {
		assert.NoError(t, tab.Watch(ctx, func(...dataplane.Drift) {
			select {
			case due <- struct{}{}:
			default:
			}
		}))
		done <- struct{}{}
	}()
	go func() {
		for {
			select {
			case <-due:
				_ = tab.Apply(ctx)
			case <-ctx.Done():
				done <- struct{}{}
				return
			}
		}
	}()
	t.Cleanup(func() { stop(); <-done; <-done })
}

// patience is for a machine on which much else runs.
const patience = 30 * time.Second

// TestRepairs prints how long each repair takes.
func TestRepairs(t *testing.T) {
	ns := node(t)
	tab := open(t, route.Config{Grace: 300 * time.Millisecond})
	tab.Whole()
	waits := desired.WorkloadRoute(ip("10.1.0.9"), "cali9", 3)
	tab.Update(set(append(sample(), waits)...))
	require.NoError(t, tab.Apply(context.Background()), "waiting for a device is not an error")
	assert.False(t, tab.Programmed(waits.Key()))
	watch(t, tab)
	all := func(want ...string) func() bool {
		return func() bool {
			out, _ := ns.Try("ip -4 route show; ip -6 route show")
			for _, w := range want {
				if no, negated := strings.CutPrefix(w, "!"); negated == strings.Contains(out, no) {
					return false
				}
			}
			return true
		}
	}
	workload := "10.1.0.1 dev cali1 scope link metric 1024"
	for _, c := range []struct {
		name, do string
		want     []string
	}{
		{"a removed route", "ip route del 10.1.0.1", []string{workload}},
		{"a removed blackhole", "ip route del blackhole 10.1.0.0/26; ip -6 route del blackhole fd00:1::/122", []string{"blackhole 10.1.0.0/26", "blackhole fd00:1::/122"}},
		{"a changed route", "ip route replace 10.1.2.0/26 via 192.168.9.99 dev eth0", []string{"10.1.2.0/26 via 192.168.9.7"}},
		{"a flush", "ip route flush proto 80", []string{"10.1.2.0/26 via 192.168.9.7", "blackhole 10.1.0.0/26"}},
		{"a device down and up", "ip link set eth0 down; ip link set eth0 up", []string{"10.1.2.0/26 via 192.168.9.7", "fd00:2::/122 via fd09::7"}},
		{"the last address lost", "ip addr flush dev eth0; ip addr add 192.168.9.1/24 dev eth0", []string{"10.1.2.0/26 via 192.168.9.7"}},
		{"a device made anew", "ip link del cali1; ip link add cali1 type veth peer name p1; ip link set cali1 up", []string{workload, "fd00:1::1 dev cali1"}},
		{"a device that was missing", "ip link add cali9 type veth peer name p9; ip link set cali9 up", []string{"10.1.0.9 dev cali9"}},
		{"a route of protocol 80 that nobody wants", "ip route add 10.77.0.0/16 dev eth0 proto 80", []string{"!10.77.0.0"}},
		{"another's route on a workload", "ip route add 10.88.0.1 dev cali2", []string{"!10.88.0.1"}},
	} {
		ns.Run(t, c.do)
		began := time.Now()
		require.Eventually(t, all(c.want...), patience, 5*time.Millisecond, "%s: %s\n%s", c.name, c.do, func() string {
			out, _ := ns.Try("ip route; ip -6 route")
			return out
		}())
		t.Logf("%s: repaired after %s", c.name, time.Since(began).Round(time.Millisecond))
	}
}

func BenchmarkApply10kRoutes(b *testing.B) {
	node(b)
	tab := open(b, route.Config{})
	tab.Whole()
	var all []desired.Route
	for i := range 10_000 {
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
		all = append(all, desired.DirectRoute(dst, ip(fmt.Sprintf("192.168.9.%d", 2+i%200)), "eth0", 80))
	}
	d := set(all...)
	var none desired.Delta[desired.RouteKey, desired.Route]
	for _, r := range all {
		none.Remove(r.Key())
	}
	for b.Loop() {
		tab.Update(d)
		require.NoError(b, tab.Apply(context.Background()))
		b.StopTimer()
		tab.Update(none)
		require.NoError(b, tab.Apply(context.Background()))
		b.StartTimer()
	}
}
