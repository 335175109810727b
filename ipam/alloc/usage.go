package alloc

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// Counts are numbers of addresses. An address that is in use and reserved counts as both, so that the others need not add
// up to Total. Addresses that cool down are in use, and so are those that nodes hold ready (Warm).
type Counts struct {
	Total, InUse, Warm, Reserved, Free *big.Int
}

// PoolUsage is how full a pool is.
type PoolUsage struct {
	Name string // empty for blocks that are in no pool
	CIDR netip.Prefix
	Counts
	Blocks []BlockUsage // in address order
}

// BlockUsage is how full a block is.
type BlockUsage struct {
	CIDR     netip.Prefix
	Affinity string // "host:<node>", "virtual:load-balancer", or empty
	Counts
}

// Usage tells how full the pools are, in name order, with their blocks. If there are blocks outside every pool, a last
// entry without a name lists them.
func (a *Allocator) Usage(ctx context.Context) ([]PoolUsage, error) {
	o, err := a.begin(ctx)
	if err != nil {
		return nil, err
	}
	pools, err := a.pools(ctx)
	if err != nil {
		return nil, err
	}
	reserved, err := a.reserved(ctx)
	if err != nil {
		return nil, err
	}
	blocks, _, err := o.blocks(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(blocks, func(x, y block.Block) int { return x.CIDR().Compare(y.CIDR()) })
	return usageOf(pools, blocks, reserved), nil
}

// Borrowed is an address used by another node than the one that owns the block.
type Borrowed struct {
	block.Allocation
	Node       string // who uses it
	Block      netip.Prefix
	BlockOwner string // who owns the block; empty for nobody
}

// Borrowed lists the addresses that nodes use out of blocks which are not theirs, in address order.
func (a *Allocator) Borrowed(ctx context.Context) ([]Borrowed, error) {
	o, err := a.begin(ctx)
	if err != nil {
		return nil, err
	}
	blocks, _, err := o.blocks(ctx)
	if err != nil {
		return nil, err
	}
	var out []Borrowed
	for _, b := range blocks {
		kind, name := b.Owner()
		for has := range b.All() {
			user := has.Owner[api.OwnerNode]
			if user == "" || (user == name && kind == api.AffinityHost) {
				continue
			}
			out = append(out, Borrowed{Allocation: has, Node: user, Block: b.CIDR(), BlockOwner: name})
		}
	}
	slices.SortFunc(out, func(x, y Borrowed) int { return x.Addr.Compare(y.Addr) })
	return out, nil
}

// Address tells who has an address. It fails with ErrNotAssigned, or ErrCooling for a short while after a release.
func (a *Allocator) Address(ctx context.Context, addr netip.Addr) (block.Allocation, error) {
	o, err := a.begin(ctx)
	if err != nil {
		return block.Allocation{}, err
	}
	addr = addr.Unmap().WithZone("")
	b, err := o.blockOf(ctx, addr)
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return block.Allocation{}, err
	}
	has, ok := block.Allocation{}, false
	if err == nil {
		has, ok = b.Lookup(addr)
	}
	switch {
	case !ok:
		return has, fmt.Errorf("%s %w", addr, ErrNotAssigned)
	case has.Cooling():
		return has, fmt.Errorf("%s %w until %s", addr, ErrCooling, has.Released.Add(o.cooldown()).UTC().Format("15:04:05 UTC"))
	}
	return has, nil
}

// blockOf reads the block of an address: that of its pool, else the one that a search finds.
func (o op) blockOf(ctx context.Context, addr netip.Addr) (block.Block, error) {
	pools, err := o.pools(ctx)
	if err != nil {
		return block.Block{}, err
	}
	if p, ok := containing(pools, addr); ok {
		if b, err := o.block(ctx, p.blockOf(addr)); !errors.Is(err, datastore.ErrNotFound) {
			return b, err
		}
	}
	all, _, err := o.blocks(ctx)
	if err != nil {
		return block.Block{}, err
	}
	i := slices.IndexFunc(all, func(b block.Block) bool { return b.CIDR().Contains(addr) })
	if i < 0 {
		return block.Block{}, datastore.ErrNotFound
	}
	return all[i], nil
}
