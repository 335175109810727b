package client

import (
	"context"
	"log/slog"

	"github.com/muslin-net/muslin/confd/render"
	typha "github.com/muslin-net/muslin/typha/client"
)

// Asked is what answers operators' questions: bird.
type Asked interface {
	RelayPeers(ctx context.Context, request []byte) ([]byte, error)
	RelayShow(ctx context.Context, request []byte, reply func([]byte) error) error
}

// Follower follows the node's view: each whole step of it is rendered and handed to the pusher.
type Follower struct {
	log    *slog.Logger
	state  *render.State
	pusher *Pusher
	bird   Asked
}

// NewFollower returns a handler for typha's Run.
func NewFollower(log *slog.Logger, state *render.State, pusher *Pusher, bird Asked) *Follower {
	return &Follower{log: log, state: state, pusher: pusher, bird: bird}
}

// OnBatch renders, unless the view is not whole yet: half a configuration would drop sessions. The batch is reported as
// applied when bird runs it.
func (f *Follower) OnBatch(b typha.Batch) {
	f.state.Commit(b.Batch)
	if !f.state.InSync() {
		return
	}
	c, err := f.state.Render()
	if err != nil {
		f.log.Warn("nothing to configure", "error", err)
		b.Applied()
		return
	}
	f.pusher.Want(c, func(err error) {
		if err != nil {
			f.log.Error("bird refuses the configuration; what ran before goes on", "error", err)
		}
		b.Applied()
	})
}

// OnQuery asks bird.
func (f *Follower) OnQuery(ctx context.Context, q typha.Question, reply func([]byte) error) error {
	switch q.Method {
	case typha.BirdPeers:
		body, err := f.bird.RelayPeers(ctx, q.Request)
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
