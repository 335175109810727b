package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/ipam/lease"
)

var errAway = errors.New("typha cannot be reached")

// typha is an authority in memory for one node.
type typha struct {
	mu       sync.Mutex
	away     bool
	calls    map[lease.Kind]int
	epoch    uint64
	holders  map[netip.Addr]string
	sequence map[netip.Addr]uint64
	next     uint64
	unfit    map[netip.Addr]string
	cooldown time.Duration
	short    bool
	hold     chan struct{} // Free waits for it
}

func newTypha() *typha {
	return &typha{calls: map[lease.Kind]int{}, holders: map[netip.Addr]string{}, sequence: map[netip.Addr]uint64{}, unfit: map[netip.Addr]string{}}
}

func (y *typha) do(kind lease.Kind, call func() error) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.calls[kind]++
	if y.away {
		return errAway
	}
	return call()
}

// present is the node's epoch.
func (y *typha) present() uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.epoch
}

func warm(epoch uint64) string { return fmt.Sprint("warm-n-", epoch) }

func (y *typha) put(a netip.Addr, handle string) {
	y.next++
	y.holders[a], y.sequence[a] = handle, y.next
}

func (y *typha) review() lease.Review {
	r := lease.Review{Epoch: y.epoch, Cooldown: y.cooldown}
	for _, a := range slices.SortedFunc(maps.Keys(y.holders), netip.Addr.Compare) {
		if y.holders[a] == warm(y.epoch) {
			r.Reserved = append(r.Reserved, lease.Reserved{Addr: a, Sequence: y.sequence[a], Unfit: y.unfit[a]})
		}
	}
	return r
}

func (y *typha) Review(_ context.Context, epoch uint64) (r lease.Review, err error) {
	return r, y.do(lease.DoReview, func() error {
		if r = (lease.Review{Epoch: y.epoch}); epoch == y.epoch {
			r = y.review()
		}
		return nil
	})
}

func (y *typha) Enter(_ context.Context, present, before uint64, claims []lease.Claim) (r lease.Review, err error) {
	return r, y.do(lease.DoEnter, func() error {
		if present != y.epoch {
			return lease.ErrStale
		}
		y.epoch = max(present, before) + 1
		for _, c := range claims {
			if h := y.holders[c.Addr]; h == warm(present) || h == warm(before) {
				y.put(c.Addr, c.Handle)
			}
		}
		maps.DeleteFunc(y.holders, func(_ netip.Addr, h string) bool { return h == warm(present) || h == warm(before) })
		r = y.review()
		return nil
	})
}

func (y *typha) Reserve(_ context.Context, epoch uint64, class lease.Class, n int) (out []lease.Reserved, err error) {
	return out, y.do(lease.DoReserve, func() error {
		switch {
		case epoch != y.epoch:
			return lease.ErrStale
		case y.short:
			return lease.ErrShort
		}
		a := netip.MustParseAddr("10.0.0.0")
		if class.Family == 6 {
			a = netip.MustParseAddr("fd00::")
		}
		for ; len(out) < n; a = a.Next() {
			if y.holders[a] == "" {
				y.put(a, warm(epoch))
				out = append(out, lease.Reserved{Addr: a, Sequence: y.sequence[a]})
			}
		}
		return nil
	})
}

func (y *typha) Settle(_ context.Context, epoch uint64, claims []lease.Claim) (map[netip.Addr]string, error) {
	refused := map[netip.Addr]string{}
	return refused, y.do(lease.DoSettle, func() error {
		if epoch != y.epoch {
			return lease.ErrStale
		}
		for _, c := range claims {
			switch y.holders[c.Addr] {
			case warm(epoch):
				y.put(c.Addr, c.Handle)
			case c.Handle:
			default:
				refused[c.Addr] = "held by " + y.holders[c.Addr]
			}
		}
		return nil
	})
}

func (y *typha) Claim(_ context.Context, c lease.Claim) error {
	return y.do(lease.DoClaim, func() error {
		if h := y.holders[c.Addr]; h != "" {
			return fmt.Errorf("%w: %s", lease.ErrTaken, h)
		}
		y.put(c.Addr, c.Handle)
		return nil
	})
}

func (y *typha) Return(_ context.Context, epoch uint64, addrs []lease.Reserved) error {
	return y.do(lease.DoReturn, func() error {
		for _, r := range addrs {
			if y.holders[r.Addr] == warm(epoch) && y.sequence[r.Addr] == r.Sequence {
				delete(y.holders, r.Addr)
			}
		}
		return nil
	})
}

func (y *typha) Free(_ context.Context, handles ...string) error {
	y.mu.Lock()
	hold := y.hold
	y.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return y.do(lease.DoFree, func() error {
		maps.DeleteFunc(y.holders, func(_ netip.Addr, h string) bool { return slices.Contains(handles, h) })
		return nil
	})
}

// change lets a test do something to typha.
func (y *typha) change(do func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	do()
}

// held are the addresses by handle.
func (y *typha) held() map[string]int {
	y.mu.Lock()
	defer y.mu.Unlock()
	out := map[string]int{}
	for _, h := range y.holders {
		out[h]++
	}
	return out
}

func (y *typha) count() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	n := 0
	for _, c := range y.calls {
		n += c
	}
	return n
}

// host is a node in a bubble of time: its directory, its typha, and a pool that can be stopped and started.
type host struct {
	*lease.Pool
	t     *testing.T
	typha *typha
	dir   string
	boot  string
	begin time.Time
	terms lease.Terms
	lost  []lease.Lost
	live  []lease.Claim
	stop  func()
}

func newHost(t *testing.T, dir string) *host {
	h := &host{t: t, typha: newTypha(), dir: dir, boot: "boot-1", begin: time.Now(), terms: lease.DefaultTerms()}
	h.start()
	return h
}

func (h *host) start() {
	h.t.Helper()
	cfg := lease.Config{
		Dir: filepath.Join(h.dir, "lib"), Witness: filepath.Join(h.dir, "run", "witness"), Terms: h.terms, Typha: h.typha, Living: h.live,
		Lost: func(l lease.Lost) { h.lost = append(h.lost, l) }, Log: slog.New(slog.DiscardHandler),
	}
	var err error
	h.Pool, err = lease.Open(cfg.At(h.boot, func() time.Duration { return time.Minute + time.Since(h.begin) }))
	require.NoError(h.t, err)
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.stop = func() {
		cancel()
		require.NoError(h.t, <-ended)
		require.NoError(h.t, h.Close())
	}
	h.settle()
}

// settle lets a second pass.
func (h *host) settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func (h *host) lend(handle string, classes ...lease.Class) []netip.Addr {
	h.t.Helper()
	addrs, sure, err := h.Lend(handle, map[string]string{"pod": handle}, classes...)
	require.NoError(h.t, err)
	require.NoError(h.t, sure())
	return addrs
}

func (h *host) phases() map[lease.Phase]int {
	out := map[lease.Phase]int{}
	for _, s := range h.Slots() {
		out[s.Phase]++
	}
	return out
}

var four = lease.ClassOf(4)

func inBubble(t *testing.T, do func(*testing.T, *host)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, dir)
		do(t, h)
		h.stop()
	})
}

// A burst of pods on a node that has nothing ahead waits for one request of typha; where nothing is to be had nobody waits.
func TestABurstIsOneRequest(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		require.False(t, h.Refill(t.Context(), four), "of what nobody has asked for nothing is reserved")
		require.Empty(t, h.lend("net.first", four))
		h.settle()
		before := h.typha.calls[lease.DoReserve]
		var burst sync.WaitGroup
		got := make([]netip.Addr, 50)
		for i := range got {
			burst.Go(func() {
				for {
					if addrs := h.lend(fmt.Sprint("net.c", i), four); len(addrs) > 0 {
						got[i] = addrs[0]
						return
					}
					if !h.Refill(t.Context(), four) {
						return
					}
				}
			})
		}
		burst.Wait()
		require.NotContains(t, got, netip.Addr{}, "all have one")
		slices.SortFunc(got, netip.Addr.Compare)
		require.Len(t, slices.Compact(got), 50)
		h.settle()
		require.LessOrEqual(t, h.typha.calls[lease.DoReserve]-before, 6, "as the reserve grows")
		h.typha.change(func() { h.typha.short = true })
		for i := range 100 {
			h.lend(fmt.Sprint("net.d", i), four)
		}
		h.settle()
		begin := time.Now()
		require.False(t, h.Refill(t.Context(), four))
		require.Zero(t, time.Since(begin))
	})
}

func TestAWarmAddressCostsNoCall(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		require.Equal(t, map[lease.Kind]int{lease.DoReview: 1}, h.typha.calls, "a node without pods reserves nothing")
		require.Empty(t, h.lend("net.c0", four), "the first request goes to typha, and says what is needed")
		h.settle()
		require.Equal(t, map[lease.Phase]int{lease.Warm: 8}, h.phases())
		before := h.typha.count()
		got := map[netip.Addr]bool{}
		for i := range 5 {
			addrs := h.lend(fmt.Sprint("net.c", i+1), four)
			require.Len(t, addrs, 1)
			got[addrs[0]] = true
		}
		require.Len(t, got, 5)
		require.Equal(t, h.lend("net.c1", four), h.lend("net.c1", four), "asked again, the same")
		require.Equal(t, before, h.typha.count(), "no remote call")
		h.settle()
		held := h.typha.held()
		require.Equal(t, 1, held["net.c5"])
		require.Equal(t, before+2, h.typha.count(), "one to settle them all, one to fill up")
		require.NoError(t, testutil.CollectAndCompare(h.Pool, strings.NewReader(`
# HELP felix_ipam_reserve_hits_total Requests that were served without a remote call.
# TYPE felix_ipam_reserve_hits_total counter
felix_ipam_reserve_hits_total 7
# HELP felix_ipam_reserve_misses_total Requests that the reserve could not serve.
# TYPE felix_ipam_reserve_misses_total counter
felix_ipam_reserve_misses_total{reason="empty"} 0
felix_ipam_reserve_misses_total{reason="off"} 1
felix_ipam_reserve_misses_total{reason="untrust"} 0
`), "felix_ipam_reserve_hits_total", "felix_ipam_reserve_misses_total"))
	})
}

func TestBothFamiliesOrNeither(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		six := lease.ClassOf(6)
		require.Empty(t, h.lend("net.c0", four))
		h.settle()
		require.Empty(t, h.lend("net.c1", four, six), "there is none of the other family")
		require.Equal(t, map[lease.Phase]int{lease.Warm: 8}, h.phases(), "and none was taken of the one")
		h.settle()
		addrs := h.lend("net.c2", four, six)
		require.Len(t, addrs, 2)
		require.True(t, addrs[0].Is4() && addrs[1].Is6())
		require.Empty(t, h.lend("net.c3", lease.ClassOf(4, "blue")), "pools that are named have their own")
		h.settle()
		require.Len(t, h.lend("net.c4", lease.ClassOf(4, "blue")), 1)
	})
}

// A pod that ends before typha was told gives its address back without a word; it rests first.
func TestAnUnsettledAddressComesBack(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.typha.change(func() { h.typha.cooldown = time.Minute })
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		first := h.lend("net.c1", four)
		require.NoError(t, h.Free("net.c1"))
		require.Equal(t, map[lease.Phase]int{lease.Warm: 7, lease.Cooling: 1}, h.phases())
		for i := range 7 {
			require.NotEqual(t, first, h.lend(fmt.Sprint("net.d", i), four))
		}
		require.Empty(t, h.lend("net.e", four), "it rests")
		time.Sleep(time.Minute)
		require.Equal(t, first, h.lend("net.f", four))
	})
}

// Half an hour without typha: pods start while there are warm addresses, end, and felix is started anew; then all is told.
func TestHalfAnHourWithoutTypha(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		settled := h.lend("net.old", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		time.Sleep(30 * time.Minute)
		kept, ended := h.lend("net.c1", four), h.lend("net.c2", four)
		require.NotEmpty(t, kept)
		require.NotEmpty(t, ended)
		h.settle()
		h.stop()
		h.start()
		require.NoError(t, h.Free("net.c2"))
		require.NoError(t, h.Free("net.old"))
		require.NotEmpty(t, h.lend("net.c3", four), "also after a restart")
		require.Equal(t, 1, h.typha.held()["net.old"])
		h.typha.change(func() { h.typha.away = false })
		time.Sleep(time.Minute)
		held := h.typha.held()
		require.Equal(t, 1, held["net.c1"])
		require.Equal(t, 1, held["net.c3"])
		require.Zero(t, held["net.c2"])
		require.Zero(t, held["net.old"], "%s", settled)
		require.Len(t, held, 3, "and what is warm")
		require.Equal(t, held[warm(h.typha.present())], h.phases()[lease.Warm])
		require.Empty(t, h.lost)
	})
}

// Pods come and go all the time that typha is away. Each attempt to tell it of one leaves the fate of its address open; the next ones
// must not leave those of more.
func TestPodsComeAndGoWithoutTypha(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		for i := range 50 {
			handle := fmt.Sprint("net.a", i)
			require.NotEmpty(t, h.lend(handle, four))
			time.Sleep(35 * time.Second) // longer than attempts lie apart
			require.NoError(t, h.Free(handle))
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, h.phases()[lease.Settling], 1, "%v", h.phases())
		h.typha.change(func() { h.typha.away = false })
		time.Sleep(time.Minute)
		require.Equal(t, map[string]int{warm(h.typha.present()): len(h.Slots())}, h.typha.held())
		require.Empty(t, h.lost)
	})
}

func TestTrustEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		time.Sleep(59 * time.Minute)
		require.NotEmpty(t, h.lend("net.c1", four))
		h.stop()
		h.start() // a restart is no confirmation
		time.Sleep(2 * time.Minute)
		require.Empty(t, h.lend("net.c2", four), "somebody may have given up on the node")
		h.typha.change(func() { h.typha.away = false })
		time.Sleep(time.Minute)
		require.NotEmpty(t, h.lend("net.c2", four))
	})
}

// After a reboot, or on the image of a disk, nothing of what was warm is lent; what had been lent is freed.
func TestARebootEntersANewEpoch(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		require.NotEmpty(t, h.lend("net.unsettled", four))
		h.stop()
		h.boot = "boot-2"
		require.NoError(t, os.Remove(filepath.Join(h.dir, "run", "witness")))
		h.start()
		require.Empty(t, h.lend("net.c1", four), "not before typha has spoken")
		require.Empty(t, h.Slots())
		first := h.typha.present()
		h.typha.change(func() { h.typha.away = false })
		time.Sleep(time.Minute)
		require.Greater(t, h.typha.present(), first)
		require.Equal(t, map[string]int{warm(h.typha.present()): 8}, h.typha.held(), "nothing of before is left")
		require.NotEmpty(t, h.lend("net.c1", four))
	})
}

// The journal is gone while pods run: they keep their addresses.
func TestPodsOutliveTheirJournal(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		addrs := h.lend("net.c1", four)
		h.stop()
		h.live = []lease.Claim{{Addr: addrs[0], Handle: "net.c1"}}
		require.NoError(t, os.WriteFile(filepath.Join(h.dir, "lib", "journal"), []byte("not a journal"), 0o600))
		h.start()
		h.typha.change(func() { h.typha.away = false })
		time.Sleep(time.Minute)
		require.Equal(t, 1, h.typha.held()["net.c1"])
		require.NoError(t, h.Free("net.c1"))
		h.settle()
		require.Zero(t, h.typha.held()["net.c1"])
	})
}

// An address that a pod has is another's: the pod loses it. One that is merely free is claimed.
func TestWhatTyphaRefusesToSettle(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		taken, free := h.lend("net.taken", four)[0], h.lend("net.free", four)[0]
		h.typha.change(func() {
			h.typha.away = false
			h.typha.put(taken, "net.stranger")
			delete(h.typha.holders, free)
		})
		time.Sleep(time.Minute)
		require.Equal(t, 1, h.typha.held()["net.free"])
		require.Equal(t, 1, h.typha.held()["net.stranger"])
		require.Len(t, h.lost, 1)
		require.Equal(t, "net.taken", h.lost[0].Handle)
		require.Contains(t, h.lost[0].Reason, "net.stranger")
		require.Equal(t, map[lease.Phase]int{lease.Warm: 8}, h.phases())
	})
}

// Another one entered an epoch in the node's name.
func TestAnEpochThatEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() {
			h.typha.epoch += 5
			clear(h.typha.holders)
		})
		got := h.lend("net.c1", four) // before it is known
		time.Sleep(time.Minute)
		require.Equal(t, 1, h.typha.held()["net.c1"], "%s is claimed, since nobody has it", got)
		require.Empty(t, h.lost)
		require.Equal(t, 2, len(h.typha.held()))
	})
}

// What is not fit any more goes back: a pool that is disabled or short, a reservation, a block that is another's.
func TestUnfitAddressesGoBack(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		var bad []netip.Addr
		h.typha.change(func() {
			h.typha.short = true
			for a := range h.typha.holders {
				if len(bad) < 3 {
					bad = append(bad, a)
					h.typha.unfit[a] = "an IPReservation has it"
				}
			}
		})
		time.Sleep(31 * time.Second)
		synctest.Wait()
		require.Equal(t, map[lease.Phase]int{lease.Warm: 5}, h.phases())
		for _, a := range bad {
			require.NotContains(t, h.Slots(), a)
		}
		require.Equal(t, 5, h.typha.held()[warm(h.typha.present())])
	})
}

func TestTheReserveFollowsDemand(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		next := 0
		for range 200 { // a burst: the reserve runs dry, and grows to its bound
			next++
			h.lend(fmt.Sprint("net.c", next), four)
			if next%40 == 0 {
				h.settle()
			}
		}
		h.settle()
		require.Equal(t, 64, h.phases()[lease.Warm])
		time.Sleep(21 * time.Minute)
		require.Equal(t, 32, h.phases()[lease.Warm], "half was not needed")
		time.Sleep(2 * time.Hour)
		require.Equal(t, 4, h.phases()[lease.Warm])
		time.Sleep(6 * time.Hour)
		require.Zero(t, h.phases()[lease.Warm])
		h.stop()
		h.terms.Max = 0
		h.start()
		require.Empty(t, h.lend("net.off", four))
		h.settle()
		require.Empty(t, h.Slots())
	})
}

func TestAPoolThatIsTurnedOffGivesAllBack(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.stop()
		h.terms.Max = 0
		h.start()
		h.settle()
		require.Empty(t, h.Slots())
		require.Empty(t, h.typha.held())
	})
}

// A disk that takes no writes: nothing is handed out without typha, pods end all the same, and once there is room again
// the journal is as if nothing had been.
func TestAFullDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		before := h.lend("net.before", four)
		mend := h.BreakDisk(t)
		_, _, err := h.Lend("net.c1", nil, four)
		require.ErrorContains(t, err, "no space left on device")
		require.Equal(t, map[lease.Phase]int{lease.Warm: 6, lease.Cooling: 1, lease.Lent: 1}, h.phases())
		require.ErrorContains(t, h.Free("net.before"), "no space left on device")
		require.Equal(t, map[lease.Phase]int{lease.Warm: 6, lease.Cooling: 2}, h.phases(), "it is free all the same")
		mend()
		again := h.lend("net.c2", four)
		require.NotEmpty(t, again)
		h.stop()
		h.start()
		require.Equal(t, map[lease.Phase]int{lease.Warm: 5, lease.Cooling: 2, lease.Settling: 1}, h.phases(), "%v", before)
	})
}

// What was put off is taken back when the handle is used again, and done when that ends.
// A handle with addresses of both ways is freed at typha too.
// A process ends before its ADD is answered. The next one, which is asked for the same, may lend the handle another address; when its
// pod ends, before that is settled, all that the handle has at typha is freed.
// Nor does the handle keep it while it is used again, unless typha is away.
// Pods that start at the same time wait for one sync of the disk, not for one each.
func TestOneSyncServesMany(t *testing.T) {
	h := &host{t: t, typha: newTypha(), dir: t.TempDir(), boot: "boot-1", begin: time.Now(), terms: lease.DefaultTerms()}
	cfg := lease.Config{
		Dir: filepath.Join(h.dir, "lib"), Witness: filepath.Join(h.dir, "run", "witness"), Terms: h.terms, Typha: h.typha, Log: slog.New(slog.DiscardHandler),
	}
	p, err := lease.Open(cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	_, err = lease.Open(cfg)
	require.ErrorContains(t, err, "another process has it")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() { require.NoError(t, p.Free(fmt.Sprint("net.c", i))) })
	}
	wg.Wait()
	commits, failures := p.Commits()
	require.Zero(t, failures)
	require.Less(t, commits, uint64(200))
	t.Logf("%d syncs for 200", commits)
}

// An address that was lent is another process's to know at once, and sure when it is on the disk.
func TestALoanOutlivesTheProcessBeforeTheHost(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		// what another process, in this boot, would take up
		found := func() (phase lease.Phase, promised bool) {
			data, err := os.ReadFile(filepath.Join(h.dir, "lib", "journal"))
			require.NoError(t, err)
			said, err := os.ReadFile(filepath.Join(h.dir, "run", "witness"))
			require.NoError(t, err)
			w := lease.DecodeWitness(said)
			s, number, _, fate := lease.Recover(data, w, h.boot, nil)
			require.Equal(t, lease.Kept, fate)
			for _, slot := range s.Slots {
				if slot.Handle == "net.c1" {
					phase = slot.Phase
				}
			}
			return phase, w.Number == number
		}
		release := h.HoldDisk()
		addrs, sure, err := h.Lend("net.c1", nil, four)
		require.NoError(t, err)
		require.Len(t, addrs, 1)
		phase, promised := found()
		require.Equal(t, lease.Lent, phase)
		require.False(t, promised)
		release()
		require.NoError(t, sure())
		require.NoError(t, sure(), "who asks again")
		_, promised = found()
		require.True(t, promised)
	})
}

// A journal that grows is written anew, and is the same.
func TestAJournalIsKeptShort(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.typha.change(func() { h.typha.away = true })
		for i := range 1200 {
			handle := fmt.Sprint("net.c", i)
			require.NotEmpty(t, h.lend(handle, four))
			require.NoError(t, h.Free(handle))
		}
		info, err := os.Stat(filepath.Join(h.dir, "lib", "journal"))
		require.NoError(t, err)
		require.Less(t, info.Size(), int64(300<<10))
		before := h.Slots()
		h.stop()
		h.start()
		require.Equal(t, before, h.Slots())
	})
}
