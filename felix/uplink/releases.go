package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/store"
)

// Failed releases are tried again every retryRelease; one try takes at most releaseTime.
const (
	retryRelease = 2 * time.Second
	releaseTime  = 5 * time.Second
)

// Releases frees the addresses of handles, in the background and durably: a handle stays on disk until typha has freed it.
type Releases struct {
	free    func(ctx context.Context, handle string) error
	records *store.Dir[Release]
	log     *slog.Logger
	poke    chan struct{}

	mu      sync.Mutex // guards the following, and the records on disk
	pending map[string]Release
	busy    string        // handle that is being freed
	freed   chan struct{} // closed when that is over
}

// Release is a handle whose addresses are to be freed.
type Release struct {
	Handle string `json:"handle"`
}

// OpenReleases loads what an earlier felix left to be freed.
func OpenReleases(path string, free func(context.Context, string) error, log *slog.Logger) (*Releases, error) {
	records, err := store.Open[Release](path)
	if err != nil {
		return nil, err
	}
	pending, err := records.Load()
	if err != nil {
		log.Warn("some pending releases cannot be read; garbage collection will free their addresses", "error", err)
	}
	return &Releases{free: free, records: records, log: log, poke: make(chan struct{}, 1), pending: pending}, nil
}

// Add queues a handle; it is on disk when Add returns. If the disk does not take it, it is queued all the same.
func (r *Releases) Add(handle string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	release := Release{Handle: handle}
	r.pending[handle] = release
	select {
	case r.poke <- struct{}{}:
	default:
	}
	return r.records.Save(handle, release)
}

// Cancel takes a handle back that is to be used again. If just this one is being freed, that is waited for; if ctx ends
// before, the handle stays queued.
func (r *Releases) Cancel(ctx context.Context, handle string) error {
	r.mu.Lock()
	busy, freed := r.busy == handle, r.freed
	err := r.forget(handle)
	r.mu.Unlock()
	if !busy {
		return err
	}
	select {
	case <-freed:
		return err
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("the addresses of %s are still being freed: %w", handle, ctx.Err()), r.Add(handle))
	}
}

// forget takes a handle off the queue.
func (r *Releases) forget(handle string) error {
	if _, ok := r.pending[handle]; !ok {
		return nil
	}
	delete(r.pending, handle)
	return r.records.Delete(handle)
}

// Run frees queued handles until ctx ends.
func (r *Releases) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.poke:
		case <-timer.C:
		}
		if r.freeAll(ctx) {
			timer.Reset(retryRelease)
		}
	}
}

// freeAll tries every handle once and tells whether any is left. While typha cannot be reached it tries no further.
func (r *Releases) freeAll(ctx context.Context) (left bool) {
	r.mu.Lock()
	handles := slices.Sorted(maps.Keys(r.pending))
	r.mu.Unlock()
	for _, h := range handles {
		err := r.freeOne(ctx, h)
		if err == nil {
			continue
		}
		r.log.Info("addresses are freed later", "handle", h, "error", err)
		left = true
		if status.Code(err) == codes.Unavailable {
			break
		}
	}
	return left
}

func (r *Releases) freeOne(ctx context.Context, handle string) error {
	r.mu.Lock()
	if _, ok := r.pending[handle]; !ok {
		r.mu.Unlock()
		return nil // cancelled meanwhile
	}
	r.busy, r.freed = handle, make(chan struct{})
	r.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	err := r.free(ctx, handle)

	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.freed)
	r.busy = ""
	if err != nil {
		return err
	}
	return r.forget(handle)
}
