package client

import (
	"context"
	"log/slog"
	"time"

	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/confd/render"
	"github.com/muslin-net/muslin/internal/daemon"
	typha "github.com/muslin-net/muslin/typha/client"
)

// Asked is what answers operators' questions: bird.
type Asked interface {
	RelayPeers(ctx context.Context, request []byte) ([]byte, error)
	RelayShow(ctx context.Context, request []byte, reply func([]byte) error) error
	RelayDrain(ctx context.Context, request []byte) ([]byte, error)
}

// askTimeout is how long confd waits for bird before it goes on without an answer.
const askTimeout = time.Second

// Follower follows the node's view: each whole step of it is rendered and handed to the pusher.
type Follower struct {
	log    *slog.Logger
	state  *render.State
	pusher *Pusher
	bird   Asked
	level  func(severity string) // nil: what the resources say of confd's own log is not followed
}

// NewFollower returns a handler for typha's Run.
func NewFollower(log *slog.Logger, state *render.State, pusher *Pusher, bird Asked) *Follower {
	return &Follower{log: log, state: state, pusher: pusher, bird: bird}
}

// Level has the follower's process log at the level that the resources say, and as it does now while they say none.
func (f *Follower) Level(level *slog.LevelVar) { f.level = daemon.Severities(level) }

// OnBatch renders, unless the view is not whole yet: half a configuration would drop sessions. The batch is reported as
// applied when bird runs it.
func (f *Follower) OnBatch(b typha.Batch) {
	f.state.Commit(b.Batch)
	if !f.state.InSync() || b.Saved && f.configured() {
		return
	}
	c, err := f.state.Render()
	if err != nil {
		f.log.Warn("nothing to configure", "error", err)
		b.Applied()
		return
	}
	if f.level != nil {
		f.level(c.LogSeverity)
	}
	f.log.Debug("rendered", "peers", len(c.Peers), "filters", len(c.Filters), "warnings", len(c.Warnings))
	f.pusher.Want(c, func(err error) {
		if err != nil {
			f.log.Error("bird refuses the configuration; what ran before goes on", "error", err)
		}
		b.Applied()
	})
}

// configured tells whether bird has a configuration, which then is as new as the saved view or newer: the view is saved a
// moment after bird took what it led to, and to go back to it would end sessions until typha is there. A bird that does not
// answer comes back with what it ran.
func (f *Follower) configured() bool {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	body, err := f.bird.RelayPeers(ctx, nil)
	if err != nil {
		return true
	}
	st, err := bird.ReadPeers(body)
	return err != nil || st.Generation != 0
}

// OnQuery asks bird.
func (f *Follower) OnQuery(ctx context.Context, q typha.Question, reply func([]byte) error) error {
	switch q.Method {
	case typha.BirdPeers, typha.BirdDrain:
		ask := f.bird.RelayPeers
		if q.Method == typha.BirdDrain {
			ask = f.bird.RelayDrain
		}
		body, err := ask(ctx, q.Request)
		if err != nil {
			return err
		}
		return reply(body)
	case typha.BirdShow:
		return f.bird.RelayShow(ctx, q.Request, reply)
	default:
		return typha.ErrUnserved
	}
}

// Part is where Report tells how bird stands.
type Part interface {
	Ready()
	NotReady(reason string)
}

// Report makes a pusher's report a health part's.
func Report(part Part) func(error) {
	return func(err error) {
		if err != nil {
			part.NotReady(err.Error())
			return
		}
		part.Ready()
	}
}
