package alloc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// Kinds as the registry names them.
const (
	kindBlock         = "IPAMBlock"
	kindAffinity      = "BlockAffinity"
	kindHandle        = "IPAMHandle"
	kindConfiguration = "IPAMConfiguration"
	kindPool          = "IPPool"
	kindReservation   = "IPReservation"
	kindNode          = "Node"
)

// errMoved is a lost race: the datastore certainly did not take the write, because the object is not as it was read.
var errMoved = errors.New("changed by another writer")

// errUncertain is a write of which nobody can say whether it happened.
var errUncertain = errors.New("the datastore may or may not have done this")

// store reads and writes typed objects.
type store struct{ ds Datastore }

func get[T api.Object](ctx context.Context, ds Datastore, key api.Key) (T, error) {
	obj, err := ds.Get(ctx, key)
	if err != nil {
		var none T
		return none, err
	}
	return obj.(T), nil
}

func list[T api.Object](ctx context.Context, ds Datastore, kind, prefix string) ([]T, error) {
	l, err := ds.List(ctx, kind, datastore.ListOptions{NamePrefix: prefix})
	if err != nil {
		return nil, err
	}
	out := make([]T, len(l.Items))
	for i, o := range l.Items {
		out[i] = o.(T)
	}
	return out, nil
}

// create, update and remove write what was read before; they fail with errMoved if that is no longer what is stored.

func (s store) create(ctx context.Context, o api.Object) error {
	return written(o)(s.ds.Create(ctx, o))
}

func (s store) update(ctx context.Context, o api.Object) error {
	return written(o)(s.ds.Update(ctx, o))
}

func (s store) remove(ctx context.Context, o api.Object) error {
	return moved(datastore.Remove(ctx, s.ds, o))
}

// written carries the new revision over to the object, so that it can be written again.
func written(o api.Object) func(api.Object, error) error {
	return func(stored api.Object, err error) error {
		if err != nil {
			return moved(err)
		}
		o.SetResourceVersion(stored.GetResourceVersion())
		o.SetUID(stored.GetUID())
		o.SetCreationTimestamp(stored.GetCreationTimestamp())
		return nil
	}
}

// moved marks those errors of a write that mean a lost race.
func moved(err error) error {
	for _, lost := range []error{datastore.ErrConflict, datastore.ErrExists, datastore.ErrNotFound} {
		if errors.Is(err, lost) {
			return fmt.Errorf("%w: %w", errMoved, err)
		}
	}
	return err
}

func (s store) affinity(ctx context.Context, who owner, cidr netip.Prefix) (*api.BlockAffinity, error) {
	return get[*api.BlockAffinity](ctx, s.ds, api.Key{Kind: kindAffinity, Name: api.AffinityName(who.kind, who.name, cidr)})
}

// claimed is an affinity's owner and block.
type claimed struct {
	who  owner
	cidr netip.Prefix
}

// allAffinities lists the affinities of all owners.
func (s store) allAffinities(ctx context.Context) ([]claimed, error) {
	all, err := list[*api.BlockAffinity](ctx, s.ds, kindAffinity, "")
	if err != nil {
		return nil, fmt.Errorf("block affinities: %w", err)
	}
	var out []claimed
	for _, aff := range all {
		if kind, node, cidr, err := api.ParseAffinityName(aff.Name); err == nil && !aff.Spec.Deleted {
			out = append(out, claimed{owner{kind, node}, cidr})
		}
	}
	return out, nil
}

// affinities lists what an owner has claimed or is claiming, both families, in listing order.
func (s store) affinities(ctx context.Context, who owner) ([]*api.BlockAffinity, error) {
	all, err := list[*api.BlockAffinity](ctx, s.ds, kindAffinity, string(who.kind)+"/"+who.name+"/")
	if err != nil {
		return nil, fmt.Errorf("block affinities of %s: %w", who, err)
	}
	return all, nil
}

// block reads a block as it is now: with those addresses freed whose cool-down is over.
func (o op) block(ctx context.Context, cidr netip.Prefix) (block.Block, error) {
	obj, err := get[*api.IPAMBlock](ctx, o.ds, api.Key{Kind: kindBlock, Name: api.BlockName(cidr)})
	if err != nil {
		return block.Block{}, err
	}
	return o.open(obj)
}

// remembered is a block as this process wrote it last, if it is known. Nothing is refused because of what it says, and nothing left
// undone: for that the block is read.
func (o op) remembered(cidr netip.Prefix) (block.Block, bool) {
	obj, ok := o.written.take(api.BlockName(cidr))
	if !ok {
		return block.Block{}, false
	}
	b, err := o.open(obj)
	return b, err == nil
}

func (o op) open(obj *api.IPAMBlock) (block.Block, error) {
	b, err := block.Of(obj)
	if err == nil {
		b.Collect(o.now(), o.cooldown())
	}
	return b, err
}

// blocks lists all blocks of the cluster. Damaged ones are logged and only named: nothing can be given out of them, and
// their place cannot be used otherwise.
func (o op) blocks(ctx context.Context) (good []block.Block, damaged []netip.Prefix, err error) {
	all, err := list[*api.IPAMBlock](ctx, o.ds, kindBlock, "")
	if err != nil {
		return nil, nil, fmt.Errorf("list of blocks: %w", err)
	}
	good = make([]block.Block, 0, len(all))
	for _, obj := range all {
		if obj.Spec.Deleted {
			continue
		}
		b, err := o.open(obj)
		if err == nil {
			good = append(good, b)
			continue
		}
		o.log.Warn("leaving out a block", "block", obj.Name, "error", err)
		if cidr, err := netip.ParsePrefix(obj.Name); err == nil {
			damaged = append(damaged, cidr.Masked())
		}
	}
	return good, damaged, nil
}

// write stores a changed block. After errMoved the datastore has not taken it; after errUncertain nobody knows.
//
// An error other than a lost race (a timeout, a broken connection) leaves open whether the write happened. Since it is
// bound to the revision that was read, repeating it does no harm, and settles the question: it succeeds now, or what is
// stored tells whether it had succeeded. landed, if not nil, recognises the change in a block that was written again
// since.
func (o op) write(ctx context.Context, b block.Block, landed func(block.Block) bool) error {
	b.Written()
	err := o.update(ctx, b.IPAMBlock)
	if err == nil {
		o.written.keep(b.Name, b.DeepCopy())
	}
	if err == nil || errors.Is(err, errMoved) {
		return err
	}
	ctx, cancel := forCleanup(ctx)
	defer cancel()
	for range 3 {
		again := o.update(ctx, b.IPAMBlock)
		if again == nil {
			return nil
		}
		if !errors.Is(again, errMoved) {
			continue
		}
		stored, gone := get[*api.IPAMBlock](ctx, o.ds, api.KeyOf(b.IPAMBlock))
		if gone != nil {
			continue
		}
		if same(stored.Spec, b.Spec) {
			b.SetResourceVersion(stored.GetResourceVersion())
			return nil
		}
		if sb, err := block.Of(stored); err == nil && landed != nil && landed(sb) {
			b.SetResourceVersion(stored.GetResourceVersion())
			return nil
		}
		break
	}
	return fmt.Errorf("%w: %w", errUncertain, err)
}

func same(a, b api.IPAMBlockSpec) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
