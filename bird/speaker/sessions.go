package speaker

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
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
	Diagnosis string       // what seems to be the matter, where LastError alone does not tell; empty while it is up
	Flaps     uint64       // how often it was lost after it had been up
	History   []Transition // newest first
}

// What is kept of sessions. Histories of peers that are no longer configured are kept for a while: a peering that is
// renamed, or that an operator takes out and puts back, is the same one to whoever looks for the trouble.
const (
	keptTransitions = 32
	keptHistories   = 256
	keptFor         = time.Hour
)

// Reasons that say less than others do. Refused is that of a session whose peer answered our OPEN with a NOTIFICATION that the
// engine did not show: who finds out what it said within lateWords replaces it. HungUp is that of a peer which closes new
// connections, as one does that rests after it has refused us: it does not hide why for keptReason.
const (
	Refused    = "Received: a NOTIFICATION in answer to our OPEN"
	HungUp     = "Socket: Connection closed before the peer's OPEN; it may have no session configured for this node"
	lateWords  = 2 * time.Second
	keptReason = 30 * time.Second
)

// sessions follows the engine's sessions. Its lock is the innermost: no other is taken under it.
type sessions struct {
	now      func() time.Time
	mu       sync.Mutex // guards the following
	byPeer   map[netip.Addr]*record
	gone     map[netip.Addr]*record // of peers that are no longer configured
	lost     uint64                 // how often any session was lost
	watchers map[*SessionWatch]struct{}
}

// record is a session, and what is kept beside it.
type record struct {
	Session
	trouble string              // why the next change of state will be
	at      time.Time           // when trouble and LastError were told
	logged  map[string]struct{} // reasons that were logged since it was last up
	left    time.Time           // when it was forgotten
}

func newSessions() *sessions {
	return &sessions{
		now: time.Now, byPeer: map[netip.Addr]*record{}, gone: map[netip.Addr]*record{}, watchers: map[*SessionWatch]struct{}{},
	}
}

// add begins to follow a peer that is configured. What strangers do is not recorded: they could fill the memory.
func (s *sessions) add(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byPeer[peer] != nil {
		return
	}
	r := s.gone[peer]
	delete(s.gone, peer)
	if r == nil || s.now().Sub(r.left) > keptFor {
		r = &record{Session: Session{State: Idle}}
	}
	s.byPeer[peer] = r
}

// step is a change of state, for the log.
type step struct {
	from, to State
	reason   string        // why it went down
	lasted   time.Duration // the state before
}

// set records a change of state; ok is false if it is none, or the peer is unknown.
func (s *sessions) set(peer netip.Addr, state State) (_ step, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byPeer[peer]
	if r == nil || r.State == state && !r.Since.IsZero() {
		return step{}, false
	}
	t := Transition{At: s.now(), State: state}
	if state == Idle || state == Down || r.State == Established {
		t.Reason, r.trouble = r.trouble, ""
	}
	done := step{from: r.State, to: state, reason: t.Reason, lasted: t.At.Sub(r.Since)}
	if r.State == Established {
		r.Flaps++
		s.lost++
	}
	if state == Established {
		r.Diagnosis, r.logged = "", nil
	}
	r.State, r.Since = state, t.At
	r.remember(t)
	s.tell(peer)
	return done, true
}

// remember puts a transition before the others. An attempt that fails as the one before it takes the place of that one: a
// peer that is tried every few seconds must not push out how it was lost.
func (r *record) remember(t Transition) {
	if t.State == Idle {
		failed := func(h Transition) bool { return h.State == Idle || h.State == Established }
		if i := slices.IndexFunc(r.History, failed); i >= 0 && r.History[i].State == Idle && r.History[i].Reason == t.Reason {
			r.History = r.History[i+1:]
		}
	}
	r.History = slices.Insert(slices.Clip(r.History), 0, t)
	r.History = r.History[:min(len(r.History), keptTransitions)]
}

// fail records why a session fails; news tells that it is to be logged.
func (s *sessions) fail(peer netip.Addr, reason string) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byPeer[peer]
	if r == nil {
		return false
	}
	said := (strings.HasPrefix(r.LastError, "Received: ") || strings.HasPrefix(r.LastError, "Error: ")) && s.now().Sub(r.at) < keptReason
	if said && reason == HungUp {
		return false
	}
	late := len(r.History) > 0 && r.History[0].State == Idle && s.now().Sub(r.History[0].At) < lateWords
	if late && r.History[0].Reason == Refused {
		r.History[0].Reason = reason
	} else {
		r.trouble = reason
	}
	if said && reason == Refused {
		return false
	}
	r.at = s.now()
	if r.LastError == reason {
		return false
	}
	r.LastError, r.Diagnosis = reason, ""
	s.tell(peer)
	if r.State == Established { // the log has it when the session goes down
		return false
	}
	_, known := r.logged[reason]
	if known || len(r.logged) >= keptTransitions {
		return false
	}
	if r.logged == nil {
		r.logged = map[string]struct{}{}
	}
	r.logged[reason] = struct{}{}
	return true
}

// over records that a session has come up, whenever the engine's event of it is heard: what failed before is not why it is
// lost.
func (s *sessions) over(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.byPeer[peer]; r != nil {
		r.trouble = ""
	}
}

// diagnose records what seems to be the matter with a session that is not up; news tells that it is to be logged.
func (s *sessions) diagnose(peer netip.Addr, what string) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byPeer[peer]
	if r == nil || r.State == Established || r.Diagnosis == what {
		return false
	}
	r.Diagnosis = what
	s.tell(peer)
	return what != ""
}

// forget ends the following of a peer that is no longer configured; its history is kept for a while.
func (s *sessions) forget(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byPeer[peer]
	if r == nil {
		return
	}
	delete(s.byPeer, peer)
	r.left, r.trouble, r.LastError, r.Diagnosis, r.logged = s.now(), "", "", "", nil
	if r.State == Established {
		r.Flaps++
	}
	r.State, r.Since = Idle, r.left
	r.remember(Transition{At: r.left, State: Down, Reason: "no longer configured"})
	s.gone[peer] = r
	if len(s.gone) > keptHistories {
		oldest := peer
		for a, o := range s.gone {
			if cmp.Or(o.left.Compare(s.gone[oldest].left), a.Compare(oldest)) < 0 {
				oldest = a
			}
		}
		delete(s.gone, oldest)
	}
	s.tell(peer)
}

// state is a session's state alone.
func (s *sessions) state(peer netip.Addr) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.byPeer[peer]; r != nil {
		return r.State
	}
	return Idle
}

// losses is how often any session was lost.
func (s *sessions) losses() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// retain forgets all peers but those that keep says.
func (s *sessions) retain(keep func(netip.Addr) bool) {
	s.mu.Lock()
	var leave []netip.Addr
	for a := range s.byPeer {
		if !keep(a) {
			leave = append(leave, a)
		}
	}
	s.mu.Unlock()
	for _, a := range leave {
		s.forget(a)
	}
}

func (s *sessions) get(peer netip.Addr) Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byPeer[peer]
	if r == nil {
		return Session{State: Idle}
	}
	out := r.Session
	out.History = slices.Clone(r.History)
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
