package bfd

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

var usual = Parameters{MinTx: 50 * ms, MinRx: 50 * ms, Multiplier: 3}

func half() float64 { return 0.5 }

// in brings a session to a state, with a peer of discriminator 9.
func in(t *testing.T, state State) *Session {
	t.Helper()
	s := New(0, 7, usual, half)
	s.quiet = false
	say := func(state State, receiver uint32) {
		s.Receive(0, Packet{State: state, Multiplier: 3, Sender: 9, Receiver: receiver, MinTx: 50 * ms, MinRx: 50 * ms})
	}
	switch state {
	case Init:
		say(Down, 0)
	case Up:
		say(Down, 0)
		say(Init, 7)
	case AdminDown:
		s.Stop(0)
	}
	require.Equal(t, state, s.State())
	return s
}

// TestStates is the state machine of RFC 5880 section 6.8.6: every state meets every packet.
func TestStates(t *testing.T) {
	type result struct {
		state State
		why   Diagnostic
		event Event
	}
	for from, row := range map[State]map[State]result{
		Down: {
			AdminDown: {Down, NoDiagnostic, Released}, Down: {Init, NoDiagnostic, NoEvent}, Init: {Up, NoDiagnostic, CameUp},
			Up: {Down, NoDiagnostic, NoEvent},
		},
		Init: {
			AdminDown: {Down, NeighborDown, Released}, Down: {Init, NoDiagnostic, NoEvent}, Init: {Up, NoDiagnostic, CameUp},
			Up: {Up, NoDiagnostic, CameUp},
		},
		Up: {
			AdminDown: {Down, NeighborDown, Released}, Down: {Down, NeighborDown, Lost}, Init: {Up, NoDiagnostic, NoEvent},
			Up: {Up, NoDiagnostic, NoEvent},
		},
		AdminDown: {
			AdminDown: {AdminDown, AdminDowned, NoEvent}, Down: {AdminDown, AdminDowned, NoEvent},
			Init: {AdminDown, AdminDowned, NoEvent}, Up: {AdminDown, AdminDowned, NoEvent},
		},
	} {
		for said, want := range row {
			t.Run(fmt.Sprintf("%s hears %s", from, said), func(t *testing.T) {
				s := in(t, from)
				out := s.Receive(ms, Packet{State: said, Multiplier: 3, Sender: 9, Receiver: 7, MinTx: 50 * ms, MinRx: 50 * ms})
				require.Equal(t, want, result{s.State(), s.diagnostic, out.Event})
				require.Equal(t, s.State() != from, out.Send, "a change is told at once")
				if out.Send {
					require.Equal(t, s.State(), out.Packet.State)
					require.Equal(t, uint32(9), out.Packet.Receiver)
				}
			})
		}
	}
}

// TestReceive are the rest of that section's rules, and what the loss of a path is.
func TestReceive(t *testing.T) {
	base := Packet{State: Up, Multiplier: 3, Sender: 9, Receiver: 7, MinTx: 50 * ms, MinRx: 50 * ms}
	for name, c := range map[string]struct {
		from   State
		change func(*Packet)
		state  State
		event  Event
		send   bool
		check  func(*testing.T, *Session, Packet)
	}{
		"of another session": {from: Up, change: func(p *Packet) { p.Receiver, p.State = 8, Down }, state: Up},
		"poll": {from: Up, change: func(p *Packet) { p.Poll = true }, state: Up, send: true, check: func(t *testing.T, _ *Session, p Packet) {
			require.True(t, p.Final)
			require.False(t, p.Poll, "never both")
		}},
		"poll with a change of state": {from: Init, change: func(p *Packet) { p.Poll = true }, state: Up, event: CameUp, send: true, check: func(t *testing.T, _ *Session, p Packet) {
			require.True(t, p.Final)
			require.Equal(t, Up, p.State)
		}},
		"demand is refused: packets go on": {from: Up, change: func(p *Packet) { p.Demand = true }, state: Up, check: func(t *testing.T, s *Session, _ Packet) {
			require.True(t, s.Tick(s.next).Send)
		}},
		"no periodic packets wanted": {from: Up, change: func(p *Packet) { p.MinRx = 0 }, state: Up, check: func(t *testing.T, s *Session, _ Packet) {
			require.False(t, s.Tick(s.next).Send)
			require.Equal(t, s.last+s.Detection(), s.Next())
		}},
		"slower peer": {from: Up, change: func(p *Packet) { p.MinTx, p.MinRx, p.Multiplier = 400*ms, 200*ms, 4 }, state: Up, check: func(t *testing.T, s *Session, _ Packet) {
			require.Equal(t, 1600*ms, s.Detection())
			require.Equal(t, 200*ms, s.Interval())
			require.Equal(t, 600*ms, s.RemoteDetection())
		}},
		"faster peer": {from: Up, change: func(p *Packet) { p.MinTx, p.MinRx = 10*ms, 10*ms }, state: Up, check: func(t *testing.T, s *Session, _ Packet) {
			require.Equal(t, 150*ms, s.Detection(), "we accept no more than one in 50 ms")
			require.Equal(t, 50*ms, s.Interval())
		}},
		"its detection time expired": {from: Up, change: func(p *Packet) { p.State, p.Diagnostic = Down, DetectionExpired }, state: Down, event: Lost, send: true, check: func(t *testing.T, s *Session, _ Packet) {
			require.Equal(t, "down: the peer says: control detection time expired", s.String())
		}},
		"it has heard us say so": {from: Up, change: func(p *Packet) { p.State, p.Diagnostic = Down, NeighborDown }, state: Down, event: Released, send: true},
		"its process is new":     {from: Up, change: func(p *Packet) { p.State, p.Sender, p.Receiver = Down, 10, 0 }, state: Down, event: Released, send: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := in(t, c.from), base
			c.change(&p)
			out := s.Receive(ms, p)
			require.Equal(t, c.state, s.State())
			require.Equal(t, c.event, out.Event)
			require.Equal(t, c.send, out.Send)
			if c.check != nil {
				c.check(t, s, out.Packet)
			}
		})
	}
}

// TestJitter keeps the time between packets within what RFC 5880 section 6.8.7 allows.
func TestJitter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		multiplier uint8
		most       float64
	}{{3, 1}, {1, 0.9}} {
		s := in(t, Up)
		s.random, s.parameters.Multiplier = r.Float64, c.multiplier
		for range 1000 {
			d := float64(s.jittered()) / float64(s.Interval())
			require.True(t, d >= 0.75 && d <= c.most, d)
		}
	}
}

// line is a path between two sessions, in time that passes only here.
type line struct {
	t      *testing.T
	now    time.Duration
	ends   [2]*Session
	cut    [2]bool // what an end sends is lost
	frozen [2]bool
	delay  time.Duration
	flying []flight
	events [2][]string
	sent   [2]int
	polls  int
}

type flight struct {
	at time.Duration
	to int
	p  Packet
}

func newLine(t *testing.T, a, b Parameters) *line {
	r := rand.New(rand.NewPCG(uint64(a.MinTx), uint64(b.MinTx)))
	return &line{t: t, delay: ms, ends: [2]*Session{New(0, 1001, a, r.Float64), New(0, 2002, b, r.Float64)}}
}

func (l *line) take(end int, out Output) {
	if out.Event != NoEvent {
		l.events[end] = append(l.events[end], [...]string{"", "up", "lost", "released"}[out.Event])
	}
	if !out.Send {
		return
	}
	l.sent[end]++
	if out.Packet.Poll {
		l.polls++
	}
	p, err := Parse(out.Packet.Append(nil))
	require.NoError(l.t, err)
	if !l.cut[end] {
		l.flying = append(l.flying, flight{l.now + l.delay, 1 - end, p})
	}
}

// run lets time pass.
func (l *line) run(d time.Duration) {
	for end := l.now + d; ; {
		at, arrival := end, -1
		for i, f := range l.flying {
			if f.at <= at && !l.frozen[f.to] {
				at, arrival = f.at, i
			}
		}
		who := -1
		for i, s := range l.ends {
			if next := max(s.Next(), l.now); next < at && !l.frozen[i] {
				at, who = next, i
			}
		}
		l.now = max(at, l.now)
		switch {
		case who >= 0:
			l.take(who, l.ends[who].Tick(l.now))
		case arrival >= 0:
			f := l.flying[arrival]
			l.flying = append(l.flying[:arrival:arrival], l.flying[arrival+1:]...)
			l.take(f.to, l.ends[f.to].Receive(l.now, f.p))
		default:
			return
		}
	}
}

// TestNegotiation brings a session up, whose ends want different things.
func TestNegotiation(t *testing.T) {
	l := newLine(t, Parameters{50 * ms, 100 * ms, 3}, Parameters{300 * ms, 20 * ms, 5})
	require.Equal(t, "waiting for peer's BFD", l.ends[0].String())
	l.run(3 * time.Second)
	a, b := l.ends[0], l.ends[1]
	require.Equal(t, []State{Up, Up}, []State{a.State(), b.State()})
	require.Equal(t, []time.Duration{50 * ms, 300 * ms}, []time.Duration{a.Interval(), b.Interval()})
	require.Equal(t, []time.Duration{1500 * ms, 150 * ms}, []time.Duration{a.Detection(), b.Detection()})
	require.Equal(t, a.Detection(), b.RemoteDetection())
	require.Equal(t, "up, 300ms x 5", a.String())
	require.False(t, a.polling || b.polling, "polls were answered")
	require.Equal(t, [2][]string{{"up"}, {"up"}}, l.events)
	before := l.sent
	l.run(10 * time.Second)
	require.InDelta(t, 10.0/0.05/0.875, l.sent[0]-before[0], 15)
	require.InDelta(t, 10.0/0.3/0.875, l.sent[1]-before[1], 5)
}

// TestSlow keeps to one packet a second towards a peer that is not there.
func TestSlow(t *testing.T) {
	l := newLine(t, usual, usual)
	l.frozen[1] = true
	l.run(100 * time.Second)
	require.InDelta(t, 100/0.875, l.sent[0], 10)
	require.Equal(t, "waiting for peer's BFD", l.ends[0].String())
	require.Empty(t, l.events[0])
}

// TestDetection loses the path in one or both directions, or the peer.
func TestDetection(t *testing.T) {
	for name, c := range map[string]struct {
		breaks func(*line)
		mends  func(*line)
		says   [2]string
	}{
		"both directions": {
			func(l *line) { l.cut = [2]bool{true, true} }, func(l *line) { l.cut = [2]bool{} },
			[2]string{"down: control detection time expired", "down: control detection time expired"},
		},
		"one direction": {
			func(l *line) { l.cut[1] = true }, func(l *line) { l.cut[1] = false },
			[2]string{"down: control detection time expired", "init"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t, usual, usual)
			l.run(3 * time.Second)
			c.breaks(l)
			l.run(140*ms - 50*ms)
			require.Equal(t, [2][]string{{"up"}, {"up"}}, l.events, "not before its time")
			l.run(62 * ms)
			require.Equal(t, [2][]string{{"up", "lost"}, {"up", "lost"}}, l.events)
			l.run(time.Second)
			require.Equal(t, c.says, [2]string{l.ends[0].String(), l.ends[1].String()})
			c.mends(l)
			l.run(2 * time.Second)
			require.Equal(t, [2][]string{{"up", "lost", "up"}, {"up", "lost", "up"}}, l.events)
			require.Equal(t, 50*ms, l.ends[0].Interval(), "as quick as before")
		})
	}
}

// TestFrozen stops one end, which then wakes up long after.
func TestFrozen(t *testing.T) {
	l := newLine(t, usual, usual)
	l.run(3 * time.Second)
	l.frozen[1] = true
	l.run(152 * ms)
	require.Equal(t, []string{"up", "lost"}, l.events[0])
	l.run(29 * time.Second)
	require.Equal(t, []string{"up", "lost"}, l.events[0])
	l.run(2 * time.Second)
	require.Equal(t, []string{"up", "lost", "released"}, l.events[0], "it may have no BFD any more")
	require.Equal(t, "waiting for peer's BFD", l.ends[0].String())
	l.run(time.Hour)
	l.frozen[1] = false
	l.run(3 * time.Second)
	require.Equal(t, Up, l.ends[0].State())
	require.Equal(t, Up, l.ends[1].State())
}

// TestRestart replaces one end by a new process. Within the detection time nobody notices; later, but while packets come
// through, nobody calls the path lost.
func TestRestart(t *testing.T) {
	l := newLine(t, usual, usual)
	l.run(3 * time.Second)
	l.run(40 * ms)
	l.ends[1] = New(l.now, 3003, usual, half)
	l.run(5 * time.Second)
	require.Equal(t, [2][]string{{"up"}, {"up", "up"}}, l.events, "the other end saw nothing")
	require.Equal(t, uint32(2002), l.ends[1].Local(), "the session goes on under its old discriminator")

	// A process that does not listen first is seen, but is no loss.
	l.ends[1] = New(l.now, 3003, usual, half)
	l.ends[1].quiet = false
	l.ends[1].next = l.now
	l.run(5 * time.Second)
	require.Equal(t, []string{"up", "released", "up"}, l.events[0])

	// Both at once.
	l.ends[0], l.ends[1] = New(l.now, 4004, usual, half), New(l.now, 5005, usual, half)
	l.run(3 * time.Second)
	require.Equal(t, []State{Up, Up}, []State{l.ends[0].State(), l.ends[1].State()})

	// Gone for longer than the detection time.
	l.frozen[1] = true
	l.run(time.Second)
	l.ends[1], l.frozen[1], l.flying = New(l.now, 6006, usual, half), false, nil
	l.run(3 * time.Second)
	require.Equal(t, []string{"up", "lost", "up"}, l.events[0][len(l.events[0])-3:])
}

// TestStop ends one end in order, which is no loss, and begins it anew.
func TestStop(t *testing.T) {
	l := newLine(t, usual, usual)
	l.run(3 * time.Second)
	l.take(1, l.ends[1].Stop(l.now))
	l.run(2 * time.Second)
	require.Equal(t, []string{"up", "released"}, l.events[0])
	require.Equal(t, "down: the peer has switched BFD off", l.ends[0].String())
	require.Equal(t, "admin down", l.ends[1].String())
	l.ends[1] = New(l.now, 3003, usual, half)
	l.run(3 * time.Second)
	require.Equal(t, []string{"up", "released", "up"}, l.events[0])

	// A path that was lost and is then switched off says nothing about itself any more.
	l.cut = [2]bool{true, true}
	l.run(time.Second)
	l.cut = [2]bool{}
	l.take(1, l.ends[1].Stop(l.now))
	l.run(time.Second)
	require.Equal(t, []string{"lost", "released"}, l.events[0][3:])
}

// TestRetreat falls silent after having said so, and comes back as a new process.
func TestRetreat(t *testing.T) {
	l := newLine(t, usual, usual)
	l.run(3 * time.Second)
	l.take(1, l.ends[1].Retreat(l.now, time.Minute))
	require.True(t, l.ends[1].Polling())
	l.run(2 * ms)
	require.False(t, l.ends[1].Polling())
	require.Equal(t, "up, 20s x 3", l.ends[0].String())
	l.frozen[1] = true
	l.run(50 * time.Second)
	l.ends[1], l.frozen[1], l.flying = New(l.now, 3003, usual, half), false, nil
	l.run(200 * ms)
	require.Equal(t, "up, 50ms x 3", l.ends[0].String())
	require.Equal(t, [2][]string{{"up"}, {"up", "up"}}, l.events)

	l.take(1, l.ends[1].Retreat(l.now, time.Minute))
	l.run(2 * ms)
	l.frozen[1] = true
	l.run(time.Minute)
	require.Equal(t, []string{"up", "lost"}, l.events[0], "it has not come back")
}

// TestChange sets other timers while the session is up: no packet comes later than the peer believes.
func TestChange(t *testing.T) {
	l := newLine(t, usual, usual)
	l.run(3 * time.Second)
	polls := l.polls
	a, b := l.ends[0], l.ends[1]

	// Slower: as before until the peer has answered.
	l.cut[1] = true
	a.Change(l.now, Parameters{200 * ms, 200 * ms, 4})
	require.Equal(t, 50*ms, a.Interval())
	l.run(20 * ms)
	require.Equal(t, 50*ms, a.Interval(), "the answer is lost")
	l.cut[1] = false
	l.run(100 * ms)
	require.Equal(t, 200*ms, a.Interval())
	require.Greater(t, l.polls, polls)
	require.Equal(t, 800*ms, b.Detection())
	require.Equal(t, 600*ms, a.Detection())
	l.run(5 * time.Second)

	// Faster: at once for what we send; what we expect changes when the peer knows.
	a.Change(l.now, Parameters{20 * ms, 20 * ms, 3})
	require.Equal(t, 50*ms, a.Interval(), "the peer accepts no more")
	require.Equal(t, 600*ms, a.Detection())
	l.run(300 * ms)
	require.Equal(t, 150*ms, a.Detection())

	// Twice in a row: the first answer may be to the first change.
	a.Change(l.now, Parameters{300 * ms, 300 * ms, 3})
	l.run(ms / 2)
	a.Change(l.now, Parameters{400 * ms, 300 * ms, 3})
	require.Equal(t, 50*ms, a.Interval())
	l.run(2 * time.Second)
	require.Equal(t, 400*ms, a.Interval())
	require.Equal(t, "up, 400ms x 3", b.String())
	require.Equal(t, [2][]string{{"up"}, {"up"}}, l.events, "nobody went down")
}

// TestRandomLoss runs sessions with all kinds of parameters over a path that loses packets, but never as many in a row as
// would be a loss, while parameters change: they stay up.
func TestRandomLoss(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		some := func() Parameters {
			return Parameters{time.Duration(10+r.IntN(500)) * ms, time.Duration(10+r.IntN(500)) * ms, uint8(3 + r.IntN(3))}
		}
		l := newLine(t, some(), some())
		l.run(5 * time.Second)
		require.Equal(t, [2][]string{{"up"}, {"up"}}, l.events)
		for range 200 {
			if r.IntN(10) == 0 {
				l.ends[r.IntN(2)].Change(l.now, some())
			}
			if r.IntN(3) == 0 && len(l.flying) > 0 && !l.ends[0].polling && !l.ends[1].polling {
				l.flying = l.flying[1:]
			}
			l.run(time.Duration(r.IntN(2000)) * ms)
		}
		require.Equal(t, [2][]string{{"up"}, {"up"}}, l.events, "seed %d", seed)
	}
}
