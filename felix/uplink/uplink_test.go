package uplink_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	birdclient "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/felix/uplink"
	"github.com/muslin-net/muslin/typha/client"
)

// reports takes reports, at most one at a time.
type reports struct {
	mu   sync.Mutex
	err  error
	hold chan struct{}
	got  []client.Report
}

func (r *reports) Report(ctx context.Context, report client.Report) ([]client.RefusedEndpoint, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, report)
	if hold := r.hold; hold != nil {
		r.mu.Unlock()
		<-hold
		r.mu.Lock()
	}
	return []client.RefusedEndpoint{{ID: "k8s/shop/x/eth0", Reason: "its address is another's"}}, true, r.err
}

func (r *reports) set(err error, hold chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.hold = err, hold
}

func (r *reports) names() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, report := range r.got {
		text := fmt.Sprint(report.Sequence)
		for _, e := range report.Endpoints {
			text += " " + e.Interface
		}
		out = append(out, text)
	}
	return out
}

func endpoints(names ...string) (out []state.Endpoint) {
	for _, n := range names {
		out = append(out, state.Endpoint{Interface: n, Leaving: n == "leaving"})
	}
	return out
}

func TestOnlyTheNewestIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := &reports{}
		r := uplink.NewReporter(y, slog.New(slog.DiscardHandler))
		defer run(t, r.Run)()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, y.names(), "an empty report would delete everything; nothing is said before felix knows")

		hold := make(chan struct{})
		y.set(nil, hold)
		r.Set(endpoints("a"))
		synctest.Wait()
		r.Set(endpoints("a", "b"))
		r.Set(endpoints("a", "b", "c", "leaving"))
		y.set(nil, nil)
		close(hold)
		synctest.Wait()
		got := y.names()
		require.Len(t, got, 2)
		require.Contains(t, got[1], " a b c")
		require.NotContains(t, got[1], "leaving")
	})
}

func TestAReportThatFailsIsSentAgainAndAllAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := &reports{err: errors.New("away")}
		r := uplink.NewReporter(y, slog.New(slog.DiscardHandler))
		defer run(t, r.Run)()
		r.Set(endpoints("a"))
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, y.names(), 3, "each half second")
		r.Set(endpoints("b"))
		y.set(nil, nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		got := y.names()
		require.Contains(t, got[len(got)-1], " b")
		time.Sleep(31 * time.Second)
		synctest.Wait()
		require.Len(t, y.names(), len(got)+1, "a typha that lost it learns it again")
		for i, report := range y.got[1:] {
			require.Greater(t, report.Sequence, y.got[i].Sequence)
			require.Equal(t, y.got[0].Instance, report.Instance)
		}
	})
}

// exchange is bird in memory.
type exchange struct {
	said    []string
	updates []birdclient.Update
}

func (e *exchange) Announce(l birdclient.LocalRoute) { e.say("announce %s", l.Prefix) }
func (e *exchange) Withdraw(p netip.Prefix)          { e.say("withdraw %s", p) }
func (e *exchange) SnapshotEnd()                     { e.say("end") }
func (e *exchange) Applied(sequence uint64)          { e.say("applied %d", sequence) }
func (e *exchange) NextHop(a netip.Addr, reachable bool, metric uint32) {
	e.say("hop %s %v %d", a, reachable, metric)
}

func (e *exchange) say(format string, args ...any) {
	e.said = append(e.said, fmt.Sprintf(format, args...))
}

func (e *exchange) Run(_ context.Context, handle func(birdclient.Update)) error {
	for _, u := range e.updates {
		handle(u)
	}
	return nil
}

func (e *exchange) take() []string {
	said := e.said
	e.said = nil
	slices.Sort(said)
	return said
}

func TestAnnounceSaysTheDifference(t *testing.T) {
	bird := &exchange{}
	b := uplink.NewBGP(bird)
	prefixes := func(all ...string) (out []netip.Prefix) {
		for _, p := range all {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	b.Announce(prefixes("10.0.0.0/26", "10.0.1.0/26"))
	require.Equal(t, "end", bird.said[len(bird.said)-1])
	require.Equal(t, []string{"announce 10.0.0.0/26", "announce 10.0.1.0/26", "end"}, bird.take())
	b.Announce(prefixes("10.0.0.0/26", "10.0.1.0/26"))
	require.Empty(t, bird.take())
	b.Announce(prefixes("10.0.1.0/26", "10.0.2.0/26"))
	require.Equal(t, []string{"announce 10.0.2.0/26", "withdraw 10.0.0.0/26"}, bird.take())
	b.Announce(nil)
	require.Equal(t, []string{"withdraw 10.0.1.0/26", "withdraw 10.0.2.0/26"}, bird.take())

	b.Reachable(state.Host{NextHops: map[netip.Addr]state.NextHop{
		netip.MustParseAddr("10.30.0.1"): {Link: "eth0", Metric: 5}, netip.MustParseAddr("10.30.0.2"): {},
	}})
	require.Equal(t, []string{"hop 10.30.0.1 true 5", "hop 10.30.0.2 false 0"}, bird.take())

	empty := uplink.NewBGP(bird)
	empty.Announce(nil)
	require.Equal(t, []string{"end"}, bird.take(), "a node without blocks has a snapshot too")
}

func TestBestPathsAndNextHopsArePassedOn(t *testing.T) {
	one, two := netip.MustParseAddr("10.30.0.1"), netip.MustParseAddr("10.30.0.2")
	dst := netip.MustParsePrefix("10.2.0.0/26")
	bird := &exchange{updates: []birdclient.Update{
		{Sequence: 1, Best: []birdclient.Best{{Prefix: dst, Paths: []birdclient.Path{{NextHop: one, Metric: 3}, {NextHop: two, Metric: 3}}}}, NextHops: []netip.Addr{one, two}},
		{Sequence: 2, NextHops: []netip.Addr{one, two}, Synced: true},
		{Sequence: 3, Best: []birdclient.Best{{Prefix: dst}}, NextHops: []netip.Addr{two}, Synced: true}, // held back: still to be judged
	}}
	var resolved [][]netip.Addr
	var paths []state.Path
	var known []bool
	require.NoError(t, uplink.NewBGP(bird).Run(t.Context(), func(hops []netip.Addr) { resolved = append(resolved, hops) },
		func(changed []state.Path, all bool, applied func()) {
			paths, known = append(paths, changed...), append(known, all)
			applied()
		}))
	require.Equal(t, [][]netip.Addr{{one, two}, {two}}, resolved, "only when they changed")
	require.Equal(t, []state.Path{{Prefix: dst, Ways: &state.Ways{NextHops: []netip.Addr{one, two}, Metric: 3}}, {Prefix: dst}}, paths)
	require.Equal(t, []bool{false, true, true}, known)
	require.Equal(t, []string{"applied 1", "applied 2", "applied 3"}, bird.take())
}

// addresses is typha's IPAM in memory.
type addresses struct {
	asked    client.Reserve
	released string
	err      error
}

func (a *addresses) Reserve(_ context.Context, r client.Reserve) ([]client.Reservation, error) {
	a.asked = r
	if a.err != nil {
		return nil, a.err
	}
	return []client.Reservation{{Address: netip.MustParseAddr("fd00::1")}, {Address: netip.MustParseAddr("10.0.0.1")}}, nil
}

func (a *addresses) ReleaseHandle(_ context.Context, handle string) ([]netip.Addr, error) {
	a.released = handle
	return nil, a.err
}

func TestIPAMAsksTypha(t *testing.T) {
	y := &addresses{}
	ipam := uplink.IPAM{Typha: y}
	got, _, err := ipam.Assign(t.Context(), server.Want{
		Handle: "net.c1", Attributes: map[string]string{"pod": "web"}, Namespace: "shop", IPv4: true, IPv6: true, Pools4: []string{"a"},
	})
	require.NoError(t, err)
	require.Equal(t, "[10.0.0.1 fd00::1]", fmt.Sprint(got), "IPv4 first")
	require.Equal(t, client.Reserve{
		Count4: 1, Count6: 1, Pools4: []string{"a"}, Namespace: "shop",
		Owner: &client.Owner{Handle: "net.c1", Attributes: map[string]string{"pod": "web"}},
	}, y.asked)
	fixed := netip.MustParseAddr("10.0.0.9")
	_, _, err = ipam.Assign(t.Context(), server.Want{Handle: "net.c1", IPv4: true, Fixed: fixed})
	require.NoError(t, err)
	require.Equal(t, client.Reserve{Address: fixed, Owner: &client.Owner{Handle: "net.c1"}}, y.asked)

	for _, away := range []error{client.ErrUnavailable, client.ErrTimeout} {
		y.err = fmt.Errorf("dial: %w", away)
		_, _, err = ipam.Assign(t.Context(), server.Want{})
		require.Equal(t, codes.Aborted, status.Code(err), "the runtime shall try again")
		require.ErrorContains(t, err, "no address: dial: ")
		require.Equal(t, codes.Aborted, status.Code(ipam.Release(t.Context(), "net.c1")))
	}
	for _, wrong := range []error{client.ErrInvalid, client.ErrExists} {
		y.err = fmt.Errorf("address 10.0.0.9: %w", wrong)
		_, _, err = ipam.Assign(t.Context(), server.Want{Fixed: fixed})
		require.Equal(t, codes.InvalidArgument, status.Code(err), "the runtime need not try again with the same")
		require.ErrorContains(t, err, "no address: address 10.0.0.9: ")
	}
	y.err = client.ErrExhausted
	_, _, err = ipam.Assign(t.Context(), server.Want{})
	require.ErrorIs(t, err, client.ErrExhausted)
	y.err = client.ErrNotFound
	require.NoError(t, ipam.Release(t.Context(), "net.c1"), "a handle without addresses")
	require.Equal(t, "net.c1", y.released)
}

func TestQuestionsThatCannotBeAnswered(t *testing.T) {
	v := uplink.View{Server: &server.Server{}}
	reply := func([]byte) error { t.Error("an answer was given"); return nil }
	require.ErrorIs(t, v.OnQuery(t.Context(), client.Question{Method: -1}, reply), client.ErrUnserved)
	err := v.OnQuery(t.Context(), client.Question{Method: client.FelixDump, Request: []byte("\xff\xff")}, reply)
	require.ErrorContains(t, err, "the question cannot be read")
}

// Where no bird runs, all that BGP knows is known at once: nothing.
func TestWithoutBGPNothingIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bgp := uplink.NewBGP(uplink.NoBGP{})
		bgp.Announce([]netip.Prefix{netip.MustParsePrefix("192.168.0.0/26")})
		bgp.Reachable(state.Host{NextHops: map[netip.Addr]state.NextHop{netip.MustParseAddr("10.0.0.1"): {}}})
		var known []bool
		stop := run(t, func(ctx context.Context) error {
			return bgp.Run(ctx, func([]netip.Addr) { require.Fail(t, "there are no next hops") }, func(changed []state.Path, all bool, applied func()) {
				require.Empty(t, changed)
				known = append(known, all)
				applied()
			})
		})
		synctest.Wait()
		require.Equal(t, []bool{true}, known)
		stop()
	})
}
