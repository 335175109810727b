package server

import (
	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

// A server observes the loop: it looks after what follows from the state (tunnel addresses, statuses), and has a say in
// when a pool's change of mode goes on.
var _ intake.Observer = (*Server)(nil)

// Changed tells of changes of the state.
func (s *Server) Changed(changes []cache.Change) {
	s.nodes.changed(changes)
	s.statuses.changed(changes)
}

// Carried tells how packets to a pool are carried from now on.
func (s *Server) Carried(c intake.Carriage) {
	s.statuses.records.carried(c)
	s.applied.carried(c)
}

// MayCarry tells whether packets to a pool may be carried in the next way: all nodes have the tunnel addresses that it
// needs, and the pool's status says what a typha that starts now must know.
func (s *Server) MayCarry(pool string, now, next compute.Transport) bool {
	state := s.cfg.Cache.Snapshot()
	p, ok := state.Get(api.Key{Kind: "IPPool", Name: pool}).(*api.IPPool)
	if !ok {
		return true
	}
	known := now.SendsAs(next) || tunnelsKnown(p, next.Send, state, s.sessions.nodes())
	return s.statuses.records.allows(p, now, next) && known
}
