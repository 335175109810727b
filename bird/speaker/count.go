package speaker

import (
	"context"
	"net/netip"
	"strings"

	"github.com/muslin-net/muslin/bird/policy"
)

// audience are the sessions for which the export decision comes out alike, but for routes that one of them has sent.
type audience struct {
	v6, internal, client, mesh bool
	as, local                  uint32
	filters                    string
}

// counted is how many prefixes an audience may have, and how many of them each peer has sent.
type counted struct {
	to    policy.Peer // stands for all, without an address of its own
	total uint64
	from  map[netip.Addr]uint64
}

// countStep is how many best paths are judged while the table is held.
const countStep = 2000

// countAdvertised counts what each session that is up is advertised, in prefixes. The engine would have to judge the whole
// table for each session, while nothing else goes on; this judges it once for each kind of session, beside the engine.
func (s *Speaker) countAdvertised() map[netip.Addr]uint64 {
	s.mu.Lock()
	config := s.config
	own := make(map[netip.Prefix]policy.Route, len(s.running.announced))
	for p := range s.running.announced {
		own[p], _, _ = s.ownRoute(p)
	}
	s.mu.Unlock()
	if config == nil {
		return nil
	}
	peers, members := map[netip.Addr]*policy.Peer{}, map[netip.Addr]*counted{}
	audiences := map[audience]*counted{}
	active := config.Active()
	for i := range active {
		p := &active[i]
		peers[p.Address] = p
		if s.sessions.state(p.Address) != Established {
			continue
		}
		k := audience{
			v6: p.Address.Is6(), internal: p.Internal(config), client: p.ReflectorClient, mesh: p.Type == policy.PeerMesh,
			as: p.ASNumber, local: p.LocalASNumber, filters: strings.Join(p.Filters, " "),
		}
		if audiences[k] == nil {
			to := *p
			if to.Address = netip.IPv4Unspecified(); k.v6 {
				to.Address = netip.IPv6Unspecified()
			}
			audiences[k] = &counted{to: to, from: map[netip.Addr]uint64{}}
		}
		members[p.Address] = audiences[k]
	}
	s.countLearned(config, peers, audiences, own)
	for p, rt := range own {
		for k, c := range audiences {
			if k.v6 == p.Addr().Is6() && config.ExportOwn(&c.to, rt).Accept {
				c.total++
			}
		}
	}
	out := make(map[netip.Addr]uint64, len(members))
	for a, c := range members {
		out[a] = c.total - c.from[a]
	}
	return out
}

// countLearned judges the best paths, and takes from own what they are better than.
func (s *Speaker) countLearned(config *policy.Config, peers map[netip.Addr]*policy.Peer, audiences map[audience]*counted, own map[netip.Prefix]policy.Route) {
	for version := uint64(0); ; {
		list, _, _ := s.best.since(version, countStep)
		for _, b := range list {
			version = b.Version
			if len(b.Paths) == 0 {
				continue
			}
			delete(own, b.Prefix)
			path := b.Paths[0]
			path.Prefix = b.Prefix // best paths are shared between prefixes
			from := peers[path.Peer]
			for k, c := range audiences {
				if k.v6 == b.Prefix.Addr().Is6() && config.ExportLearned(&c.to, from, path.route()).Accept {
					c.total++
					c.from[path.Peer]++
				}
			}
		}
		if len(list) < countStep {
			return
		}
	}
}

// judgedMost is how many received routes are judged to count those accepted. The engine knows only which it refused for a loop;
// beyond this many, in all sessions listed, that has to do.
const judgedMost = 20000

// countAccepted counts what of the received routes is accepted.
func (s *Speaker) countAccepted(list []PeerState) {
	s.mu.Lock()
	config, policyContext := s.config, s.context()
	s.mu.Unlock()
	var all uint64
	for i := range list {
		all += list[i].Received
	}
	if config == nil || all > judgedMost {
		return
	}
	for i := range list {
		p := &list[i]
		if p.Received == 0 {
			continue
		}
		n := uint64(0)
		err := s.engine.Routes(context.Background(), Received, p.Peer.Address, p.Peer.Address.Is6(), func(path Path) {
			if _, v := config.Import(&p.Peer, path.route(), policyContext); v.Accept {
				n++
			}
		})
		if err == nil { // otherwise the session has gone meanwhile
			p.Accepted = n
		}
	}
}
