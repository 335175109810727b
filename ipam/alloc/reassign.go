package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// Reassign moves an address from the handle that has it to another owner, in one write of its block: a node settles an
// address that it had reserved. Doing so again is no error. It fails with ErrNotAssigned, or with a *block.ConflictError
// if another handle has the address.
func (a *Allocator) Reassign(ctx context.Context, addr netip.Addr, from string, to block.Owner) error {
	o, err := a.begin(ctx)
	if err != nil {
		return err
	}
	addr = addr.Unmap().WithZone("")
	from, to.Handle = block.CleanHandle(from), block.CleanHandle(to.Handle)
	b, err := o.blockOf(ctx, addr)
	if errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("%s %w", addr, ErrNotAssigned)
	}
	if err != nil {
		return err
	}
	// Whose block it is does not matter: the address stays where it is.
	moved, err := o.assign(ctx, b, owner{}, to, func(b block.Block) ([]netip.Addr, error) {
		has, ok := b.Lookup(addr)
		switch {
		case !ok || has.Cooling():
			return nil, fmt.Errorf("%s %w", addr, ErrNotAssigned)
		case has.Handle == to.Handle:
			return nil, nil
		}
		return []netip.Addr{addr}, b.Reassign(addr, from, to)
	})
	if err == nil && len(moved) > 0 {
		o.decrement(ctx, from, b.CIDR(), 1)
	}
	return err
}
