package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// minReclaimAge is how long a block is its claimer's alone, so that two nodes do not take it from each other before
// either has used it.
const minReclaimAge = time.Minute

// find returns the first position, in the node's order, of which the owner can have the block: there is none yet, or it
// is the owner's and has room. If there is no such position, it takes an empty block from another owner. errNoFreeBlock
// if there is none either.
func (s *search) find(ctx context.Context) (netip.Prefix, error) {
	all, damaged, err := s.blocks(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	var empty []block.Block
	for _, p := range s.pools {
		there := indexBlocks(all, damaged, p)
		for position := range s.order(p).Positions(s.reserved) {
			b, exists := there.exact[position]
			switch {
			case !exists && !there.overlaps(position):
				return position, nil
			case !exists || b.Free(s.reserved) == 0:
			case b.Affinity() == s.who.String():
				return position, nil
			case b.Empty() && b.ClaimedBefore(s.now().Add(-minReclaimAge)):
				empty = append(empty, b)
			}
		}
	}
	for _, b := range empty {
		if err := s.reclaim(ctx, b); err != nil {
			if ctx.Err() != nil {
				return netip.Prefix{}, context.Cause(ctx)
			}
			s.log.Debug("could not reclaim an empty block", "block", b.CIDR(), "owner", b.Affinity(), "error", err)
			continue
		}
		return b.CIDR(), nil
	}
	return netip.Prefix{}, errNoFreeBlock
}

// reclaim deletes an empty block of another owner if it is still as it was seen.
func (s *search) reclaim(ctx context.Context, b block.Block) error {
	kind, name := b.Owner()
	err := fmt.Errorf("nobody owns block %s: %w", b.CIDR(), datastore.ErrNotFound)
	if name != "" {
		err = s.disown(ctx, owner{kind, name}, b.CIDR(), terms{mustBeEmpty: true, sequence: &b.Spec.SequenceNumber})
	}
	if errors.Is(err, datastore.ErrNotFound) {
		return s.remove(ctx, b.IPAMBlock)
	}
	return err
}

func (s *search) order(p pool) block.Order { return block.NewOrder(p.cidr, p.bits, s.Node, s.now()) }

// index finds the blocks that are in the way at a position of a pool.
type index struct {
	exact   map[netip.Prefix]block.Block
	blocked map[netip.Prefix]bool // positions that hold a smaller block, of an earlier pool with another size, or a damaged one
	larger  block.Reserved        // larger blocks, likewise
}

func indexBlocks(all []block.Block, damaged []netip.Prefix, p pool) index {
	ix := index{exact: map[netip.Prefix]block.Block{}, blocked: map[netip.Prefix]bool{}}
	var larger []netip.Prefix
	inTheWay := func(cidr netip.Prefix) {
		switch {
		case !cidr.Overlaps(p.cidr):
		case cidr.Bits() >= p.bits:
			ix.blocked[p.blockOf(cidr.Addr())] = true
		default:
			larger = append(larger, cidr)
		}
	}
	for _, b := range all {
		if b.CIDR().Bits() == p.bits {
			ix.exact[b.CIDR()] = b
		} else {
			inTheWay(b.CIDR())
		}
	}
	for _, cidr := range damaged {
		inTheWay(cidr)
	}
	ix.larger = block.NewReserved(larger...)
	return ix
}

// overlaps tells whether a block is in the way that is not that of the position itself.
func (ix index) overlaps(position netip.Prefix) bool {
	return ix.blocked[position] || ix.larger.Contains(position.Addr())
}

// inOrder returns the blocks of a pool in the order in which the node tries positions.
func (s *search) inOrder(all []block.Block, p pool) []block.Block {
	order := s.order(p)
	in := slices.DeleteFunc(slices.Clone(all), func(b block.Block) bool {
		return !p.cidr.Contains(b.CIDR().Addr()) || b.CIDR().Bits() < p.cidr.Bits()
	})
	slices.SortStableFunc(in, func(x, y block.Block) int { return order.Compare(x.CIDR(), y.CIDR()) })
	return in
}
