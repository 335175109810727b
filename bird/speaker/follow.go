package speaker

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// reconfigured is the reason of a session that restarts since its configuration has changed.
func reconfigured(what string) string { return "Configuration changed: " + what }

// Session is called by the engine. Operators are told once when a session comes up and once when it is lost; the steps
// between are for those who look for trouble.
func (s *Speaker) Session(peer netip.Addr, state State) {
	if !s.losses.ends(peer) { // what becomes of the session of a lost peer is our own doing
		s.session(peer, state)
	}
}

func (s *Speaker) session(peer netip.Addr, state State) {
	done, ok := s.sessions.set(peer, state)
	if !ok {
		return
	}
	lasted := done.lasted.Round(time.Millisecond)
	switch {
	case state == Established:
		s.log.Info("session is up", "peer", peer)
	case done.from == Established:
		s.log.Info("session is lost", "peer", peer, "reason", done.reason, "uptime", lasted)
	default:
		s.log.Debug("session", "peer", peer, "state", state, "before", done.from, "for", lasted, "reason", done.reason)
	}
}

// Trouble is called by the engine, with locks of its own held. A session that does not come up is logged once for each
// reason.
func (s *Speaker) Trouble(peer netip.Addr, reason string) {
	if reason == "" {
		s.sessions.over(peer)
		return
	}
	if !s.losses.ends(peer) && s.sessions.fail(peer, reason) {
		s.log.Info("session does not come up", "peer", peer, "reason", reason)
	}
}

// Ailing lists the sessions that there should be and are not up.
func (s *Speaker) Ailing() []PeerState {
	return slices.DeleteFunc(s.Sessions(""), func(p PeerState) bool {
		return p.State == Established || p.ShadowedBy != "" || p.WaitingFor != ""
	})
}

// Diagnose records what seems to be the matter with a session that is not up; an empty text takes that back.
func (s *Speaker) Diagnose(peer netip.Addr, what string) {
	if s.sessions.diagnose(peer, what) {
		s.log.Info("session does not come up", "peer", peer, "diagnosis", what)
	}
}

// explain says what can be said of a session that is not up from its last error and its configuration alone.
func explain(p *PeerState) string {
	switch p.LastError {
	case "Received: Bad peer AS":
		return fmt.Sprintf("the peer expects another AS than %d, which this node shows", p.LocalAS)
	case "Socket: Connection refused":
		return fmt.Sprintf("nothing listens on port %d there", p.Port)
	case "Socket: Network is unreachable":
		return "this node has no route to the peer"
	case "Socket: No route to host":
		return "no host answers at the address, or there is no route to it"
	case "Socket: Cannot assign requested address":
		return fmt.Sprintf("source address %s is not this node's", p.SourceAddress)
	}
	return ""
}
