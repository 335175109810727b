package speaker

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"

	"github.com/muslin-net/muslin/bird/policy"
)

// LocalRoute is a route of this node that felix has programmed.
type LocalRoute struct {
	Prefix    netip.Prefix `json:"prefix"`
	Metric    uint32       `json:"metric,omitempty"` // 0: the ordinary one
	Interface string       `json:"interface,omitempty"`
}

// locals are felix's routes. They outlive felix: pods work without it.
type locals struct {
	routes map[netip.Prefix]LocalRoute
	feed   *Feed                     // the stream that may change them
	seen   map[netip.Prefix]struct{} // what this feed has announced, until its snapshot ends
	hops   map[netip.Addr]struct{}   // next hops that this feed has judged, until its snapshot ends
	synced bool                      // a snapshot has ended since the start
}

func newLocals() locals { return locals{routes: map[netip.Prefix]LocalRoute{}} }

// Feed is felix's side of a stream. A new one takes over from the one before; then Replaced is closed and calls do nothing.
type Feed struct {
	speaker  *Speaker
	replaced chan struct{}
}

// Replaced is closed when another feed has taken over.
func (f *Feed) Replaced() <-chan struct{} { return f.replaced }

// Feed begins a new feed.
func (s *Speaker) Feed() *Feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locals.feed != nil {
		close(s.locals.feed.replaced)
	}
	f := &Feed{speaker: s, replaced: make(chan struct{})}
	s.locals.feed, s.locals.seen, s.locals.hops = f, map[netip.Prefix]struct{}{}, map[netip.Addr]struct{}{}
	return f
}

// Announce adds or replaces a route.
func (f *Feed) Announce(r LocalRoute) {
	f.do(func(s *Speaker) {
		if s.locals.seen != nil {
			s.locals.seen[r.Prefix] = struct{}{}
		}
		s.locals.routes[r.Prefix] = r
		s.announce(r.Prefix)
	})
}

// Withdraw removes a route.
func (f *Feed) Withdraw(p netip.Prefix) {
	f.do(func(s *Speaker) {
		delete(s.locals.routes, p)
		s.announce(p)
	})
}

// NextHop says whether the kernel can reach a next hop.
func (f *Feed) NextHop(a netip.Addr, reachable bool) {
	f.do(func(s *Speaker) {
		if s.locals.hops != nil {
			s.locals.hops[a] = struct{}{}
		}
		if s.best.setReachable(a, reachable) {
			s.log.Info("next hop", "address", a, "reachable", reachable)
			s.poke() // the policy rejects its routes, so that the engine finds others
		}
	})
}

// SnapshotEnd says that all that is programmed has been announced: what an earlier feed announced and this one did not is
// withdrawn, and sessions may open.
func (f *Feed) SnapshotEnd() {
	f.do(func(s *Speaker) {
		if s.locals.seen == nil {
			return // said twice
		}
		for p := range s.locals.routes {
			if _, again := s.locals.seen[p]; !again {
				delete(s.locals.routes, p)
				s.announce(p)
			}
		}
		for _, a := range s.best.unreachable() {
			if _, again := s.locals.hops[a]; !again && s.best.setReachable(a, true) {
				s.poke()
			}
		}
		s.locals.seen, s.locals.hops, s.locals.synced = nil, nil, true
		if !s.ready {
			s.ready = true
			s.log.Info("sessions may open", "because", "felix has announced this node's routes")
			s.poke()
		}
	})
}

func (f *Feed) do(change func(*Speaker)) {
	f.speaker.mu.Lock()
	defer f.speaker.mu.Unlock()
	if f.speaker.locals.feed == f {
		change(f.speaker)
	}
}

// Locals are felix's routes, in order of prefix.
func (s *Speaker) Locals() []LocalRoute {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]LocalRoute, 0, len(s.locals.routes))
	for _, r := range s.locals.routes {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b LocalRoute) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// Restore announces what was announced before the process restarted, until felix is back. With nil this is no restart: nothing
// was announced since the machine started, and peers need not wait.
func (s *Speaker) Restore(routes []LocalRoute) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarted = routes != nil
	for _, r := range routes {
		s.locals.routes[r.Prefix] = r
	}
}

// announce brings the engine to what it should announce for one prefix. Whoever calls holds mu.
func (s *Speaker) announce(p netip.Prefix) {
	if !s.open {
		return
	}
	if err := s.announceOne(p); err != nil {
		s.trouble = err
		s.log.Warn("own route", "prefix", p, "error", err)
		s.poke()
	}
}

func (s *Speaker) announceOne(p netip.Prefix) error {
	want, wanted := s.announcement(p)
	have, there := s.running.announced[p]
	switch {
	case wanted && (!there || !reflect.DeepEqual(want, have)):
		if err := s.engine.Announce(want); err != nil {
			return err
		}
		s.running.announced[p] = want
	case !wanted && there:
		if err := s.engine.Withdraw(p); err != nil {
			return err
		}
		delete(s.running.announced, p)
	}
	return nil
}

// announceAll does it for every prefix that is or should be announced.
func (s *Speaker) announceAll() error {
	all := map[netip.Prefix]struct{}{}
	for p := range s.locals.routes {
		all[p] = struct{}{}
	}
	for p := range s.running.announced {
		all[p] = struct{}{}
	}
	for _, o := range s.config.Originate {
		all[o.Prefix] = struct{}{}
	}
	var errs []error
	for p := range all {
		errs = append(errs, s.announceOne(p))
	}
	return errors.Join(errs...)
}

// announcement is what the node should say of a prefix. A route of felix's wins over a configured one: it has a metric.
func (s *Speaker) announcement(p netip.Prefix) (Announcement, bool) {
	rt, communities, ok := s.ownRoute(p)
	if !ok || s.drain == policy.Drained {
		return Announcement{}, false
	}
	tags := s.tagger.Tags(rt)
	if len(tags) == 0 {
		return Announcement{}, false
	}
	return Announcement{Prefix: p, Preference: rt.Preference, Communities: append(slices.Clone(communities), tags...)}, true
}

// ownRoute is the node's own route to a prefix, as policy sees it.
func (s *Speaker) ownRoute(p netip.Prefix) (rt policy.Route, communities []policy.Community, ok bool) {
	rt = policy.Route{Prefix: p, Preference: policy.PreferenceOf(s.config.NormalPriority(p))}
	for _, o := range s.config.Originate {
		if o.Prefix == p {
			communities, ok = o.Communities, true
		}
	}
	if local, is := s.locals.routes[p]; is {
		ok = true
		rt.Interface = local.Interface
		if local.Metric != 0 {
			rt.Preference = policy.PreferenceOf(local.Metric)
		}
	}
	rt.Communities = communities
	return rt, communities, ok
}
