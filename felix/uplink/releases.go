package uplink

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/muslin-net/muslin/felix/store"
)

// Failed releases are tried again this often.
const retryRelease = 2 * time.Second

// Releases frees the addresses of handles, in the background and durably: a handle stays on disk until typha has freed it.
type Releases struct {
	free    func(ctx context.Context, handle string) error
	records *store.Dir[Release]
	log     *slog.Logger
	poke    chan struct{}

	mu      sync.Mutex // guards pending; held while one handle is being freed, so that Cancel waits for that
	pending map[string]Release
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

// Add queues a handle; it is on disk when Add returns.
func (r *Releases) Add(handle string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	release := Release{Handle: handle}
	if err := r.records.Save(handle, release); err != nil {
		return err
	}
	r.pending[handle] = release
	select {
	case r.poke <- struct{}{}:
	default:
	}
	return nil
}

// Cancel takes a handle back that is to be used again. A release that is under way is waited for.
func (r *Releases) Cancel(_ context.Context, handle string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
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

// freeAll tries every handle once and tells whether any is left.
func (r *Releases) freeAll(ctx context.Context) (left bool) {
	r.mu.Lock()
	handles := make([]string, 0, len(r.pending))
	for h := range r.pending {
		handles = append(handles, h)
	}
	r.mu.Unlock()
	for _, h := range handles {
		if err := r.freeOne(ctx, h); err != nil {
			r.log.Info("addresses are freed later", "handle", h, "error", err)
			left = true
		}
	}
	return left
}

func (r *Releases) freeOne(ctx context.Context, handle string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.pending[handle]; !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := r.free(ctx, handle); err != nil {
		return err
	}
	delete(r.pending, handle)
	return r.records.Delete(handle)
}
