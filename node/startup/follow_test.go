package startup_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/node/detect"
	"github.com/muslin-net/muslin/node/startup"
	"github.com/muslin-net/muslin/typha/client"
)

// following is a follower of a host whose addresses the test sets.
type following struct {
	typha   *typha
	eth0    []netip.Prefix
	changed chan struct{}
	ended   chan error
}

func follow(t *testing.T, stored *typha, env map[string]string, addresses ...string) *following {
	t.Helper()
	f := &following{typha: stored, changed: make(chan struct{}, 1), ended: make(chan error, 1)}
	f.have(addresses...)
	cfg := startup.Config{
		Node: "worker-1", Log: slog.New(slog.DiscardHandler), Env: func(name string) string { return env[name] },
		Interfaces: func() ([]detect.Interface, error) {
			f.typha.mu.Lock()
			defer f.typha.mu.Unlock()
			return []detect.Interface{{Name: "eth0", Index: 2, Addresses: f.eth0}}, nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { f.ended <- startup.Follow(ctx, cfg, f.typha, f.changed) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-f.ended)
	})
	synctest.Wait()
	return f
}

func (f *following) have(addresses ...string) {
	f.typha.mu.Lock()
	defer f.typha.mu.Unlock()
	f.eth0 = nil
	for _, a := range addresses {
		f.eth0 = append(f.eth0, netip.MustParsePrefix(a))
	}
}

// change gives the host other addresses, as the kernel tells it.
func (f *following) change(addresses ...string) {
	f.have(addresses...)
	f.changed <- struct{}{}
	f.pass(300 * time.Millisecond)
}

// pass lets time go by. What the test did before is seen by the follower, and the other way round.
func (f *following) pass(d time.Duration) {
	f.typha.mu.Lock()
	f.typha.mu.Unlock() //nolint:staticcheck // orders the accesses, nothing else
	time.Sleep(d)
	synctest.Wait()
}

var auto = map[string]string{"IP": "autodetect"}

func TestANewAddressIsRegistered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, with("10.0.0.1/24", ""), auto, "10.0.0.1/24")
		require.Len(t, f.typha.asked, 1, "its interfaces were not stored")
		f.change("10.0.0.1/24")
		require.Len(t, f.typha.asked, 1, "nothing new")

		f.change()
		require.Equal(t, []client.Interface(nil), f.typha.asked[1].Interfaces)
		require.False(t, f.typha.asked[1].IPv4.IsValid(), "what is registered stays while there is no address")
		f.change("10.0.0.2/24")
		require.Equal(t, "10.0.0.2/24", f.typha.asked[2].IPv4.String())
		require.Empty(t, f.typha.asked[2].Pools)

		f.have("10.0.0.3/24") // unheard
		f.pass(time.Minute)
		require.Equal(t, "10.0.0.3/24", f.typha.asked[3].IPv4.String())
	})
}

func TestABurstIsOneRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, with("10.0.0.1/24", ""), auto, "10.0.0.1/24")
		for n := range 10 {
			f.have(fmt.Sprintf("10.0.1.%d/24", n+1))
			f.changed <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		f.pass(time.Second)
		require.Len(t, f.typha.asked, 2)
		require.Equal(t, "10.0.1.10/24", f.typha.asked[1].IPv4.String())
	})
}

func TestWhatIsNotLeftToDetectionStays(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"unset":       {},
		"given":       {"IP": "10.0.0.1/24"},
		"IPv4 is off": {"IP": "none"},
		"policy only": {"CALICO_NETWORKING_BACKEND": "none", "IP": "autodetect"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := follow(t, with("10.0.0.1/24", ""), env, "10.0.0.1/24")
				before := len(f.typha.asked)
				f.change("10.0.0.2/24")
				for _, r := range f.typha.asked[before:] {
					require.NotEqual(t, "10.0.0.2/24", prefixText(r.IPv4))
				}
			})
		})
	}
}

func TestBothFamiliesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, with("10.0.0.1/24", "fd00::1/64"), map[string]string{"IP": "autodetect", "IP6": "autodetect"}, "10.0.0.1/24", "fd00::1/64")
		f.change("10.0.0.2/24") // IPv6 is gone, IPv4 another
		last := f.typha.asked[len(f.typha.asked)-1]
		require.Equal(t, "10.0.0.2/24", last.IPv4.String())
		require.False(t, last.IPv6.IsValid() || last.ClearIPv6)
		f.change("10.0.0.2/24", "fd00::2/64")
		require.Equal(t, "fd00::2/64", f.typha.asked[len(f.typha.asked)-1].IPv6.String())
	})
}

func TestTyphaIsToldLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, with("10.0.0.1/24", ""), auto, "10.0.0.1/24")
		away := fmt.Errorf("dial: %w", client.ErrUnavailable)
		f.typha.down = []error{away, away, away}
		f.change("10.0.0.2/24")
		require.Len(t, f.typha.asked, 1)
		f.pass(3 * time.Second)
		require.Len(t, f.typha.asked, 2)

		f.typha.down = []error{fmt.Errorf("node worker-9 has address 10.0.0.9: %w", client.ErrExists)}
		f.change("10.0.0.9/24")
		require.Len(t, f.typha.asked, 2, "refused")
		f.pass(time.Minute)
		require.Len(t, f.typha.asked, 3, "the other node may have left")
	})
}

func TestABadIntervalIsNamed(t *testing.T) {
	for _, text := range []string{"often", "0s", "-1m"} {
		env := map[string]string{"AUTODETECT_POLL_INTERVAL": text}
		err := startup.Follow(t.Context(), startup.Config{Env: func(n string) string { return env[n] }, Log: slog.New(slog.DiscardHandler)}, &typha{}, nil)
		require.ErrorContains(t, err, "environment variable AUTODETECT_POLL_INTERVAL: "+fmt.Sprintf("%q", text))
	}
}
