package client

import (
	"context"
	"errors"
	"fmt"

	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// WatchPeers follows the sessions until ctx or the connection to bird ends, which the error tells: change is called for each
// session, then for each that changes; one of an unknown state is gone, and has no more than its address. Routes are not
// counted for it. whole is called once, when all present ones have been told.
func (c *Client) WatchPeers(ctx context.Context, change func(Peer), whole func()) error {
	s, err := c.bird.Watch(ctx, &birdv1.WatchRequest{})
	for err == nil {
		var m *birdv1.WatchResponse
		if m, err = s.Recv(); err != nil {
			break
		}
		if m.GetPeer() != nil {
			change(peerOf(m.GetPeer()))
		}
		if m.GetSnapshotEnd() {
			whole()
		}
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return fmt.Errorf("bird: watching peers: %w", err)
}
