package speaker

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/bird/policy"
)

// Evidence is what shows that a peer is gone, sooner than BGP would notice.
type Evidence uint8

// The kinds of evidence.
const (
	ByBFD Evidence = iota
	ByLink
	kindsOfEvidence
)

// Guard watches the paths to peers beside BGP. It calls PeerLost and PeerFound of the speaker.
type Guard interface {
	// Watch says which peers have a session, each time that the configuration changes. It must return quickly.
	Watch(peers []policy.Peer)
	// State says how the path to a peer does, in an operator's words; empty if it is not watched.
	State(peer netip.Addr) string
}

// Guard adds a guard. It must be called before the first Apply.
func (s *Speaker) Guard(by Evidence, g Guard) { s.guards[by] = g }

// watch tells the guards whom to watch.
func (s *Speaker) watch(c *policy.Config) {
	for _, g := range s.guards {
		if g != nil {
			g.Watch(c.Active())
		}
	}
}

// guarded is what a guard says of a peer.
func (s *Speaker) guarded(by Evidence, peer netip.Addr) string {
	if g := s.guards[by]; g != nil {
		return g.State(peer)
	}
	return ""
}

// linkGrace is how long a session outlives its link. TCP goes on where it was when the link is soon back; a session made anew
// would have to wait until the other end, which may not have noticed anything, has given up the old one.
const linkGrace = time.Second

// PeerLost says that a peer can no longer be reached. Its paths are gone at once, whatever graceful restart would keep
// (RFC 5882 section 4.3.2.1), and paths of others by way of it are not used. Its session ends, after linkGrace if only the
// link says so, and is not tried again until PeerFound.
//
// Felix is told before the engine is: an engine that is busy must not keep packets going to a peer that is gone.
func (s *Speaker) PeerLost(peer netip.Addr, by Evidence, reason string) {
	one, news, end := s.losses.add(peer, by, reason)
	if news {
		s.best.cut(peer)
		s.log.Warn("peer is lost", "peer", peer, "reason", reason)
	}
	switch {
	case end:
		s.endLost(peer, reason)
	case news:
		time.AfterFunc(linkGrace, func() {
			if s.losses.expire(peer, one) {
				s.endLost(peer, reason)
			}
		})
	}
}

func (s *Speaker) endLost(peer netip.Addr, reason string) {
	s.sessions.fail(peer, reason)
	s.session(peer, Idle)
	s.poke()
}

// PeerFound says that this evidence against a peer no longer holds.
func (s *Speaker) PeerFound(peer netip.Addr, by Evidence) {
	last, ended := s.losses.clear(peer, by)
	if !last {
		return
	}
	if !ended {
		if s.best.show(peer); s.losses.hold(peer) { // lost again meanwhile
			s.best.cut(peer)
		}
	}
	s.log.Info("peer can be reached again", "peer", peer)
	s.poke()
}

// dropLost ends the sessions of lost peers, and lets those that were found have one again. Whoever calls holds mu.
func (s *Speaker) dropLost() error {
	var errs []error
	for _, a := range s.losses.pending() {
		if _, runs := s.running.peers[a]; runs {
			if err := s.engine.DeletePeer(a); err != nil {
				errs = append(errs, err)
				continue
			}
			delete(s.running.peers, a)
		}
		s.losses.dropped(a)
	}
	for _, a := range s.losses.over() {
		s.best.mend(a)
		if s.losses.hold(a) { // lost again meanwhile
			s.best.cut(a)
		}
	}
	return errors.Join(errs...)
}

// losses are the peers that are held back. Its lock is an innermost one: no other is taken under it.
type losses struct {
	mu     sync.Mutex
	byPeer map[netip.Addr]*loss
}

// loss is the evidence against one peer. It lasts until its session has been ended, even if the evidence is gone by then:
// what the session brought is hidden already.
type loss struct {
	reasons [kindsOfEvidence]string
	ending  bool // the session is to be ended, or has been
	dropped bool // the engine has no session of before
}

func (l *loss) standing() bool {
	return cmp.Or(l.reasons[:]...) != ""
}

// add tells whether the peer was not lost before, and whether its session is to be ended now.
func (l *losses) add(peer netip.Addr, by Evidence, reason string) (one *loss, news, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one = l.byPeer[peer]
	if one == nil {
		one = &loss{}
		l.byPeer[peer] = one
	}
	news = !one.standing()
	one.reasons[by] = reason
	end = news && one.ending || by != ByLink && !one.ending
	one.ending = one.ending || end
	return one, news, end
}

// expire tells whether a session is to be ended that was spared so far, unless its peer has been found since.
func (l *losses) expire(peer netip.Addr, one *loss) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byPeer[peer] != one || one.ending {
		return false
	}
	one.ending = true
	return true
}

// clear tells whether that was the last evidence, and whether the session is being ended. If not, the loss is forgotten.
func (l *losses) clear(peer netip.Addr, by Evidence) (last, ending bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.byPeer[peer]
	if one == nil || !one.standing() {
		return false, false
	}
	one.reasons[by] = ""
	if last = !one.standing(); last && !one.ending {
		delete(l.byPeer, peer)
	}
	return last, one.ending
}

// hold tells whether the peer is held back.
func (l *losses) hold(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byPeer[peer] != nil
}

// ends tells whether what becomes of the peer's session is our own doing.
func (l *losses) ends(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.byPeer[peer]
	return one != nil && one.ending
}

// pending are the peers whose session is to be ended.
func (l *losses) pending() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list(func(o *loss) bool { return o.ending && !o.dropped })
}

func (l *losses) dropped(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byPeer[peer].dropped = true
}

// over are the peers that are not to be held back any longer. It forgets them.
func (l *losses) over() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.list(func(o *loss) bool { return o.dropped && !o.standing() })
	for _, a := range out {
		delete(l.byPeer, a)
	}
	return out
}

// list is called with mu held.
func (l *losses) list(is func(*loss) bool) []netip.Addr {
	var out []netip.Addr
	for a, one := range l.byPeer {
		if is(one) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
