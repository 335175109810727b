package intake

import (
	"sync"
	"time"

	"github.com/muslin-net/muslin/typha/compute"
)

// vanishedFor is how long a secret that was there must be missing to count as missing. Tools that replace one often delete it
// first, and the sessions of a whole cluster should not go down and come up again for that.
const vanishedFor = 10 * time.Second

// vanished passes on what a SecretSource tells, but that a value is gone only after a while.
type vanished struct {
	send func(compute.SecretRef, []byte) error

	mu      sync.Mutex // guards all below, and is held while sending, so that nothing overtakes
	present map[compute.SecretRef]bool
	timers  map[compute.SecretRef]*time.Timer // of those that are gone, and not yet told to be
}

func newVanished(send func(compute.SecretRef, []byte) error) *vanished {
	return &vanished{send: send, present: map[compute.SecretRef]bool{}, timers: map[compute.SecretRef]*time.Timer{}}
}

// tell takes what the source tells.
func (v *vanished) tell(ref compute.SecretRef, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t := v.timers[ref]; t != nil {
		t.Stop()
		delete(v.timers, ref)
	}
	if value != nil || !v.present[ref] {
		v.present[ref] = value != nil
		return v.send(ref, value)
	}
	var own *time.Timer
	own = time.AfterFunc(vanishedFor, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.timers[ref] != own {
			return // it came back meanwhile
		}
		delete(v.timers, ref)
		delete(v.present, ref)
		_ = v.send(ref, nil) // fails only when all ends
	})
	v.timers[ref] = own
	return nil
}

// stop forgets what is waited for.
func (v *vanished) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, t := range v.timers {
		t.Stop()
	}
	clear(v.timers)
}
