package speaker

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Transition is a change of a session's state.
type Transition struct {
	At     time.Time
	State  State
	Reason string // why it went down; empty otherwise
}

// Session is what is known of a session beside its configuration.
type Session struct {
	State     State
	Since     time.Time
	LastError string       // what it last failed with
	History   []Transition // newest first
}

// keptTransitions is the length of a session's history.
const keptTransitions = 20

// sessions follows the engine's sessions.
type sessions struct {
	now      func() time.Time
	mu       sync.Mutex // guards the following
	byPeer   map[netip.Addr]*Session
	trouble  map[netip.Addr]string // why the next change of state will be
	watchers map[*SessionWatch]struct{}
}

func newSessions() *sessions {
	return &sessions{
		now: time.Now, byPeer: map[netip.Addr]*Session{}, trouble: map[netip.Addr]string{}, watchers: map[*SessionWatch]struct{}{},
	}
}

func (s *sessions) set(peer netip.Addr, state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.byPeer[peer]
	if one == nil {
		one = &Session{}
		s.byPeer[peer] = one
	}
	if one.State == state {
		return
	}
	t := Transition{At: s.now(), State: state}
	if state == Idle || state == Down {
		t.Reason = s.trouble[peer]
		delete(s.trouble, peer)
	}
	one.State, one.Since = state, t.At
	one.History = slices.Insert(one.History, 0, t)
	one.History = one.History[:min(len(one.History), keptTransitions)]
	s.tell(peer)
}

func (s *sessions) fail(peer netip.Addr, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble[peer] = reason
	if one := s.byPeer[peer]; one != nil && one.LastError != reason {
		one.LastError = reason
		s.tell(peer)
	}
}

// forget drops a session that is no longer configured.
func (s *sessions) forget(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byPeer, peer)
	delete(s.trouble, peer)
	s.tell(peer)
}

func (s *sessions) get(peer netip.Addr) Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.byPeer[peer]
	if one == nil {
		return Session{State: Idle}
	}
	out := *one
	out.History = slices.Clone(one.History)
	return out
}

// tell marks the peer in every watch.
func (s *sessions) tell(peer netip.Addr) {
	for w := range s.watchers {
		w.dirty[peer] = struct{}{}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// SessionWatch collects which sessions changed. However slow its reader, it holds each address once.
type SessionWatch struct {
	sessions *sessions
	dirty    map[netip.Addr]struct{} // guarded by sessions.mu
	wake     chan struct{}
}

// Changed receives when there is something to Take.
func (w *SessionWatch) Changed() <-chan struct{} { return w.wake }

// Take returns the addresses that changed since the last Take, in no order.
func (w *SessionWatch) Take() []netip.Addr {
	w.sessions.mu.Lock()
	defer w.sessions.mu.Unlock()
	out := make([]netip.Addr, 0, len(w.dirty))
	for a := range w.dirty {
		out = append(out, a)
	}
	clear(w.dirty)
	return out
}

// Close ends the watch.
func (w *SessionWatch) Close() {
	w.sessions.mu.Lock()
	defer w.sessions.mu.Unlock()
	delete(w.sessions.watchers, w)
}

func (s *sessions) watch() *SessionWatch {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &SessionWatch{sessions: s, dirty: map[netip.Addr]struct{}{}, wake: make(chan struct{}, 1)}
	s.watchers[w] = struct{}{}
	return w
}
