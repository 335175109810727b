package server

import (
	"context"
	"errors"

	"github.com/muslin-net/muslin/felix/state"
)

// Attributes are what is stored beside the addresses of an endpoint that felix wires.
func Attributes(e state.Endpoint) map[string]string { return reported(e) }

// Lose takes the network from the pod of a handle, as an address of its is another's now: two pods with one address would
// take each other's packets, and each other's rights. What is left of it goes with its DEL, or when felix starts again.
func (s *Server) Lose(ctx context.Context, handle string) error {
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range local {
		if e.Handle() == handle {
			errs = append(errs, s.lose(ctx, e.Interface, handle))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) lose(ctx context.Context, iface, handle string) error {
	unlock, err := s.locks.lock(ctx, iface)
	if err != nil {
		return err
	}
	defer unlock()
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return err
	}
	e, still := local[iface]
	if !still || e.Handle() != handle {
		return nil // it ended meanwhile
	}
	e.Leaving = true
	if err := s.Records.Save(recordName(e), e); err != nil {
		s.Log.Warn("an endpoint that lost its address is not recorded as such", "endpoint", e.ID, "error", err)
	}
	return s.Agent.SetLocal(ctx, e)
}
