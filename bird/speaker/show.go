package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-net/muslin/bird/policy"
)

// Status is the speaker as a whole.
type Status struct {
	Generation uint64
	RouterID   netip.Addr
	ASNumber   uint32
	Started    time.Time
	Configured time.Time // when the configuration last changed
	Prefixes   int       // with a best path that was learned
	Lost       uint64    // how often a session was lost since the start
	Drain      policy.Drain
	Announced  int // own routes
	Warnings   []string
}

// Status reports the speaker.
func (s *Speaker) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Lost: s.sessions.losses(), Started: s.started, Configured: s.configured, Prefixes: s.best.size(), Announced: len(s.running.announced), Drain: s.drain}
	if s.config != nil {
		out.Generation, out.RouterID, out.ASNumber = s.config.Generation, s.config.RouterID, s.config.ASNumber
		out.Warnings = s.config.Warnings()
	}
	return out
}

// PeerState is a configured peer and how its session does.
type PeerState struct {
	policy.Peer
	Session
	PeerCounters
	LocalAS    uint32 // what the peer is shown
	ShadowedBy string // another peer has the address; this one has no session
	Path       string // what BFD says: "up, 50ms x 3"; empty without BFD
}

// Peers lists all configured peers by address and then name, those without a session too. filter, a name or an address,
// picks one; empty means all. It costs a walk over all routes, for the counters.
func (s *Speaker) Peers(filter string) ([]PeerState, error) {
	out := s.Sessions(filter)
	s.mu.Lock()
	open := s.open
	s.mu.Unlock()
	if open {
		counters := map[netip.Addr]PeerCounters{}
		list, err := s.engine.Peers()
		if err != nil {
			return nil, err
		}
		advertised := s.countAdvertised()
		for i := range list {
			list[i].Advertised = advertised[list[i].Address]
		}
		s.countPaths(list)
		for _, c := range list {
			counters[c.Address] = c
		}
		for i := range out {
			if out[i].ShadowedBy == "" {
				out[i].PeerCounters = counters[out[i].Peer.Address]
			}
		}
		s.countAccepted(out)
	}
	return out, nil
}

// Sessions is Peers without the counters, and cheap.
func (s *Speaker) Sessions(filter string) []PeerState {
	s.mu.Lock()
	config := s.config
	s.mu.Unlock()
	if config == nil {
		return nil
	}
	shadowed := config.Shadowed()
	peers := config.Peers
	var out []PeerState
	for _, p := range peers {
		if filter != "" && filter != p.Name && filter != p.Address.String() {
			continue
		}
		one := PeerState{Peer: p, LocalAS: p.Local(config), ShadowedBy: shadowed[p.Name]}
		if one.ShadowedBy == "" && p.WaitingFor == "" {
			one.Session, one.Path = s.sessions.get(p.Address), s.guarded(ByBFD, p.Address)
			if one.State != Established && one.Diagnosis == "" {
				one.Diagnosis = explain(&one)
			}
		} else {
			one.State = Down
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b PeerState) int {
		if c := a.Peer.Address.Compare(b.Peer.Address); c != 0 {
			return c
		}
		return int(a.Type) - int(b.Type)
	})
	return out
}

// States lists the states of the sessions that there should be; it is cheap.
func (s *Speaker) States() map[netip.Addr]State {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[netip.Addr]State{}
	for a := range s.names {
		if _, runs := s.running.peers[a]; runs || s.losses.hold(a) {
			out[a] = s.sessions.state(a)
		}
	}
	return out
}

// WatchSessions begins a watch in which every present session counts as changed.
func (s *Speaker) WatchSessions() *SessionWatch {
	w := s.sessions.watch()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	for a := range s.running.peers {
		w.dirty[a] = struct{}{}
	}
	return w
}

// Judged is a route and what was decided about it.
type Judged struct {
	Path
	Verdict policy.Verdict
}

// Look is a point from which routes are seen.
type Look uint8

// The looks.
const (
	LookTable Look = iota
	LookReceived
	LookAccepted
	LookRejected
	LookAdvertised
	LookWithheld
)

// Show lists routes as the look says. peer, a name or an address, is needed by all looks but LookTable.
func (s *Speaker) Show(ctx context.Context, look Look, peer string, within netip.Prefix, yield func(Judged)) error {
	s.mu.Lock()
	config, open, policyContext := s.config, s.open, s.context()
	s.mu.Unlock()
	if config == nil || !open {
		return fmt.Errorf("no BGP runs yet: %w", s.Ready())
	}
	if look == LookTable {
		for _, v6 := range []bool{false, true} {
			if err := s.engine.Routes(ctx, Table, netip.Addr{}, v6, func(p Path) {
				if inside(within, p.Prefix) {
					yield(Judged{Path: p, Verdict: policy.Verdict{Accept: true}})
				}
			}); err != nil {
				return err
			}
		}
		return nil
	}
	active := config.Active()
	i := slices.IndexFunc(active, func(p policy.Peer) bool { return p.Name == peer || p.Address.String() == peer })
	if i < 0 {
		return fmt.Errorf("there is no session %q; list them with Peers", peer)
	}
	p := &active[i]
	if look == LookAdvertised {
		if all, err := s.takesAll(config, p); err != nil {
			return err
		} else if all {
			return s.sent(ctx, config, p, func(j Judged) {
				if inside(within, j.Prefix) {
					yield(j)
				}
			})
		}
	}
	view := map[Look]View{
		LookReceived: Received, LookAccepted: Received, LookRejected: Received, LookAdvertised: Advertised, LookWithheld: Table,
	}[look]
	return s.engine.Routes(ctx, view, p.Address, p.Address.Is6(), func(path Path) {
		if !inside(within, path.Prefix) {
			return
		}
		j := Judged{Path: path, Verdict: policy.Verdict{Accept: true}}
		switch look {
		case LookAccepted, LookRejected:
			var rt policy.Route
			rt, j.Verdict = config.Import(p, path.route(), policyContext)
			if j.Verdict.Accept != (look == LookAccepted) {
				return
			}
			j.Preference, j.Communities, j.ASPath = rt.Preference, rt.Communities, rt.ASPath
		case LookWithheld:
			if !path.Best {
				return
			}
			j.Verdict = exportVerdict(config, active, p, path)
			if j.Verdict.Accept {
				return
			}
		}
		yield(j)
	})
}

func exportVerdict(config *policy.Config, active []policy.Peer, to *policy.Peer, path Path) policy.Verdict {
	if !path.Peer.IsValid() {
		return config.ExportOwn(to, path.route())
	}
	var from *policy.Peer
	if i := slices.IndexFunc(active, func(p policy.Peer) bool { return p.Address == path.Peer }); i >= 0 {
		from = &active[i]
	}
	return config.ExportLearned(to, from, path.route())
}

// OwnWithheld lists the own routes that go to no peer at all, with the reason as the given peer would have it. They are in no
// table, since the engine is not told of them.
func (s *Speaker) OwnWithheld(peer string, within netip.Prefix, yield func(Judged)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config == nil {
		return
	}
	active := s.config.Active()
	i := slices.IndexFunc(active, func(p policy.Peer) bool { return p.Name == peer || p.Address.String() == peer })
	if i < 0 {
		return
	}
	for p := range s.locals.routes {
		if _, announced := s.running.announced[p]; announced || p.Addr().Is6() != active[i].Address.Is6() || !inside(within, p) {
			continue
		}
		rt, _, _ := s.ownRoute(p)
		v := s.config.ExportOwn(&active[i], rt)
		if s.drain == policy.Drained {
			v = policy.Verdict{By: "this node is drained"}
		}
		if !v.Accept {
			yield(Judged{Path: Path{Prefix: p, Preference: rt.Preference, Origin: "igp"}, Verdict: v})
		}
	}
}

// inside tells whether p lies in a prefix; everything does in none.
func inside(within, p netip.Prefix) bool {
	return !within.IsValid() || within.Overlaps(p) && within.Bits() <= p.Bits()
}

// Names are the names of the peers that have a session, by address. The map is not to be changed.
func (s *Speaker) Names() map[netip.Addr]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names
}
