package client

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/internal/backoff"
	typha "github.com/muslin-net/muslin/typha/client"
)

// Timing of the teller: how long after a change it looks, since sessions that are made anew are up again by then; how much longer
// for each session, at most, since all nodes of a mesh see at once that one dies; how long it then says nothing, so that a
// session that comes and goes does not write all the time; how often it repeats what it said, in case it was lost; how soon it
// watches again.
const (
	tellAfter  = 3 * time.Second
	tellSpread = 20 * time.Millisecond
	tellPause  = 10 * time.Second
	tellRepeat = time.Minute
	watchAgain = time.Second
)

// namedPeers is how many sessions a condition names; the rest it counts.
const namedPeers = 3

// PeerWatch is whom the teller asks: bird.
type PeerWatch interface {
	WatchPeers(ctx context.Context, change func(bird.Peer), whole func()) error
}

// PeerReporter is whom it tells: typha.
type PeerReporter interface {
	ReportPeers(ctx context.Context, conditions ...typha.Condition) error
}

// Teller keeps the condition BGPPeersReady of the own Node: whether all sessions are up, and why those that are not are not.
type Teller struct {
	log  *slog.Logger
	bird PeerWatch
	to   PeerReporter

	news chan struct{} // has room for one

	mu     sync.Mutex // guards the following
	peers  map[netip.Addr]bird.Peer
	known  bool // all sessions have been told
	served bool // bird answers
}

// NewTeller returns a teller that follows bird.
func NewTeller(log *slog.Logger, b PeerWatch, to PeerReporter) *Teller {
	return &Teller{log: log, bird: b, to: to, news: make(chan struct{}, 1)}
}

// Run watches and tells until ctx ends.
func (t *Teller) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		t.watch(ctx)
		return nil
	})
	group.Go(func() error {
		t.tell(ctx)
		return nil
	})
	return group.Wait()
}

func (t *Teller) watch(ctx context.Context) {
	for ctx.Err() == nil {
		peers := map[netip.Addr]bird.Peer{}
		err := t.bird.WatchPeers(ctx, func(p bird.Peer) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if p.State == bird.StateUnknown {
				delete(peers, p.Address)
			} else {
				peers[p.Address] = p
			}
			t.poke()
		}, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.peers, t.known, t.served = peers, true, true
			t.poke()
		})
		t.log.Debug("bird's sessions are not followed, trying again", "error", err)
		t.mu.Lock()
		t.known, t.served = true, false
		t.mu.Unlock()
		t.poke()
		_ = backoff.Pause(ctx, watchAgain)
	}
}

func (t *Teller) poke() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// tell reports after each change, at its pace.
func (t *Teller) tell(ctx context.Context) {
	repeat := time.NewTimer(tellRepeat)
	defer repeat.Stop()
	var told *typha.Condition
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.news:
			_ = backoff.Pause(ctx, t.patience())
		case <-repeat.C:
			told = nil
		}
		repeat.Reset(tellRepeat)
		now, known := t.condition()
		if !known || told != nil && *told == now {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, callTimeout)
		err := t.to.ReportPeers(attempt, now)
		cancel()
		told = &now
		if err != nil && ctx.Err() == nil {
			t.log.Info("the condition of the sessions is reported later", "error", err)
			told = nil
			t.poke()
		}
		_ = backoff.Pause(ctx, tellPause)
	}
}

// patience is how long after a change to look.
func (t *Teller) patience() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return tellAfter/2 + rand.N(tellAfter+time.Duration(len(t.peers))*tellSpread)
}

// condition is what there is to tell.
func (t *Teller) condition() (c typha.Condition, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.served {
		return typha.Condition{Type: api.ConditionBGPPeersReady, Reason: api.ReasonSpeakerAway, Message: "bird does not answer"}, t.known
	}
	list := make([]bird.Peer, 0, len(t.peers))
	for _, p := range t.peers {
		list = append(list, p)
	}
	return PeersCondition(list), t.known
}

// PeersCondition judges sessions. Its words do not change while a session goes through the states of an attempt, unless it
// fails with something else.
func PeersCondition(peers []bird.Peer) typha.Condition {
	c := typha.Condition{Type: api.ConditionBGPPeersReady, Status: true, Reason: api.ReasonPeersUp}
	slices.SortFunc(peers, func(a, b bird.Peer) int { return a.Address.Compare(b.Address) })
	var down []string
	for _, p := range peers {
		if p.State == bird.Established {
			continue
		}
		one := p.Address.String()
		if p.Source != "" {
			one += " of " + p.Source
		}
		if why := p.Reason(); why != "" {
			one += ": " + why
		}
		down = append(down, one)
	}
	switch {
	case len(peers) == 0:
		c.Reason, c.Message = api.ReasonNoPeers, "the node is to have no BGP sessions"
	case len(down) == 0:
		c.Message = fmt.Sprintf("%d of %d sessions are up", len(peers), len(peers))
	default:
		c.Status, c.Reason = false, api.ReasonPeersDown
		named := down[:min(len(down), namedPeers)]
		c.Message = fmt.Sprintf("%d of %d sessions are up; %s", len(peers)-len(down), len(peers), strings.Join(named, "; "))
		if more := len(down) - len(named); more > 0 {
			c.Message += fmt.Sprintf("; and %d more", more)
		}
	}
	return c
}

// NoPeers says that the node has no BGP, and hence no such condition. It goes on trying until typha has heard it.
func NoPeers(ctx context.Context, log *slog.Logger, to PeerReporter) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, callTimeout)
		err := to.ReportPeers(attempt)
		cancel()
		if err == nil {
			return
		}
		log.Debug("typha does not hear that there are no sessions, trying again", "error", err)
		_ = backoff.Pause(ctx, tellPause)
	}
}
