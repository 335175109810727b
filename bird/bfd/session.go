package bfd

import (
	"fmt"
	"time"
)

// SlowInterval is the least interval of transmission wanted while a session is not up (RFC 5880 section 6.8.3).
const SlowInterval = time.Second

// Patience is how long a peer whose path was lost may be silent until it counts as one that has no BFD: some end BFD without
// a word when it is taken out of their configuration.
const Patience = 30 * time.Second

// Parameters are what one end of a session is configured with.
type Parameters struct {
	MinTx      time.Duration // interval of transmission wanted
	MinRx      time.Duration // interval of reception accepted
	Multiplier uint8         // packets that the peer may miss in a row
}

// Event is what a session tells of its path.
type Event uint8

// The events.
const (
	NoEvent  Event = iota
	CameUp         // the path works in both directions
	Lost           // the path was up, and is not any more
	Released       // BFD says nothing about the path any more: the peer ended BFD, or began it anew
)

// Output is what a call asks of whoever called.
type Output struct {
	Send   bool // Packet is to be sent now
	Packet Packet
	Event  Event
}

// Session is one end of a BFD session. Times are those of one clock that never jumps, counted from any origin.
// It is not safe for concurrent use.
type Session struct {
	parameters Parameters
	random     func() float64 // of [0,1)

	state      State
	diagnostic Diagnostic
	local      uint32
	wasUp      bool // and the peer has not been silent for too long since

	remote           uint32 // 0: not known
	remoteState      State
	remoteDiagnostic Diagnostic
	remoteMinTx      time.Duration
	remoteMinRx      time.Duration
	remoteMultiplier uint8

	// What we say, and what we do until the peer knows (RFC 5880 section 6.8.3).
	minTx, actualTx time.Duration
	minRx, actualRx time.Duration
	polling         bool
	changedInPoll   bool // another poll must follow, since the peer may have seen the values of before

	quiet bool          // nothing has been sent or heard yet
	heard bool          // within the last detection time
	last  time.Duration // when; or since when it is silent
	next  time.Duration // periodic packet
}

// New begins a session. local must be unique among the sessions of this system, and not 0. random gives numbers of [0,1).
//
// A new session first listens for a moment: a peer that still holds a session with a process before this one goes on with
// it, and never learns that there was a restart.
func New(now time.Duration, local uint32, p Parameters, random func() float64) *Session {
	s := &Session{
		parameters: p, random: random, state: Down, local: local, remoteState: Down, remoteMinRx: time.Microsecond, quiet: true,
		minRx: p.MinRx, actualRx: p.MinRx,
	}
	s.slowDown()
	s.next = now + max(SlowInterval, p.MinRx+p.MinRx/4)
	return s
}

// Local is the discriminator of this end. It may change with a Receive while the session is quiet.
func (s *Session) Local() uint32 { return s.local }

// State is the state of the session.
func (s *Session) State() State { return s.state }

// Interval is the time between packets to the peer, before jitter.
func (s *Session) Interval() time.Duration { return max(s.actualTx, s.remoteMinRx) }

// Detection is the time without a packet after which the peer is gone.
func (s *Session) Detection() time.Duration {
	return time.Duration(s.remoteMultiplier) * max(s.actualRx, s.remoteMinTx)
}

// RemoteDetection is the time without a packet after which we are gone for the peer.
func (s *Session) RemoteDetection() time.Duration {
	return time.Duration(s.parameters.Multiplier) * s.Interval()
}

// String is the session in an operator's words: "up, 50ms x 3", "down: control detection time expired".
func (s *Session) String() string {
	switch {
	case s.state == Up:
		return fmt.Sprintf("up, %s x %d", max(s.actualRx, s.remoteMinTx), s.remoteMultiplier)
	case s.state == Down && s.remoteState == AdminDown:
		return "down: the peer has switched BFD off"
	case s.state == Down && s.diagnostic != NoDiagnostic:
		return "down: " + s.Reason()
	case s.state == Down && !s.heard && !s.wasUp:
		return "waiting for peer's BFD"
	}
	return s.state.String()
}

// Reason is why the session last left the state Up: "control detection time expired".
func (s *Session) Reason() string {
	if s.diagnostic == NeighborDown && s.remoteDiagnostic != NoDiagnostic {
		return fmt.Sprintf("the peer says: %s", s.remoteDiagnostic)
	}
	return s.diagnostic.String()
}

// Next is when Tick must be called again, if nothing else happens.
func (s *Session) Next() time.Duration {
	at := time.Duration(1<<63 - 1)
	if s.sends() {
		at = s.next
	}
	switch {
	case s.heard:
		at = min(at, s.last+s.Detection())
	case s.wasUp:
		at = min(at, s.last+Patience)
	}
	return at
}

// sends tells whether periodic packets go out.
func (s *Session) sends() bool { return s.remoteMinRx != 0 }

// Tick does what is due.
func (s *Session) Tick(now time.Duration) Output {
	var out Output
	if s.wasUp && !s.heard && now >= s.last+Patience {
		s.wasUp, s.diagnostic, out.Event = false, NoDiagnostic, Released
	}
	if s.heard && now >= s.last+s.Detection() {
		s.heard, s.last = false, now
		s.remote, s.remoteMinRx = 0, time.Microsecond
		if s.state == Up {
			out.Event = Lost
		}
		if s.state == Up || s.state == Init {
			s.remoteState = Down
			s.enter(Down, DetectionExpired)
			return s.send(now, out)
		}
	}
	if s.sends() && now >= s.next {
		return s.send(now, out)
	}
	return out
}

// send completes an output with a packet of this moment, and sets the time of the next one.
func (s *Session) send(now time.Duration, out Output) Output {
	s.quiet = false
	out.Send, out.Packet = true, s.packet()
	s.next = now + s.jittered()
	return out
}

func (s *Session) packet() Packet {
	return Packet{
		Diagnostic: s.diagnostic, State: s.state, Poll: s.polling, Multiplier: s.parameters.Multiplier, Sender: s.local,
		Receiver: s.remote, MinTx: s.minTx, MinRx: s.minRx,
	}
}

// jittered is 75 to 100 % of the interval, and at most 90 % if one packet missed is enough (RFC 5880 section 6.8.7).
func (s *Session) jittered() time.Duration {
	spread := 0.25
	if s.parameters.Multiplier == 1 {
		spread = 0.15
	}
	return time.Duration(float64(s.Interval()) * (0.75 + spread*s.random()))
}

// Receive takes a packet that came from the peer; one for another session is ignored (RFC 5880 section 6.8.6).
func (s *Session) Receive(now time.Duration, p Packet) Output {
	resumed := s.quiet && s.state == Down && p.State == Up && p.Receiver != 0
	if p.Receiver != 0 && p.Receiver != s.local && !resumed {
		return Output{}
	}
	if s.state == AdminDown {
		return Output{}
	}
	var out Output
	if p.State == AdminDown && s.remoteState != AdminDown {
		out.Event = Released
	}
	if s.state == Up && p.State == Down {
		out.Event = Lost
		anew := p.Receiver == 0 && p.Sender != s.remote && p.Diagnostic == NoDiagnostic
		if anew || p.Diagnostic == NeighborDown {
			out.Event = Released // the peer's process is new, or it has heard us: packets come through either way
		}
	}
	before := s.Interval()
	s.quiet, s.heard, s.last = false, true, now
	s.remote, s.remoteState, s.remoteDiagnostic = p.Sender, p.State, p.Diagnostic
	s.remoteMinTx, s.remoteMinRx, s.remoteMultiplier = p.MinTx, p.MinRx, p.Multiplier
	if p.Final && s.polling {
		s.endPoll()
	}
	old := s.state
	if resumed {
		s.local = p.Receiver
		s.enter(Up, NoDiagnostic)
	} else {
		s.follow(p.State)
	}
	if s.state == Up && old != Up {
		out.Event = CameUp
	}
	switch {
	case p.Poll:
		out.Send, out.Packet = true, s.packet()
		out.Packet.Poll, out.Packet.Final = false, true
	case s.state != old && s.sends():
		return s.send(now, out)
	}
	if s.Interval() < before || s.state != old {
		s.next = min(s.next, now+s.jittered())
	}
	return out
}

// follow is the state machine of RFC 5880 section 6.2, for a packet with the given state.
func (s *Session) follow(remote State) {
	switch {
	case remote == AdminDown && s.state != Down, remote == Down && s.state == Up:
		s.enter(Down, NeighborDown)
	case s.state == Down && remote == Down:
		s.enter(Init, s.diagnostic)
	case s.state == Down && remote == Init, s.state == Init && (remote == Init || remote == Up):
		s.enter(Up, NoDiagnostic)
	}
}

func (s *Session) enter(state State, why Diagnostic) {
	s.state, s.diagnostic = state, why
	if state == Up {
		s.wasUp = true
		s.minTx = s.parameters.MinTx
		s.actualTx = s.minTx
		s.polling = true
		return
	}
	s.slowDown()
	s.actualRx = s.minRx
	s.polling, s.changedInPoll = false, false
}

func (s *Session) slowDown() {
	s.minTx = max(SlowInterval, s.parameters.MinTx)
	s.actualTx = s.minTx
}

func (s *Session) endPoll() {
	if s.changedInPoll {
		s.changedInPoll = false // the peer is told again
		return
	}
	s.polling = false
	s.actualTx, s.actualRx = s.minTx, s.minRx
}

// Change sets other parameters. An end that becomes slower goes on as before until the peer knows (RFC 5880 section 6.8.3).
func (s *Session) Change(now time.Duration, p Parameters) {
	s.parameters = p
	before := s.Interval()
	s.minRx = p.MinRx
	if s.state != Up {
		s.slowDown()
		s.actualRx = s.minRx
	} else {
		s.minTx = p.MinTx
		s.actualTx = min(s.actualTx, s.minTx)
		s.actualRx = max(s.actualRx, s.minRx)
		s.changedInPoll = s.polling
		s.polling = true
	}
	if s.Interval() < before {
		s.next = min(s.next, now+s.jittered())
	}
}

// Retreat prepares for a silence on purpose, of a process that restarts: it announces packets so rare that the peer misses
// none for as long. It has worked when the session is no longer Polling. (Some take AdminDown, which is meant for this, for
// a loss: BIRD does.)
func (s *Session) Retreat(now, silence time.Duration) Output {
	p := s.parameters
	p.MinTx = max(p.MinTx, silence/time.Duration(p.Multiplier))
	s.Change(now, p)
	return s.send(now, Output{})
}

// Polling tells whether the peer has not yet confirmed the timers.
func (s *Session) Polling() bool { return s.polling }

// Stop ends the session in order. Ticks go on telling the peer until the session is dropped, a RemoteDetection later.
func (s *Session) Stop(now time.Duration) Output {
	s.heard, s.wasUp = false, false
	s.enter(AdminDown, AdminDowned)
	return s.send(now, Output{})
}
