package rules

import (
	"context"
	"time"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
)

// lookEvery is how often is looked at what kube-proxy and the host use.
const lookEvery = 15 * time.Second

// Watch follows the kernel by the driver that is in force, and looks at what others use, until ctx ends. It calls wake when
// an Apply is due. It may run once.
func (r *Rules) Watch(ctx context.Context, wake dataplane.Wake) error {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		done, err := r.watchOne(ctx, wake, again.C)
		if done {
			return err
		}
	}
}

// watchOne follows by one driver: until another is in force, or for good.
func (r *Rules) watchOne(ctx context.Context, wake dataplane.Wake, again <-chan time.Time) (done bool, err error) {
	one, stop := context.WithCancel(ctx)
	defer stop()
	driver := r.Driver()
	ended := make(chan error, 1)
	go func() { ended <- driver.Watch(one, wake) }()
	for {
		select {
		case <-r.changed: // perhaps before this watch began
			if r.Driver() == driver {
				continue
			}
			stop()
			if err := <-ended; err != nil { // it was closed under the watch
				r.cfg.Log.Debug("the watch of the former rule driver ended", "error", err)
			}
			return false, nil
		case err := <-ended:
			return r.Driver() == driver, err // or else it was closed under the watch
		case <-again:
			if r.lookAgain(ctx) {
				wake()
			}
		}
	}
}

// lookAgain tells whether another driver is wanted now.
func (r *Rules) lookAgain(ctx context.Context) bool {
	r.mu.Lock()
	s := r.settings
	asks := s.NFTables == desired.Auto || s.NFTables == desired.Avoid && s.Backend == desired.AutoBackend
	r.mu.Unlock()
	if !asks {
		return false
	}
	found := r.probe(ctx, s)
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := r.found.add(found) && choose(r.settings, r.found.counts) != r.choice
	if changed {
		r.refused = nil
	}
	return changed
}
