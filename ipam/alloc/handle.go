package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func (s store) handle(ctx context.Context, id string) (*api.IPAMHandle, error) {
	return get[*api.IPAMHandle](ctx, s.ds, api.Key{Kind: kindHandle, Name: id})
}

// increment notes that a handle is about to get n addresses in a block.
func (o op) increment(ctx context.Context, id string, cidr netip.Prefix, n int) error {
	err := retry(ctx, fmt.Sprintf("count handle %s up", id), func() error {
		h, err := o.handle(ctx, id)
		if errors.Is(err, datastore.ErrNotFound) {
			h = api.NewIPAMHandle(id)
			h.Spec.Block[cidr.String()] = n
			return o.create(ctx, h)
		}
		if err != nil {
			return err
		}
		if h.Spec.Block == nil {
			h.Spec.Block = map[string]int{}
		}
		h.Spec.Block[cidr.String()] += n
		return o.update(ctx, h)
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
	err := retry(ctx, fmt.Sprintf("count handle %s down", id), func() error {
		h, err := o.handle(ctx, id)
		if err != nil {
			return err
		}
		if h.Spec.Block[cidr.String()] -= n; h.Spec.Block[cidr.String()] <= 0 {
			delete(h.Spec.Block, cidr.String())
		}
		if len(h.Spec.Block) == 0 {
			return o.remove(ctx, h)
		}
		return o.update(ctx, h)
	})
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		o.log.Warn("handle counts too many addresses", "handle", id, "block", cidr, "surplus", n, "error", err)
	}
}
