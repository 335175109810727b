package lease

import (
	"context"
	"errors"
	"time"
)

const (
	callTime     = 10 * time.Second // one call's, at most
	freeParallel = 8
	gather       = 200 * time.Millisecond // that pods are started or ended in, before typha is told of all at once
	diskRetry    = 5 * time.Second
)

// Run does what is to be done with typha, one task after the other, until ctx ends.
func (p *Pool) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.rush:
		case <-p.poke:
			// A burst of pods is told in few calls. What comes meanwhile pokes in vain: all is looked at.
			p.gather(ctx)
		case <-timer.C:
		}
		timer.Reset(p.work(ctx))
	}
}

// gather waits for more to come, unless somebody waits for what there is.
func (p *Pool) gather(ctx context.Context) {
	t := time.NewTimer(gather)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.rush:
	case <-ctx.Done():
	}
}

// work carries tasks out until there is none, and returns when to look again.
func (p *Pool) work(ctx context.Context) time.Duration {
	for ctx.Err() == nil {
		p.mu.Lock()
		now := p.cfg.now()
		t, records, wake := p.core.Next(now)
		number := p.journal.Append(records)
		p.mu.Unlock()
		if t == nil {
			return max(wake-now, gather)
		}
		if !p.carry(ctx, t, number, len(records) > 0) {
			return diskRetry
		}
	}
	return 0
}

// carry carries a task out with all that follows from it. It returns false if the disk does not take what must be on it
// before: then typha was told nothing.
func (p *Pool) carry(ctx context.Context, t *Task, number uint64, write bool) bool {
	for t != nil {
		var answer Answer
		taken := true
		if write {
			if err := p.journal.Wait(number); err != nil {
				p.cfg.Log.Error("typha is not told before the journal can be written", "task", t.Kind, "error", err)
				answer.Err, taken = err, false
			}
		}
		if taken {
			call, cancel := context.WithTimeout(ctx, callTime)
			answer = Do(call, p.cfg.Typha, t, freeParallel)
			cancel()
			p.tell(t, answer)
		}
		p.mu.Lock()
		records, next, lost := p.core.Done(p.cfg.now(), t, answer)
		number, write = p.journal.Append(records), len(records) > 0
		switch t.Kind {
		case DoFree:
			close(p.changed)
			p.changed = make(chan struct{})
		case DoReserve:
			close(p.filled)
			p.filled = make(chan struct{})
		}
		p.mu.Unlock()
		for _, l := range lost {
			p.cfg.Log.Error("a pod's address is another's now, so the pod loses its network; delete the pod, so that it is made anew",
				"handle", l.Handle, "address", l.Addr, "reason", l.Reason)
			p.cfg.Lost(l)
		}
		if !taken {
			return false
		}
		if t = next; t == nil && write {
			if err := p.journal.Wait(number); err != nil { // it is in memory, and repeated by whoever reads an older journal
				p.cfg.Log.Warn("what typha answered is not on the disk", "error", err)
			}
		}
	}
	return true
}

// tell logs what went wrong, or is not for every day.
func (p *Pool) tell(t *Task, answer Answer) {
	log := p.cfg.Log.With("task", t.Kind, "epoch", t.Epoch)
	switch {
	case errors.Is(answer.Err, ErrShort):
		log.Debug("no addresses to reserve", "class", t.Class.String(), "count", t.Count, "error", answer.Err)
	case errors.Is(answer.Err, ErrStale):
		log.Warn("the epoch of the journal of addresses has ended; a new one begins", "error", answer.Err)
	case answer.Err != nil:
		log.Info("typha is asked again later", "error", answer.Err)
	case t.Kind == DoEnter:
		log.Info("a new epoch of the journal of addresses", "new", answer.Review.Epoch, "claims", len(t.Claims))
	case t.Kind == DoReserve:
		log.Debug("addresses reserved", "class", t.Class.String(), "addresses", addrsOf(answer.Addrs))
	case t.Kind == DoReturn:
		log.Debug("addresses given back", "addresses", addrsOf(t.Addrs))
	}
	for a, reason := range answer.Refused {
		log.Warn("an address that a pod has is not reserved for it at typha", "address", a, "reason", reason)
	}
	for h, err := range answer.Failures {
		log.Info("addresses are freed later", "handle", h, "error", err)
	}
}
