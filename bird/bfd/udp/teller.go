package udp

import (
	"context"
	"net/netip"
	"sync"

	"github.com/muslin-net/muslin/bird/speaker"
)

// event is what is told of a path.
type event struct {
	peer   netip.Addr
	lost   bool
	reason string
}

// teller passes events on without keeping the thread of the sessions waiting.
type teller struct {
	events Events
	wake   chan struct{}

	mu    sync.Mutex // guards queue
	queue []event
}

func newTeller(events Events) *teller { return &teller{events: events, wake: make(chan struct{}, 1)} }

func (t *teller) add(e event) {
	t.mu.Lock()
	t.queue = append(t.queue, e)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *teller) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		}
		t.mu.Lock()
		queue := t.queue
		t.queue = nil
		t.mu.Unlock()
		for _, e := range queue {
			if e.lost {
				t.events.PeerLost(e.peer, speaker.ByBFD, e.reason)
			} else {
				t.events.PeerFound(e.peer, speaker.ByBFD)
			}
		}
	}
}
