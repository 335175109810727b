package gobgp

import (
	"context"
	"fmt"

	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/tap"
)

// Overhear learns what peers answer to our OPEN, which gobgp drops, until ctx ends.
func (e *Engine) Overhear(ctx context.Context, t *tap.Tap) error { return t.Run(ctx, e.heard) }

// heard tells why a peer refused, if it is one of ours, and the session is not up: of those that are gobgp tells itself.
func (e *Engine) heard(h tap.Heard) {
	e.mu.Lock()
	n, ours := e.peers[h.From]
	up := e.states[h.From] == speaker.Established
	e.mu.Unlock()
	if !ours || up || h.To.IsValid() && n.SourceAddress.IsValid() && h.To != n.SourceAddress {
		return
	}
	e.reasons.tell(h.From, "Received: "+notification(fmt.Sprint(h.Code, ".", h.Subcode), h.Data))
}
