package uplink_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/uplink"
	"github.com/muslin-net/muslin/ipam/lease"
	"github.com/muslin-net/muslin/typha/client"
)

func run(t *testing.T, do func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- do(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

// warmTypha gives addresses in order, and keeps the calls in mind.
type warmTypha struct {
	mu      sync.Mutex
	calls   []string
	next    map[bool]netip.Addr
	away    bool
	settled []client.Settlement
}

func newWarmTypha() *warmTypha {
	return &warmTypha{next: map[bool]netip.Addr{true: netip.MustParseAddr("10.0.0.1"), false: netip.MustParseAddr("fd00::1")}}
}

func (y *warmTypha) call(format string, args ...any) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.calls = append(y.calls, fmt.Sprintf(format, args...))
	if y.away {
		return client.ErrUnavailable
	}
	return nil
}

func (y *warmTypha) seen() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	out := strings.Join(y.calls, "; ")
	y.calls = nil
	return out
}

func (y *warmTypha) Reserve(_ context.Context, r client.Reserve) (out []client.Reservation, err error) {
	who := "the node"
	if r.Owner != nil {
		who = r.Owner.Handle
	}
	if err := y.call("reserve %d+%d %v%v for %s", r.Count4, r.Count6, r.Pools4, r.Pools6, who); err != nil {
		return nil, err
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	for four, n := range map[bool]int{true: r.Count4, false: r.Count6} {
		for range n {
			out = append(out, client.Reservation{Address: y.next[four], Sequence: 7})
			y.next[four] = y.next[four].Next()
		}
	}
	return out, nil
}

func (y *warmTypha) ReleaseHandle(_ context.Context, handle string) ([]netip.Addr, error) {
	return nil, y.call("free %s", handle)
}

func (y *warmTypha) ReleaseHandles(_ context.Context, handles []string) error {
	return y.call("free %v", handles)
}

func (y *warmTypha) Review(_ context.Context, epoch uint64) (client.Review, error) {
	return client.Review{}, y.call("review %d", epoch)
}

func (y *warmTypha) Enter(_ context.Context, present, before uint64, claims []client.Settlement) (client.Review, error) {
	return client.Review{Epoch: 42}, y.call("enter %d %d %d", present, before, len(claims))
}

func (y *warmTypha) Settle(_ context.Context, epoch uint64, list []client.Settlement) ([]client.RefusedAddress, error) {
	err := y.call("settle %d: %d", epoch, len(list))
	if err == nil {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.settled = append(y.settled, list...)
	}
	return nil, err
}

func (y *warmTypha) Return(_ context.Context, epoch uint64, list []client.WarmAddress) error {
	return y.call("return %d: %d", epoch, len(list))
}

func TestAWarmAddressIsGivenWithoutARemoteCall(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		y := newWarmTypha()
		pool, err := lease.Open(lease.Config{
			Dir: dir, Witness: filepath.Join(dir, "witness"), Terms: lease.DefaultTerms(), Typha: uplink.Authority{Typha: y}, Log: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		r := uplink.NewReserve(pool, uplink.IPAM{Typha: y}, slog.New(slog.DiscardHandler))
		stop := run(t, pool.Run)
		settle := func() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		settle()
		want := server.Want{Handle: "net.c1", Attributes: map[string]string{"pod": "web"}, IPv4: true, IPv6: true}
		got, _, err := r.Assign(t.Context(), want)
		require.NoError(t, err)
		require.Equal(t, "[10.0.0.1 fd00::1]", fmt.Sprint(got), "the first is typha's")
		settle()
		require.Equal(t, "review 0; reserve 1+1 [][] for net.c1; enter 0 0 0; reserve 8+0 [][] for the node; reserve 0+8 [][] for the node", y.seen())

		want.Handle = "net.c2"
		got, sure, err := r.Assign(t.Context(), want)
		require.NoError(t, err)
		require.NoError(t, sure())
		require.Equal(t, "[10.0.0.2 fd00::2]", fmt.Sprint(got))
		require.Empty(t, y.seen(), "no remote call")
		require.NoError(t, testutil.CollectAndCompare(r, strings.NewReader(`
# HELP felix_ipam_remote_assigns_total Requests for addresses that typha was asked for.
# TYPE felix_ipam_remote_assigns_total counter
felix_ipam_remote_assigns_total 1
`), "felix_ipam_remote_assigns_total"))
		settle()
		require.Equal(t, "settle 42: 2", y.seen())
		require.Equal(t, client.Settlement{
			Address: got[0], Sequence: 7, Owner: client.Owner{Handle: "net.c2", Attributes: map[string]string{"pod": "web"}},
		}, y.settled[0])

		// What the reserve cannot serve goes to typha: a certain address.
		_, _, err = r.Assign(t.Context(), server.Want{Handle: "net.c3", IPv4: true, Fixed: netip.MustParseAddr("10.0.0.99")})
		require.NoError(t, err)
		require.Equal(t, "reserve 0+0 [][] for net.c3", y.seen())
		_, _, err = r.Assign(t.Context(), server.Want{Handle: "net.c4", IPv4: true, Pools4: []string{"blue"}})
		require.NoError(t, err)
		settle()
		require.Equal(t, "reserve 8+0 [blue][] for the node; settle 42: 1", y.seen(), "other pools are a reserve of their own, which it waits for")

		// Without typha pods start from the reserve, and end.
		y.mu.Lock()
		y.away = true
		y.mu.Unlock()
		want.Handle = "net.c5"
		_, _, err = r.Assign(t.Context(), want)
		require.NoError(t, err)
		require.NoError(t, r.Add("net.c5"))
		require.NoError(t, r.Add("net.c2"))
		require.NoError(t, r.Cancel(t.Context(), "net.c6"))
		y.mu.Lock()
		y.away = false
		y.mu.Unlock()
		y.seen()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Contains(t, y.seen(), "free net.c2", "and what it is owed is told when it is back")
		stop()
		require.NoError(t, pool.Close())
	})
}
