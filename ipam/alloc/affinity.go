package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// errTaken says that a block belongs to somebody else.
var errTaken = errors.New("block is claimed by another node")

// claim makes a block the owner's, creating it if there is none, and returns it. errTaken if it is another's.
func (o op) claim(ctx context.Context, who owner, cidr netip.Prefix) (b block.Block, err error) {
	err = retry(ctx, fmt.Sprintf("claim block %s for %s", cidr, who), func() error {
		aff, err := o.pending(ctx, who, cidr)
		if err != nil {
			return err
		}
		b, err = o.owned(ctx, who, aff, cidr)
		return err
	})
	return b, err
}

// pending returns an affinity that announces the claim: a new one, or the one that is there. One that is being deleted
// is turned back into a claim.
func (o op) pending(ctx context.Context, who owner, cidr netip.Prefix) (*api.BlockAffinity, error) {
	aff := api.NewBlockAffinity(who.kind, who.name, cidr, api.AffinityPending)
	err := o.create(ctx, aff)
	if err == nil || !errors.Is(err, datastore.ErrExists) {
		return aff, err
	}
	if aff, err = o.affinity(ctx, who, cidr); err != nil {
		return nil, moved(err)
	}
	return aff, o.markPending(ctx, aff)
}

func (o op) markPending(ctx context.Context, aff *api.BlockAffinity) error {
	if confirmed(aff) || aff.Spec.State == api.AffinityPending {
		return nil
	}
	aff.Spec.State = api.AffinityPending
	return o.update(ctx, aff)
}

// confirmed tells whether a claim is complete; in old data the state is empty.
func confirmed(aff *api.BlockAffinity) bool {
	return aff.Spec.State == api.AffinityConfirmed || aff.Spec.State == ""
}

// owned returns the block of an affinity, and finishes the claim if the affinity is not confirmed. A block that does not
// exist is created. If the block is another's, the affinity is removed and the error is errTaken.
func (o op) owned(ctx context.Context, who owner, aff *api.BlockAffinity, cidr netip.Prefix) (block.Block, error) {
	b, err := o.existing(ctx, who, aff, cidr)
	if errors.Is(err, errNoBlock) {
		return o.createBlock(ctx, who, aff, cidr)
	}
	return b, err
}

// errNoBlock says that an affinity's block does not exist.
var errNoBlock = errors.New("the block of the affinity does not exist")

// existing is owned, but fails with errNoBlock instead of creating a block.
func (o op) existing(ctx context.Context, who owner, aff *api.BlockAffinity, cidr netip.Prefix) (block.Block, error) {
	b, err := o.block(ctx, cidr)
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return block.Block{}, errNoBlock
	case err != nil:
		return block.Block{}, err
	case b.Affinity() != who.String():
		return block.Block{}, o.abandon(ctx, aff, b)
	case confirmed(aff):
		return b, nil
	}
	// Somebody died between the block and the confirmation, or is releasing the block. Writing both anew makes every
	// write fail that another process still has in hand.
	if err := o.markPending(ctx, aff); err != nil {
		return block.Block{}, err
	}
	if err := o.write(ctx, b, nil); err != nil {
		return block.Block{}, err
	}
	return b, o.confirm(ctx, who, aff, cidr)
}

// createBlock creates the block of an affinity. The caller has seen that no block of another size is in its place.
func (o op) createBlock(ctx context.Context, who owner, aff *api.BlockAffinity, cidr netip.Prefix) (block.Block, error) {
	if aff.Spec.State != api.AffinityPending {
		aff.Spec.State = api.AffinityPending
		if err := o.update(ctx, aff); err != nil {
			return block.Block{}, err
		}
	}
	b := block.New(cidr, who.String(), o.now())
	if err := o.create(ctx, b.IPAMBlock); err != nil {
		if !errors.Is(err, datastore.ErrExists) {
			return block.Block{}, err
		}
		if b, err = o.block(ctx, cidr); err != nil {
			return block.Block{}, moved(err)
		}
		if b.Affinity() != who.String() {
			return block.Block{}, o.abandon(ctx, aff, b)
		}
	}
	return b, o.confirm(ctx, who, aff, cidr)
}

// abandon removes an affinity whose block is another's.
func (o op) abandon(ctx context.Context, aff *api.BlockAffinity, b block.Block) error {
	if err := o.remove(ctx, aff); err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	by := b.Affinity()
	if by == "" {
		by = "nobody"
	}
	return fmt.Errorf("%w: %s belongs to %s", errTaken, b.CIDR(), by)
}

func (o op) confirm(ctx context.Context, who owner, aff *api.BlockAffinity, cidr netip.Prefix) error {
	aff.Spec.State = api.AffinityConfirmed
	err := o.update(ctx, aff)
	if errors.Is(err, errMoved) {
		// Another process of this node may have been faster.
		if now, err := o.affinity(ctx, who, cidr); err == nil && confirmed(now) {
			return nil
		}
	}
	return err
}

// terms say when an affinity may be given up.
type terms struct {
	mustBeEmpty bool    // else a block with addresses stays, without an owner
	sequence    *uint64 // only if the block still has this sequence number
}

// disown ends the owner's affinity to a block: an empty block is deleted, another one loses its owner and keeps its
// addresses. errTaken if the block is another's by now, ErrNotFound if there is no such affinity.
func (o op) disown(ctx context.Context, who owner, cidr netip.Prefix, how terms) error {
	return retry(ctx, fmt.Sprintf("release the affinity of %s to block %s", who, cidr), func() error {
		aff, err := o.affinity(ctx, who, cidr)
		if err != nil {
			return err
		}
		b, err := o.block(ctx, cidr)
		switch {
		case errors.Is(err, datastore.ErrNotFound):
			return o.remove(ctx, aff) // left behind by a claim or a release that died
		case err != nil:
			return err
		case b.Affinity() != "" && b.Affinity() != who.String():
			return o.abandon(ctx, aff, b)
		case how.sequence != nil && *how.sequence != b.Spec.SequenceNumber:
			return o.keep(ctx, who, aff, b, fmt.Errorf("%w: %s was used meanwhile", errTaken, cidr))
		case how.mustBeEmpty && !b.Empty():
			return o.keep(ctx, who, aff, b, fmt.Errorf("%w: %s has addresses in use", ErrNotEmpty, cidr))
		}
		aff.Spec.State = api.AffinityPendingDeletion
		if err := o.update(ctx, aff); err != nil {
			return err
		}
		if err := o.dropOwner(ctx, b); err != nil {
			return err
		}
		if err := o.remove(ctx, aff); err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		o.log.Info("released block", "block", cidr, "owner", who.String())
		return nil
	})
}

// keep ends a release that must not be: if it had begun already (here before a lost race, or by a process that died), the
// claim is made whole again. It returns why.
func (o op) keep(ctx context.Context, who owner, aff *api.BlockAffinity, b block.Block, why error) error {
	if aff.Spec.State == api.AffinityPendingDeletion && b.Affinity() == who.String() {
		if _, err := o.owned(ctx, who, aff, b.CIDR()); err != nil {
			return errors.Join(why, err)
		}
	}
	return why
}

// dropOwner deletes an empty block, and takes the owner from another one.
func (o op) dropOwner(ctx context.Context, b block.Block) error {
	if b.Empty() {
		if err := o.remove(ctx, b.IPAMBlock); err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		return nil
	}
	b.Disown()
	return o.write(ctx, b, nil)
}
