package speaker

import (
	"context"
	"time"

	"github.com/muslin-net/muslin/bird/policy"
)

// Drain announces every route as about to go (RFC 8326), and after wait withdraws all. It returns when that is done, or when
// ctx ends; the draining goes on then.
func (s *Speaker) Drain(ctx context.Context, wait time.Duration) error {
	s.mu.Lock()
	s.endDrain()
	err := s.setDrain(max(s.drain, policy.Draining))
	done := make(chan struct{})
	s.drainDone = done
	s.drainTimer = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.drainDone == done { // neither cancelled nor begun anew meanwhile
			err = s.setDrain(policy.Drained)
			s.endDrain()
		}
	})
	s.mu.Unlock()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Undrain goes back to normal.
func (s *Speaker) Undrain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endDrain()
	return s.setDrain(policy.InService)
}

// endDrain ends the wait of a drain that is under way, and releases whoever asked for it.
func (s *Speaker) endDrain() {
	if s.drainDone != nil {
		s.drainTimer.Stop()
		close(s.drainDone)
		s.drainDone = nil
	}
}

func (s *Speaker) setDrain(d policy.Drain) error {
	s.drain = d
	s.log.Info("drain", "state", d)
	_, err := s.reconcile()
	if err != nil {
		s.poke()
	}
	return err
}
