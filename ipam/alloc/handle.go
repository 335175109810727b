package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func (s store) handle(ctx context.Context, id string) (*api.IPAMHandle, error) {
	return get[*api.IPAMHandle](ctx, s.ds, api.Key{Kind: kindHandle, Name: id})
}

// remembered are handles or blocks as this process wrote them last. Whatever is done to one ends in a compare-and-swap, so that one
// which somebody else has written since costs a lost race and nothing else. One that is taken is nobody else's to change.
type remembered[T api.Object] struct {
	most int

	mu  sync.Mutex // guards all
	all map[string]T
}

// How many are remembered at most: handles of somewhat more pods than come and go at a time, and blocks, which are large, of nodes on
// which they do.
const (
	mostHandles = 4096
	mostBlocks  = 256
)

func newRemembered[T api.Object](most int) *remembered[T] {
	return &remembered[T]{most: most, all: map[string]T{}}
}

func (r *remembered[T]) take(id string) (o T, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok = r.all[id]
	delete(r.all, id)
	return o, ok
}

func (r *remembered[T]) keep(id string, o T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other := range r.all {
		if len(r.all) < r.most {
			break
		}
		delete(r.all, other)
	}
	r.all[id] = o
}

// changeHandle changes a handle until nobody was faster. change gets what is stored, nil if nothing is, and returns what to do with
// it: what of create, update and remove.
func (o op) changeHandle(ctx context.Context, id, what string, isNew bool, change func(*api.IPAMHandle) (*api.IPAMHandle, func(context.Context, api.Object) error)) error {
	first := true
	return retry(ctx, what, func() error {
		var h *api.IPAMHandle
		if first {
			h, _ = o.handles.take(id)
		}
		if h == nil && (!first || !isNew) {
			var err error
			if h, err = o.handle(ctx, id); err != nil && !errors.Is(err, datastore.ErrNotFound) {
				return err
			}
		}
		first = false
		h, write := change(h)
		if write == nil {
			return nil
		}
		if err := write(ctx, h); err != nil {
			return err
		}
		if len(h.Spec.Block) > 0 {
			o.handles.keep(id, h)
		}
		return nil
	})
}

// increment notes that a handle is about to get n addresses in a block. One that is thought to be new is made without a look
// whether it is there.
func (o op) increment(ctx context.Context, id string, cidr netip.Prefix, n int, isNew bool) error {
	err := o.changeHandle(ctx, id, fmt.Sprintf("count handle %s up", id), isNew, func(h *api.IPAMHandle) (*api.IPAMHandle, func(context.Context, api.Object) error) {
		write := o.update
		if h == nil {
			h, write = api.NewIPAMHandle(id), o.create
		}
		if h.Spec.Block == nil {
			h.Spec.Block = map[string]int{}
		}
		h.Spec.Block[cidr.String()] += n
		return h, write
	})
	if err != nil {
		return fmt.Errorf("failed to increment handle %s: %w", id, err)
	}
	return nil
}

// decrement notes that a handle has n addresses less in a block; without any left the handle is deleted. It gets time
// enough even if the request has none left. Failing is no reason to fail the request: the count is too high then, which
// is allowed.
func (o op) decrement(ctx context.Context, id string, cidr netip.Prefix, n int) {
	ctx, cancel := forCleanup(ctx)
	defer cancel()
	err := o.changeHandle(ctx, id, fmt.Sprintf("count handle %s down", id), false, func(h *api.IPAMHandle) (*api.IPAMHandle, func(context.Context, api.Object) error) {
		if h == nil {
			return nil, nil
		}
		if h.Spec.Block[cidr.String()] -= n; h.Spec.Block[cidr.String()] <= 0 {
			delete(h.Spec.Block, cidr.String())
		}
		if len(h.Spec.Block) == 0 {
			return h, o.remove
		}
		return h, o.update
	})
	if err != nil {
		o.log.Warn("handle counts too many addresses", "handle", id, "block", cidr, "surplus", n, "error", err)
	}
}
