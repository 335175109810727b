package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/datastore"
)

// ReleaseAffinity ends a node's affinity to one block. With mustBeEmpty a block that has addresses in use is left alone
// (ErrNotEmpty); without, it stays without an owner. A block that is not the node's is no error.
func (a *Allocator) ReleaseAffinity(ctx context.Context, node string, cidr netip.Prefix, mustBeEmpty bool) error {
	o, err := a.begin(ctx)
	if err != nil {
		return err
	}
	return ignoreGone(o.disown(ctx, hostOwner(node), cidr.Masked(), terms{mustBeEmpty: mustBeEmpty}))
}

// ReleaseNode ends all affinities of a node, of both families. It frees no addresses: blocks that still have some stay
// without an owner, unless mustBeEmpty, when they are left alone and the error says so.
func (a *Allocator) ReleaseNode(ctx context.Context, node string, mustBeEmpty bool) error {
	return a.releaseAll(ctx, func(who owner, _ netip.Prefix) bool { return who == hostOwner(node) }, mustBeEmpty)
}

// ReleasePool ends all affinities to blocks of a pool, of whatever owner. It frees no addresses.
func (a *Allocator) ReleasePool(ctx context.Context, pool netip.Prefix) error {
	return a.releaseAll(ctx, func(_ owner, cidr netip.Prefix) bool { return pool.Overlaps(cidr) }, false)
}

// releaseAll ends the chosen affinities, those that blocks name included: a process that died may have left a block with
// an owner but no affinity. It goes on after a failure and joins the errors.
func (a *Allocator) releaseAll(ctx context.Context, choose func(owner, netip.Prefix) bool, mustBeEmpty bool) error {
	o, err := a.begin(ctx)
	if err != nil {
		return err
	}
	all, err := o.allAffinities(ctx)
	if err != nil {
		return err
	}
	var errs []error
	try := func(cidr netip.Prefix, err error) {
		if err = ignoreGone(err); err != nil {
			errs = append(errs, fmt.Errorf("block %s: %w", cidr, err))
		}
	}
	for _, claim := range all {
		if choose(claim.who, claim.cidr) {
			try(claim.cidr, o.disown(ctx, claim.who, claim.cidr, terms{mustBeEmpty: mustBeEmpty}))
		}
	}
	blocks, _, err := o.blocks(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, b := range blocks {
		kind, name := b.Owner()
		if who := (owner{kind, name}); name != "" && choose(who, b.CIDR()) {
			try(b.CIDR(), o.disownOrphan(ctx, who, b.CIDR(), mustBeEmpty))
		}
	}
	return errors.Join(errs...)
}

// disownOrphan takes the owner from a block to which there is no affinity. Claims write the affinity first, so a block read
// before its affinity was found missing has none, or is written anew by the claim that is making one.
func (o op) disownOrphan(ctx context.Context, who owner, cidr netip.Prefix, mustBeEmpty bool) error {
	return retry(ctx, fmt.Sprintf("take block %s from %s", cidr, who), func() error {
		b, err := o.block(ctx, cidr)
		if err != nil || b.Affinity() != who.String() {
			return err
		}
		if mustBeEmpty && !b.Empty() {
			return nil // said already, when its affinity was looked at
		}
		err = o.disown(ctx, who, cidr, terms{mustBeEmpty: mustBeEmpty})
		if errors.Is(err, datastore.ErrNotFound) {
			err = o.dropOwner(ctx, b)
		}
		return err
	})
}

// ignoreGone drops errors that say that there is nothing to release.
func ignoreGone(err error) error {
	if errors.Is(err, errTaken) || errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return err
}
