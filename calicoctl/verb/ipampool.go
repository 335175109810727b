package verb

import (
	"context"
	"errors"
	"fmt"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
)

// deletePool deletes a pool: first nobody gets addresses of it any more, then nodes give up its blocks. Addresses that are
// in use stay with who has them; their blocks belong to nobody, and go with the last one. Whoever claimed a block while the
// pool went loses it at the end.
func deletePool(ctx context.Context, c datastore.Client, key api.Key) error {
	pool, err := disablePool(ctx, c, key)
	if errors.Is(err, datastore.ErrNotFound) {
		return &datastore.Error{Op: "delete", Key: key, Reason: datastore.ErrNotFound}
	}
	if err != nil {
		return err
	}
	a := alloc.New(c, alloc.Options{})
	if err := a.ReleasePool(ctx, pool.Prefix()); err != nil {
		return fmt.Errorf("the pool is disabled, and not deleted, since its blocks cannot be released: %w", err)
	}
	if _, err := c.Delete(ctx, key, datastore.Precondition{UID: string(pool.UID)}); err != nil {
		return err
	}
	return a.ReleasePool(ctx, pool.Prefix())
}

func disablePool(ctx context.Context, c datastore.Client, key api.Key) (*api.IPPool, error) {
	for range conflicts {
		o, err := c.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		pool := o.(*api.IPPool)
		if pool.Spec.Disabled {
			return pool, nil
		}
		pool.Spec.Disabled = true
		if o, err = c.Update(ctx, pool); err == nil {
			return o.(*api.IPPool), nil
		}
		if !errors.Is(err, datastore.ErrConflict) {
			return nil, err
		}
	}
	return nil, errors.New("somebody else changed the pool each time; try again")
}
