package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/status"
)

// What a client has and what it lacks are in memory while it is told of its view for the first time, and when a typha was restarted
// all come at once. So they pass by so many at a time, which brings the last no later: they share the same processors. A client
// that is slow does not hold up others for longer than its time.
const (
	snapshotsAtOnce  = 64
	snapshotPatience = 500 * time.Millisecond
)

// turnstile lets clients pass by so many at a time.
type turnstile chan struct{}

func newTurnstile() turnstile { return make(turnstile, snapshotsAtOnce) }

// pass waits for a place. leave gives it back, if it was not taken back meanwhile.
func (t turnstile) pass(ctx context.Context) (leave func(), err error) {
	select {
	case t <- struct{}{}:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	free := sync.OnceFunc(func() { <-t })
	late := time.AfterFunc(snapshotPatience, free)
	return func() {
		late.Stop()
		free()
	}, nil
}
