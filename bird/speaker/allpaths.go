package speaker

import (
	"context"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/bird/policy"
)

// What a peer is sent that takes several paths to a prefix cannot be asked of the engine, which lists one for each. So it is
// judged here, over the table.

// takesAll tells whether the peer's session is up and it is sent all paths.
func (s *Speaker) takesAll(config *policy.Config, p *policy.Peer) (bool, error) {
	if !p.AllPaths(config) {
		return false, nil
	}
	list, err := s.engine.Peers()
	return slices.ContainsFunc(list, func(c PeerCounters) bool { return c.Address == p.Address && c.AllPaths }), err
}

// sent lists the paths that a peer is sent which takes them all.
func (s *Speaker) sent(ctx context.Context, config *policy.Config, p *policy.Peer, yield func(Judged)) error {
	active := config.Active()
	return s.engine.Routes(ctx, Table, netip.Addr{}, p.Address.Is6(), func(path Path) {
		v := exportVerdict(config, active, p, path)
		if !v.Accept {
			return
		}
		if !path.Peer.IsValid() {
			path.NextHop = p.SourceAddress
		}
		rt := v.Apply(path.route())
		path.Preference, path.Communities, path.ASPath = rt.Preference, rt.Communities, rt.ASPath
		yield(Judged{Path: path, Verdict: v})
	})
}

// countPaths counts what the peers are sent that take all paths, in paths. Beyond judgedMost prefixes what was counted in
// prefixes has to do.
func (s *Speaker) countPaths(list []PeerCounters) {
	s.mu.Lock()
	config := s.config
	s.mu.Unlock()
	if config == nil || s.best.size() > judgedMost {
		return
	}
	active := config.Active()
	for i := range list {
		c := &list[i]
		at := slices.IndexFunc(active, func(p policy.Peer) bool { return p.Address == c.Address })
		if !c.AllPaths || at < 0 {
			continue
		}
		n := uint64(0)
		if s.sent(context.Background(), config, &active[at], func(Judged) { n++ }) == nil { // otherwise the engine stops
			c.Advertised = n
		}
	}
}
