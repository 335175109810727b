package gobgp

import (
	"context"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/muslin-net/muslin/bird/speaker"
)

// gobgp rests for 5 s after each loss of a session, whatever is configured, and closes connections that come meanwhile,
// which sends the other end to rest in its turn: a bird that was killed had its sessions back after 7 to 9 s. The first few
// times we cut the rest short, to idleAfterReset. Peers that go on failing are left to gobgp's own pace (RFC 4271 section
// 8.1.1, DampPeerOscillations).
const (
	shortRests  = 3                      // how many rests are cut short
	stableAfter = time.Minute            // a session that was up for so long may have as many again
	settled     = 200 * time.Millisecond // a peer that still rests then is one that lost its session, not a new one
)

// rest is what is known of one peer's rests.
type rest struct {
	short   int       // how many were cut short
	up      time.Time // when the session came up; zero while it is down
	cutting bool      // from the administrative shutdown to the start after it
}

// cut says whether the rest that has begun is to be a short one, and counts it.
func (r *rest) cut() bool {
	if r.cutting || r.short == shortRests {
		return false
	}
	r.short++
	r.cutting = true
	return true
}

// follow keeps the rest in step with the session.
func (r *rest) follow(state speaker.State, now time.Time) {
	switch state {
	case speaker.Established:
		r.up = now
	case speaker.Idle:
		if !r.up.IsZero() && now.Sub(r.up) >= stableAfter {
			r.short = 0
		}
		r.up = time.Time{}
		return // it may be the same rest
	}
	r.cutting = false
}

// followRest is called with mu held.
func (e *Engine) followRest(a netip.Addr, state speaker.State) {
	if _, ok := e.peers[a]; !ok {
		return
	}
	if e.rests[a] == nil {
		e.rests[a] = &rest{}
	}
	e.rests[a].follow(state, time.Now())
	if state == speaker.Idle {
		time.AfterFunc(settled, func() { e.cutRest(a) })
	}
}

// cutRest begins the peer's rest anew with another length. gobgp has no call for it: a reset sets the length (its
// NOTIFICATION is dropped with whatever waits for a session that is down), and an administrative start begins a rest; before
// it there must be a shutdown, which has happened when the log says so (startAgain).
func (e *Engine) cutRest(a netip.Addr) {
	if !e.seemsIdle(a) {
		return
	}
	ctx := context.Background()
	state := e.stateNow(a)
	e.mu.Lock()
	r := e.rests[a]
	cut := state == api.PeerState_IDLE && r != nil && r.cut()
	e.mu.Unlock()
	if !cut {
		return
	}
	err := e.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: a.String()})
	if err == nil {
		err = e.server.DisablePeer(ctx, &api.DisablePeerRequest{Address: a.String()})
	}
	if err != nil { // the peer was removed meanwhile
		e.log.Debug("rest not cut short", "peer", a, "error", err)
	}
}

// startAgain ends an administrative shutdown, of which cutRest is the only cause.
func (e *Engine) startAgain(a netip.Addr) {
	if err := e.server.EnablePeer(context.Background(), &api.EnablePeerRequest{Address: a.String()}); err != nil {
		e.log.Debug("peer not started again", "peer", a, "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.rests[a]; r != nil {
		r.cutting = false
	}
}

// seemsIdle tells whether a session is idle as far as gobgp has told. To ask gobgp itself costs much: it copies all that the
// session is configured with.
func (e *Engine) seemsIdle(a netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, there := e.peers[a]
	return there && e.states[a] == speaker.Idle
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
