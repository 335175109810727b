package gobgp

import (
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/muslin-net/muslin/bird/speaker"
)

// tellTable passes on what concerns the table: an End-of-RIB marker, which is a path to nowhere, or best paths.
func (e *Engine) tellTable(events speaker.Events, best *bestReader, paths []*api.Path) {
	if len(paths) != 1 || paths[0].GetNlri() != nil {
		best.tell(events, paths)
		return
	}
	if a := address(paths[0].NeighborIp); a.IsValid() {
		events.EndOfRIB(a)
	}
}

func (e *Engine) tellSession(events speaker.Events, event *api.WatchEventResponse_PeerEvent) {
	s := event.GetPeer().GetState()
	a := address(s.GetNeighborAddress())
	if !a.IsValid() {
		return // the end of the initial list
	}
	state := map[api.PeerState_SessionState]speaker.State{
		api.PeerState_IDLE: speaker.Idle, api.PeerState_CONNECT: speaker.Connect, api.PeerState_ACTIVE: speaker.Active,
		api.PeerState_OPENSENT: speaker.OpenSent, api.PeerState_OPENCONFIRM: speaker.OpenConfirm,
		api.PeerState_ESTABLISHED: speaker.Established,
	}[s.GetSessionState()]
	if s.GetAdminState() != api.PeerState_UP {
		state = speaker.Down
	}
	if ofRemoved(s) && e.has(a) {
		return
	}
	e.follow(events, a, state)
}

// ofRemoved tells whether an event is the end of a session that was up when it was removed. gobgp tells it when the session's
// goroutine has ended: if the peer was added again meanwhile, that may be after the new session has come up. It is the one
// event without our AS number.
func ofRemoved(s *api.PeerState) bool {
	return s.GetLocalAsn() == 0 && s.GetSessionState() == api.PeerState_IDLE
}

// has tells whether a peer is there, or being added.
func (e *Engine) has(a netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, there := e.peers[a]
	return there
}

// follow keeps what depends on a session's state in step with it, and passes the state on.
func (e *Engine) follow(events speaker.Events, a netip.Addr, state speaker.State) {
	e.mu.Lock()
	e.states[a] = state
	if ended, ok := e.ending[a]; ok && state != speaker.Established {
		close(ended)
		delete(e.ending, a)
	}
	e.followRest(a, state)
	e.followDial(a, state)
	if n, ok := e.peers[a]; ok && state == speaker.Established {
		n.Restarting = false // it has been told
		e.peers[a] = n
		e.untold.follow(a, n)
	}
	e.mu.Unlock()
	events.Session(a, state)
}
