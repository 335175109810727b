package gobgp

import (
	"context"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/muslin-net/muslin/bird/speaker"
)

// gobgp tells of the end of a session that was removed when its goroutine has ended. If the peer was added again meanwhile,
// that may be after the new session was told to wait for a connection: it would seem idle, and nobody would dial.

// lookAgain asks gobgp in a moment whether a session that seems idle is.
func (e *Engine) lookAgain(a netip.Addr) {
	time.AfterFunc(settled, func() {
		state := e.stateNow(a)
		e.mu.Lock()
		_, there := e.peers[a]
		late := state == api.PeerState_ACTIVE && there && e.states[a] == speaker.Idle
		e.mu.Unlock()
		if late {
			e.follow(e.reasons.events, a, speaker.Active)
		}
	})
}

// stateNow is the state that gobgp has a peer in; unknown if it has no such peer, or has shut it down.
func (e *Engine) stateNow(a netip.Addr) api.PeerState_SessionState {
	state := api.PeerState_UNKNOWN
	err := e.server.ListPeer(context.Background(), &api.ListPeerRequest{Address: a.String()}, func(p *api.Peer) {
		if p.GetState().GetAdminState() == api.PeerState_UP {
			state = p.GetState().GetSessionState()
		}
	})
	if err != nil {
		return api.PeerState_UNKNOWN
	}
	return state
}
