package client

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	bird "github.com/muslin-net/muslin/bird/client"
	typha "github.com/muslin-net/muslin/typha/client"
)

func session(address string, state bird.State, lastError string) bird.Peer {
	return bird.Peer{Address: netip.MustParseAddr(address), Source: "BGPPeer(tor)", State: state, LastError: lastError}
}

func TestPeersCondition(t *testing.T) {
	const up, refused = bird.Established, "Socket: Connection refused"
	for name, test := range map[string]struct {
		peers           []bird.Peer
		status          bool
		reason, message string
	}{
		"none":   {nil, true, api.ReasonNoPeers, "the node is to have no BGP sessions"},
		"all up": {[]bird.Peer{session("10.0.0.2", up, "")}, true, api.ReasonPeersUp, "1 of 1 sessions are up"},
		"one is down": {
			[]bird.Peer{session("10.0.0.3", bird.Active, refused), session("10.0.0.2", up, "")},
			false, api.ReasonPeersDown,
			"1 of 2 sessions are up; 10.0.0.3 of BGPPeer(tor): " + refused,
		},
		"one waits": {
			[]bird.Peer{{Address: netip.MustParseAddr("10.0.0.3"), State: bird.Down, WaitingFor: "Secret tor, key md5"}},
			false, api.ReasonPeersDown,
			"0 of 1 sessions are up; 10.0.0.3: waiting for Secret tor, key md5",
		},
		"many are down": {
			[]bird.Peer{
				session("10.0.0.5", bird.Idle, ""), session("10.0.0.4", bird.Idle, ""), session("10.0.0.3", bird.OpenSent, ""),
				session("10.0.0.2", bird.Connect, refused), session("fd00::1", bird.Idle, ""),
			},
			false, api.ReasonPeersDown,
			"0 of 5 sessions are up; 10.0.0.2 of BGPPeer(tor): " + refused + "; 10.0.0.3 of BGPPeer(tor); 10.0.0.4 of BGPPeer(tor); and 2 more",
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := typha.Condition{Type: api.ConditionBGPPeersReady, Status: test.status, Reason: test.reason, Message: test.message}
			require.Equal(t, want, PeersCondition(test.peers))
		})
	}
	attempts := PeersCondition([]bird.Peer{session("10.0.0.3", bird.Active, refused)})
	require.Equal(t, attempts, PeersCondition([]bird.Peer{session("10.0.0.3", bird.Idle, refused)}), "the states of an attempt are one")
}

// watched is a bird whose sessions change as told, and that may be away.
type watched struct {
	changes chan bird.Peer
	away    chan struct{}
}

func (w *watched) WatchPeers(ctx context.Context, change func(bird.Peer), whole func()) error {
	change(session("10.0.0.2", bird.Established, ""))
	whole()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.away:
			return errors.New("connection refused")
		case p := <-w.changes:
			change(p)
		}
	}
}

// told is a typha that keeps the conditions and may be away.
type told struct {
	mu   sync.Mutex
	away bool
	all  []string
}

func (t *told) ReportPeers(_ context.Context, conditions ...typha.Condition) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away {
		return errors.New("typha is away")
	}
	for _, c := range conditions {
		t.all = append(t.all, c.Reason+": "+c.Message)
	}
	return nil
}

func (t *told) take() []string {
	synctest.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.all
	t.all = nil
	return all
}

// TestTeller: what changes is told after a moment and not too often, is repeated, and is told once typha is there.
func TestTeller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, to := &watched{changes: make(chan bird.Peer), away: make(chan struct{})}, &told{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- NewTeller(slog.New(slog.DiscardHandler), b, to).Run(ctx) }()
		const up = "PeersUp: 1 of 1 sessions are up"
		time.Sleep(2 * tellAfter)
		require.Equal(t, []string{up}, to.take())

		for range 300 { // for half a minute one comes and goes
			b.changes <- session("10.0.0.2", bird.Idle, "")
			time.Sleep(50 * time.Millisecond)
			b.changes <- session("10.0.0.2", bird.Established, "")
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(tellPause + 2*tellAfter)
		flaps := to.take()
		require.LessOrEqual(t, len(flaps), 5)
		if len(flaps) > 0 {
			require.Equal(t, up, flaps[len(flaps)-1])
		}

		to.mu.Lock()
		to.away = true
		to.mu.Unlock()
		b.changes <- session("10.0.0.3", bird.Active, "Socket: Connection refused")
		time.Sleep(time.Minute)
		require.Empty(t, to.take())
		to.mu.Lock()
		to.away = false
		to.mu.Unlock()
		time.Sleep(tellPause + 2*tellAfter)
		const down = "PeersDown: 1 of 2 sessions are up; 10.0.0.3 of BGPPeer(tor): Socket: Connection refused"
		require.Equal(t, []string{down}, to.take())
		time.Sleep(tellRepeat + 2*tellAfter)
		require.Equal(t, []string{down}, to.take(), "it is repeated")

		b.changes <- bird.Peer{Address: netip.MustParseAddr("10.0.0.3")}
		time.Sleep(tellPause + 2*tellAfter)
		require.Equal(t, []string{up}, to.take())
		b.away <- struct{}{} // it is back in a second
		time.Sleep(tellPause + 2*tellAfter)
		require.Empty(t, to.take())
		cancel()
		require.NoError(t, <-ended)
	})
}
