package agent_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

var errNo = errors.New("no")

func broken(part string) func(string) error {
	return func(object string) error {
		if strings.Contains(object, part) {
			return errNo
		}
		return nil
	}
}

// What an earlier felix left goes on working until the view is known: nothing is touched.
func TestNothingIsProgrammedBeforeTheViewIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, pod("old", "10.1.0.2"))
		r.SetHost(t.Context(), state.Host{Interfaces: map[string]state.Interface{"eth0": {Up: true, MTU: 1500}}})
		acked := false
		r.Batch(t.Context(), view.Batch{Updates: []view.Item{view.Policy{ID: "pro/all"}}}, func() { acked = true })
		time.Sleep(10 * time.Minute) // audits, and the patience with bird, pass
		synctest.Wait()
		require.Zero(t, see(r.kernel, func(k *kernel) int { return k.applies + k.updates }))
		require.False(t, see(r.kernel, func(k *kernel) bool { return k.whole || k.routesW }))
		require.False(t, acked)
		require.Equal(t, []string{"typha has not sent the node's view, and there is no saved one that can be used"}, r.Ready())
		require.Zero(t, r.bird.calls)
		require.Equal(t, "caliold", r.local[0][0].Interface, "typha is told what is on the node at once")

		err := r.SetLocal(t.Context(), pod("new", "10.1.0.3"))
		require.ErrorContains(t, err, "felix is not in sync: typha has not sent the node's view")
		leaving := pod("old", "10.1.0.2")
		leaving.Leaving = true
		require.NoError(t, r.SetLocal(t.Context(), leaving), "a DEL must not wait for typha")
		require.NoError(t, r.DeleteLocal(t.Context(), "caliold"))

		whole := r.sync()
		synctest.Wait()
		require.True(t, r.is(whole))
		require.True(t, acked, "batches from before are in the kernel with the first turn")
		require.Empty(t, r.Ready())
		require.True(t, see(r.kernel, func(k *kernel) bool { return k.whole }))
	})
}

// A view without the node's interfaces, as from disk at a start, is not enough: the tunnels would seem to have no parent, and
// all that an earlier felix left of them would go.
func TestNothingIsProgrammedBeforeTheHostIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.Batch(t.Context(), view.Batch{InSync: true}, nil)
		synctest.Wait()
		require.Zero(t, see(r.kernel, func(k *kernel) int { return k.applies + k.updates }))
		require.False(t, see(r.kernel, func(k *kernel) bool { return k.whole }))
		require.Equal(t, []string{"the node's own interfaces have not been read yet"}, r.Ready())
		r.SetHost(t.Context(), state.Host{})
		synctest.Wait()
		require.True(t, see(r.kernel, func(k *kernel) bool { return k.whole }))
		require.Empty(t, r.Ready())
	})
}

func TestABurstIsProgrammedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		synctest.Wait()
		hold := make(chan struct{})
		see(r.kernel, func(k *kernel) int { k.hold = hold; return 0 })
		before := see(r.kernel, func(k *kernel) int { return k.applies })
		acks := 0
		batch := func(cidr string) {
			r.Batch(t.Context(), ownBlocks(cidr), func() { r.note(func() { acks++ }) })
		}
		batch("10.2.0.0/26") // held up in the kernel
		synctest.Wait()
		for _, cidr := range []string{"10.2.1.0/26", "10.2.2.0/26", "10.2.3.0/26"} {
			batch(cidr) // come meanwhile
		}
		synctest.Wait()
		require.Zero(t, acks, "nothing is acked that is not in the kernel")
		close(hold)
		synctest.Wait()
		require.Equal(t, 4, acks)
		require.Equal(t, before+2, see(r.kernel, func(k *kernel) int { return k.applies }))
		require.Len(t, see(r.kernel, func(k *kernel) []string {
			var out []string
			for key := range k.routes {
				out = append(out, key.String())
			}
			return out
		}), 4)
	})
}

func TestAckOnlyAfterSuccessAndRetriesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		synctest.Wait()
		r.kernel.breaks(broken("10.2.0.0/26"))
		acked := false
		r.Batch(t.Context(), ownBlocks("10.2.0.0/26", "10.3.0.0/26"), func() { r.note(func() { acked = true }) })
		synctest.Wait()
		require.False(t, r.is(&acked))
		require.Equal(t, []string{"10.3.0.0/26"}, r.bird.now(), "only what is programmed is announced")

		applies := func() int { return see(r.kernel, func(k *kernel) int { return k.applies }) }
		first := applies()
		var at []time.Duration
		begin, last := time.Now(), first
		for time.Since(begin) < 20*time.Second {
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
			if n := applies(); n != last {
				last = n
				at = append(at, time.Since(begin))
			}
		}
		require.Equal(t, []time.Duration{100, 300, 700, 1500, 3100, 6300, 11300, 16300}, milliseconds(at), "doubling to 5 s")

		r.kernel.breaks(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.True(t, r.is(&acked))
		require.Equal(t, []string{"10.2.0.0/26", "10.3.0.0/26"}, r.bird.now(), "what came up by a retry is announced too")

		r.kernel.breaks(broken("10.4.0.0/26"))
		again := applies()
		r.Batch(t.Context(), ownBlocks("10.4.0.0/26"), func() {})
		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, again+2, applies(), "a success starts the backoff anew")
	})
}

func milliseconds(all []time.Duration) []time.Duration {
	out := make([]time.Duration, len(all))
	for i, d := range all {
		out[i] = d / time.Millisecond
	}
	return out
}

// A failure that is not the endpoint's does not fail its ADD; its own does.
func TestSetLocalJudgesTheEndpointAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		r.kernel.breaks(broken("10.9.0.0/26"))
		r.Batch(t.Context(), ownBlocks("10.9.0.0/26"), func() {})
		require.NoError(t, r.SetLocal(t.Context(), pod("web", "10.1.0.5")))
		r.kernel.breaks(broken("10.1.0.6"))
		began := time.Now()
		require.ErrorContains(t, r.SetLocal(t.Context(), pod("db", "10.1.0.6")), "route 10.1.0.6 is not programmed")
		require.Equal(t, 10*time.Second, time.Since(began))

		leaving := pod("web", "10.1.0.5")
		leaving.Leaving = true
		r.kernel.breaks(broken("rule"))
		require.NoError(t, r.SetLocal(t.Context(), leaving), "a DEL succeeds, the rest is taken out later")
		require.NoError(t, r.DeleteLocal(t.Context(), "caliweb"))
		r.kernel.breaks(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.NotContains(t, see(r.kernel, func(k *kernel) []string {
			var names []string
			for n := range k.rules {
				names = append(names, n)
			}
			return names
		}), "caliweb")
	})
}

// An endpoint that is not programmed by the turn that it came with, as something failed in it, waits for the next: what fails once
// under load is no reason to refuse a pod.
func TestSetLocalWaitsForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		r.kernel.breaks(broken("link caliweb"))
		outcome := make(chan error, 1)
		go func() { outcome <- r.SetLocal(t.Context(), pod("web", "10.1.0.5")) }()
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		require.Empty(t, outcome)
		r.kernel.breaks(nil)
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		require.NoError(t, <-outcome)

		r.kernel.breaks(broken("link calidb"))
		go func() { outcome <- r.SetLocal(t.Context(), pod("db", "10.1.0.6")) }()
		time.Sleep(500 * time.Millisecond)
		require.NoError(t, r.DeleteLocal(t.Context(), "calidb"))
		synctest.Wait()
		require.ErrorContains(t, <-outcome, "interface calidb is not there", "nobody waits for what was taken away")
	})
}

// impatient is of a caller who waits for no retry.
func impatient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestWaitersAreAnsweredOrToldWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web, db := pod("web", "10.1.0.5"), pod("db", "10.1.0.6")
		r := start(t)
		r.sync(web)
		require.NoError(t, r.SetLocal(t.Context(), web))
		require.NoError(t, r.SetLocal(t.Context(), db))
		patient := func(d time.Duration) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			return ctx
		}
		require.NoError(t, r.WaitOpen(patient(time.Second), "caliweb"), "it is open already")
		err := r.WaitOpen(patient(time.Second), "calidb")
		require.EqualError(t, err, "calidb is closed: typha has not sent this endpoint's policy")
		require.EqualError(t, r.WaitOpen(patient(time.Second), "caliother"), "interface caliother was removed meanwhile")

		outcome := make(chan error, 2)
		wait := func(iface string) { outcome <- r.WaitOpen(patient(time.Minute), iface) }
		go wait("calidb")
		synctest.Wait()
		require.Empty(t, outcome)
		r.Batch(t.Context(), view.Batch{Updates: []view.Item{view.WorkloadEndpoint{ID: db.ID, PolicyList: "l1"}}}, func() {})
		synctest.Wait()
		require.NoError(t, <-outcome)

		r.Batch(t.Context(), view.Batch{Updates: []view.Item{view.WorkloadEndpoint{ID: db.ID, PolicyList: "l1", Incomplete: []string{"profile x is not known"}}}}, func() {})
		go wait("calidb")
		synctest.Wait()
		require.NoError(t, r.DeleteLocal(t.Context(), "calidb"))
		require.EqualError(t, <-outcome, "interface calidb was removed meanwhile")

		r.kernel.breaks(broken("10.1.0.7"))
		r.sync(web, pod("api"))
		_ = r.SetLocal(impatient(t), pod("api", "10.1.0.7"))
		require.EqualError(t, r.WaitOpen(patient(time.Second), "caliapi"), "caliapi is closed: route 10.1.0.7 is not programmed")
		r.kernel.breaks(nil)
		require.NoError(t, r.WaitOpen(patient(10*time.Second), "caliapi"), "a retry opens it")
	})
}

func TestRoutesAreWholeWhenBirdAndItsNextHopsAreKnown(t *testing.T) {
	hop := netip.MustParseAddr("10.30.0.56")
	path := state.Path{Prefix: netip.MustParsePrefix("10.2.0.0/26"), Ways: &state.Ways{NextHops: []netip.Addr{hop}}}
	whole := func(r *rig) bool {
		synctest.Wait()
		return see(r.kernel, func(k *kernel) bool { return k.routesW })
	}
	host := func(hops ...netip.Addr) state.Host {
		h := state.Host{NextHops: map[netip.Addr]state.NextHop{}}
		for _, a := range hops {
			h.NextHops[a] = state.NextHop{Via: a, Link: "eth0"}
		}
		return h
	}
	t.Run("told by bird", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t)
			r.sync()
			require.False(t, whole(r), "bird has said nothing")
			r.SetPaths(t.Context(), []state.Path{path}, false, func() {})
			r.SetHost(t.Context(), host(hop))
			require.False(t, whole(r), "bird may have more")
			r.SetHost(t.Context(), host())
			r.SetPaths(t.Context(), nil, true, func() {})
			require.False(t, whole(r), "the way to a next hop is not known")
			acked := false
			r.SetPaths(t.Context(), []state.Path{path}, true, func() { r.note(func() { acked = true }) })
			r.SetHost(t.Context(), host(hop))
			require.True(t, whole(r))
			require.True(t, r.is(&acked))
			require.True(t, r.kernel.Programmed(path.Prefix))
		})
	})
	t.Run("bird never comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t)
			r.sync()
			time.Sleep(119 * time.Second)
			require.False(t, whole(r))
			time.Sleep(2 * time.Second)
			require.True(t, whole(r))
		})
	})
	t.Run("bird comes before typha", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := start(t)
			r.SetPaths(t.Context(), nil, true, func() {})
			require.False(t, whole(r))
			r.sync()
			require.True(t, whole(r))
		})
	})
}

// By which link other nodes are reached is found out again when felix itself changed the way, once that is in the kernel.
func TestRoutesToOtherNodesAreFollowed(t *testing.T) {
	path := func(prefix string, hops ...netip.Addr) state.Path {
		return state.Path{Prefix: netip.MustParsePrefix(prefix), Ways: &state.Ways{NextHops: hops}}
	}
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		hop := netip.MustParseAddr("10.30.0.56")
		r.SetHost(t.Context(), state.Host{NextHops: map[netip.Addr]state.NextHop{hop: {Via: hop, Link: "eth0"}}})
		r.Batch(t.Context(), view.Batch{Updates: []view.Item{
			view.Node{Name: "worker-2", IPv4: netip.MustParsePrefix("10.9.0.2/32")}, view.Node{Name: "worker-3", IPv4: netip.MustParsePrefix("10.9.0.3/32")},
		}}, func() {})
		moves := func(paths ...state.Path) (n int) {
			r.SetPaths(t.Context(), paths, true, func() {})
			synctest.Wait()
			r.note(func() { n, r.moves = r.moves, 0 })
			return n
		}
		require.Zero(t, moves(path("10.77.2.0/26", hop), path("10.9.0.4/32", hop), path("10.9.0.0/31", hop)), "to no node")
		require.Equal(t, 1, moves(path("10.9.0.3/32", hop)))
		require.Equal(t, 1, moves(path("10.0.0.0/8", hop)), "to both")
		r.kernel.breaks(func(object string) error {
			if strings.Contains(object, "10.9.0.2/32") {
				return errNo
			}
			return nil
		})
		require.Zero(t, moves(path("10.9.0.2/32", hop)), "it is not in the kernel")
		r.kernel.breaks(nil)
		time.Sleep(10 * time.Second)
		require.Equal(t, 2, moves(path("10.9.0.3/32")), "that one, and one that goes")
	})
}

func TestOnlyWhatIsProgrammedIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		// 10.1.0.1 is the address of the node's own tunnel device: it has no route.
		r.Batch(t.Context(), ownBlocks("10.2.0.0/26", "10.3.0.9/32", "10.1.0.1/32"), func() {})
		synctest.Wait()
		require.Equal(t, []string{"10.1.0.1/32", "10.2.0.0/26"}, r.bird.now(), "nobody has the borrowed address yet")
		require.NoError(t, r.SetLocal(t.Context(), pod("web", "10.3.0.9")))
		synctest.Wait()
		require.Equal(t, []string{"10.1.0.1/32", "10.2.0.0/26", "10.3.0.9/32"}, r.bird.now())
		leaving := pod("web", "10.3.0.9")
		leaving.Leaving = true
		require.NoError(t, r.SetLocal(t.Context(), leaving))
		require.Equal(t, []string{"10.1.0.1/32", "10.2.0.0/26"}, r.bird.now())
		r.Batch(t.Context(), view.Batch{Removes: []view.Key{{Kind: view.KindRoute, ID: "10.2.0.0/26@worker-1"}}}, func() {})
		synctest.Wait()
		require.Equal(t, []string{"10.1.0.1/32"}, r.bird.now())
	})
}

func TestTheKernelIsAuditedAndLookedAtWhenItChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		synctest.Wait()
		applies := see(r.kernel, func(k *kernel) int { return k.applies })
		r.Wake()
		r.Wake() // never blocks
		synctest.Wait()
		require.LessOrEqual(t, see(r.kernel, func(k *kernel) int { return k.applies })-applies, 2)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		require.Equal(t, 3, see(r.kernel, func(k *kernel) int { return k.resyncs }))
	})
}

func TestOthersAreToldWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		r.SetHost(t.Context(), state.Host{Interfaces: map[string]state.Interface{"eth0": {MTU: 9000, Up: true}}})
		require.NoError(t, r.SetLocal(t.Context(), pod("b", "10.1.0.5")))
		require.NoError(t, r.SetLocal(t.Context(), pod("a", "10.1.0.6")))
		mtu, err := r.PodMTU(t.Context())
		require.NoError(t, err)
		require.Equal(t, 9000, mtu)
		local, err := r.Local(t.Context())
		require.NoError(t, err)
		require.Len(t, local, 2)
		differences, err := r.Dump(t.Context())
		require.NoError(t, err)
		require.Equal(t, "no", differences[0].Error)
		synctest.Wait()
		latest := r.local[len(r.local)-1]
		require.True(t, slices.IsSortedFunc(latest, func(a, b state.Endpoint) int { return strings.Compare(a.Interface, b.Interface) }))
		require.Len(t, latest, 2)
		require.Equal(t, 9000, r.mtus[len(r.mtus)-1])
		require.Equal(t, [][]string{{"typha has not sent the node's view, and there is no saved one that can be used"}, nil}, r.ready)
	})
}

// Calls that are under way when felix stops end, whatever their own patience.
func TestStoppingAnswersThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		require.NoError(t, r.SetLocal(t.Context(), pod("web", "10.1.0.5")))
		outcome := make(chan error, 1)
		go func() { outcome <- r.WaitOpen(context.Background(), "caliweb") }()
		synctest.Wait()
		r.stop()
		require.ErrorContains(t, <-outcome, "felix is stopping")
		require.ErrorContains(t, r.SetLocal(context.Background(), pod("db")), "felix is stopping")
		_, err := r.Local(context.Background())
		require.ErrorContains(t, err, "felix is stopping")
	})
}
