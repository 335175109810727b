package lease_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReuseWaitsForAFreeUnderWay(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		hold := make(chan struct{})
		h.typha.change(func() {
			h.typha.put(netip.MustParseAddr("10.0.0.9"), "net.c1")
			h.typha.hold = hold
		})
		require.NoError(t, h.Free("net.c1"))
		h.settle()
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, h.Reuse(impatient, "net.c1"), context.DeadlineExceeded)
		outcome := make(chan error, 1)
		go func() { outcome <- h.Reuse(t.Context(), "net.c1") }()
		close(hold)
		require.NoError(t, <-outcome)
		require.Zero(t, h.typha.held()["net.c1"])
	})
}

func TestReuseHoldsADebt(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.lend("net.c0", four)
		h.settle()
		h.lend("net.c1", four)
		h.settle() // it is settled
		h.typha.change(func() { h.typha.away = true })
		require.NoError(t, h.Free("net.c1"))
		require.NoError(t, h.Reuse(t.Context(), "net.c1"))
		require.NotEmpty(t, h.lend("net.c1", four))
		h.typha.change(func() { h.typha.away = false })
		time.Sleep(time.Minute)
		require.Equal(t, 2, h.typha.held()["net.c1"], "the one of before is not freed under the pod's feet")
		require.NoError(t, h.Free("net.c1"))
		h.settle()
		require.Zero(t, h.typha.held()["net.c1"])
	})
}

func TestAHandleWithAddressesOfBothWays(t *testing.T) {
	for _, first := range []string{"typha", "reserve"} {
		inBubble(t, func(t *testing.T, h *host) {
			h.lend("net.c0", four)
			h.settle()
			fixed := netip.MustParseAddr("10.9.9.9")
			remote := func() {
				require.NoError(t, h.Remote("net.c1"))
				h.typha.change(func() { h.typha.put(fixed, "net.c1") })
			}
			if first == "typha" {
				remote()
			}
			h.lend("net.c1", four)
			if first == "reserve" {
				remote()
			}
			h.stop()
			h.start()
			require.NoError(t, h.Free("net.c1"))
			h.settle()
			require.Zero(t, h.typha.held()["net.c1"])
		})
	}
}

func TestAnAddThatEndsWithItsProcess(t *testing.T) {
	first := map[string]func(t *testing.T, h *host){
		"typha gives": func(t *testing.T, h *host) {
			require.NoError(t, h.Remote("net.c1"))
			h.typha.change(func() { h.typha.put(netip.MustParseAddr("10.9.9.9"), "net.c1") })
		},
		"it is lent": func(_ *testing.T, h *host) { h.lend("net.c1", four) },
	}
	for name, get := range first {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				h.lend("net.c0", four)
				h.settle()
				get(t, h)
				h.stop()
				h.start()
				h.settle() // typha is told of what was lent, now that this process is here
				require.Equal(t, 1, h.typha.held()["net.c1"])
				require.NoError(t, h.Reuse(t.Context(), "net.c1"))
				h.lend("net.c1", four)
				require.NoError(t, h.Free("net.c1"))
				h.settle()
				require.Zero(t, h.typha.held()["net.c1"])
			})
		})
	}
}

func TestClear(t *testing.T) {
	for _, away := range []bool{false, true} {
		inBubble(t, func(t *testing.T, h *host) {
			h.lend("net.c0", four)
			h.settle()
			require.NoError(t, h.Remote("net.c1"))
			h.typha.change(func() { h.typha.put(netip.MustParseAddr("10.9.9.9"), "net.c1"); h.typha.away = away })
			h.stop()
			h.start()
			began := time.Now()
			require.NoError(t, h.Clear(t.Context(), "net.c1"))
			require.LessOrEqual(t, time.Since(began), time.Second)
			require.NoError(t, h.Reuse(t.Context(), "net.c1"))
			h.typha.change(func() { h.typha.away = false })
			h.lend("net.c1", four)
			h.settle()
			want := map[bool]int{false: 1, true: 2}
			require.Equal(t, want[away], h.typha.held()["net.c1"])
			require.NoError(t, h.Clear(t.Context(), "net.c2")) // of which nothing is known
			require.NoError(t, h.Free("net.c1"))
			h.settle()
			require.Zero(t, h.typha.held()["net.c1"])
		})
	}
}
