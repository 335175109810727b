package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// parallel is how many blocks one call works on at a time.
const parallel = 8

// Release releases addresses and returns those that were not assigned, in order, which is no error. Addresses of one
// block are released together or, with a *block.ConflictError, not at all; blocks do not depend on each other, and the
// error joins what failed.
func (a *Allocator) Release(ctx context.Context, requests ...block.Release) (unknown []netip.Addr, err error) {
	if len(requests) == 0 {
		return nil, nil
	}
	o, err := a.informed().begin(ctx)
	if err != nil {
		return nil, err
	}
	blocks, unknown, err := o.groupByBlock(ctx, requests)
	if err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.SetLimit(parallel)
	results, errs := make([][]netip.Addr, len(blocks)), make([]error, len(blocks))
	for i, in := range blocks {
		g.Go(func() error {
			results[i], errs[i] = o.releaseFrom(ctx, in)
			return nil
		})
	}
	_ = g.Wait() // the goroutines report through errs, so that one failure does not hide another
	for _, r := range results {
		unknown = append(unknown, r...)
	}
	slices.SortFunc(unknown, netip.Addr.Compare)
	return unknown, errors.Join(errs...)
}

// group is what is to be released from one block.
type group struct {
	cidr     netip.Prefix
	requests []block.Release
	searched bool // the block was found by a search
}

// groupByBlock finds the block of each address by the pool it is in, enabled or not. Addresses outside every pool are
// looked for in all blocks; those that are in none are not assigned.
func (o op) groupByBlock(ctx context.Context, requests []block.Release) (groups []group, unknown []netip.Addr, err error) {
	pools, err := o.pools(ctx)
	if err != nil {
		return nil, nil, err
	}
	var stray []block.Release
	groups = groupBy(requests, func(r block.Release) (netip.Prefix, bool) {
		p, ok := containing(pools, r.Addr)
		if !ok {
			stray = append(stray, r)
			return netip.Prefix{}, false
		}
		return p.blockOf(r.Addr), true
	})
	more, unknown, err := o.groupBySearch(ctx, stray)
	return append(groups, more...), unknown, err
}

// groupBySearch finds the block of each address among all blocks.
func (o op) groupBySearch(ctx context.Context, requests []block.Release) (groups []group, unknown []netip.Addr, err error) {
	if len(requests) == 0 {
		return nil, nil, nil
	}
	all, _, err := o.blocks(ctx)
	if err != nil {
		return nil, nil, err
	}
	groups = groupBy(requests, func(r block.Release) (netip.Prefix, bool) {
		i := slices.IndexFunc(all, func(b block.Block) bool { return b.CIDR().Contains(r.Addr) })
		if i < 0 {
			unknown = append(unknown, r.Addr)
			return netip.Prefix{}, false
		}
		return all[i].CIDR(), true
	})
	return groups, unknown, nil
}

// groupBy collects the requests of each block; where tells the block, or that there is none.
func groupBy(requests []block.Release, where func(block.Release) (netip.Prefix, bool)) []group {
	var groups []group
	for _, r := range requests {
		r.Addr = r.Addr.Unmap().WithZone("")
		cidr, ok := where(r)
		if !ok {
			continue
		}
		i := slices.IndexFunc(groups, func(g group) bool { return g.cidr == cidr })
		if i < 0 {
			i, groups = len(groups), append(groups, group{cidr: cidr})
		}
		groups[i].requests = append(groups[i].requests, r)
	}
	return groups
}

// releaseFrom releases addresses of one block. If it does not exist, the addresses may be in blocks of another size, from
// an earlier pool.
func (o op) releaseFrom(ctx context.Context, in group) (unknown []netip.Addr, err error) {
	err = retry(ctx, fmt.Sprintf("release addresses of block %s", in.cidr), func() error {
		unknown, err = o.tryReleaseFrom(ctx, in)
		return err
	})
	return unknown, err
}

// tryReleaseFrom is releaseFrom, but fails with errMoved if the block came to be while it was looked for.
func (o op) tryReleaseFrom(ctx context.Context, in group) (unknown []netip.Addr, err error) {
	exists := false
	err = o.releaseWith(ctx, in.cidr, block.Block{}, func(b block.Block) (map[string]int, error) {
		if exists = b.IPAMBlock != nil; !exists {
			return nil, nil
		}
		done, err := b.Release(in.requests, o.now(), o.cooldown())
		unknown = done.Unknown
		if err != nil || !done.Any {
			return nil, err
		}
		return done.ByHandle, nil
	})
	if exists || err != nil {
		return unknown, err
	}
	groups, unknown, err := o.groupBySearch(ctx, in.requests)
	if slices.ContainsFunc(groups, func(other group) bool { return other.cidr == in.cidr }) {
		return nil, fmt.Errorf("%w: block %s was made just now", errMoved, in.cidr)
	}
	for _, other := range groups {
		more, failed := o.releaseFrom(ctx, other)
		unknown, err = append(unknown, more...), errors.Join(err, failed)
	}
	return unknown, err
}

// releaseWith runs a release on a block and writes what comes of it: the block, then the handles by the counts that
// release returns (nil: nothing was released), then the affinity if it has no reason any more. release gets the zero
// Block if there is none. read is the block if it was just read, else the zero one.
func (o op) releaseWith(ctx context.Context, cidr netip.Prefix, read block.Block, release func(block.Block) (map[string]int, error)) error {
	var b block.Block
	var counts map[string]int
	err := retry(ctx, fmt.Sprintf("release addresses of block %s", cidr), func() error {
		var err error
		if b, read = read, (block.Block{}); b.IPAMBlock == nil {
			b, err = o.block(ctx, cidr)
		}
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		if counts, err = release(b); err != nil || counts == nil {
			return err
		}
		if b.Empty() && b.Affinity() == "" {
			return o.remove(ctx, b.IPAMBlock)
		}
		return o.write(ctx, b, nil)
	})
	if err != nil || counts == nil {
		return err
	}
	for handle, n := range counts {
		o.decrement(ctx, handle, cidr, n)
	}
	if err := o.dropIfUnselected(ctx, b); err != nil {
		o.log.Warn("could not give up a block of a pool that does not select its node", "block", cidr, "error", err)
	}
	return nil
}

// dropIfUnselected gives up an empty block whose pool does not select the owner any more.
func (o op) dropIfUnselected(ctx context.Context, b block.Block) error {
	kind, node := b.Owner()
	if kind != api.AffinityHost || !b.Empty() {
		return nil
	}
	pools, err := o.pools(ctx)
	if err != nil {
		return err
	}
	p, ok := containing(enabled(pools), b.CIDR().Addr())
	if !ok || p.nodes == nil {
		return nil
	}
	labels, err := o.nodeLabels(ctx, node)
	if err != nil || p.selectsNode(labels) {
		return err
	}
	return o.disown(ctx, owner{kind, node}, b.CIDR(), terms{mustBeEmpty: true})
}

// fence is what a release counts down that found nothing of a handle in a block for which the handle counts: the block is written all
// the same. The write that was to give the handle something may be on its way yet, from a request that was given up; it cannot take
// effect once the block is another revision.
var fence = map[string]int{}

// ReleaseByHandle releases all addresses of a handle and returns them. It fails with datastore.ErrNotFound if there is no
// such handle; those who clean up may ignore that.
func (a *Allocator) ReleaseByHandle(ctx context.Context, handle string) (released []netip.Addr, err error) {
	handle = block.CleanHandle(handle)
	h, err := a.handle(ctx, handle)
	if err != nil {
		return nil, err
	}
	o, err := a.informed().begin(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, cidr := range handleBlocks(h) {
		var gone []netip.Addr
		err := o.releaseWith(ctx, cidr, block.Block{}, func(b block.Block) (map[string]int, error) {
			if b.IPAMBlock == nil {
				return nil, nil
			}
			gone = b.ByHandle(handle)
			if n := b.ReleaseHandle(handle, o.now(), o.cooldown()); n > 0 {
				return map[string]int{handle: n}, nil
			}
			return fence, nil
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		released = append(released, gone...)
	}
	return released, errors.Join(errs...)
}

// handleBlocks are the blocks that a handle names, in order.
func handleBlocks(h *api.IPAMHandle) []netip.Prefix {
	var out []netip.Prefix
	for text := range h.Spec.Block {
		if cidr, err := netip.ParsePrefix(text); err == nil {
			out = append(out, cidr)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
	return out
}

// ByHandle returns the addresses of a handle, each with the prefix length of its block; none if there is no such handle.
func (a *Allocator) ByHandle(ctx context.Context, handle string) (out []netip.Prefix, err error) {
	o, err := a.informed().begin(ctx)
	if err != nil {
		return nil, err
	}
	blocks, _, err := o.held(ctx, []string{handle})
	for _, h := range blocks {
		for _, r := range h.requests {
			out = append(out, sized(r.Addr, h.cidr))
		}
	}
	return out, err
}

// ReleaseHandles releases all addresses of some handles, unless may refuses one of them, in a block with that affinity: then none, with
// that error. Handles without any are left out.
func (a *Allocator) ReleaseHandles(ctx context.Context, may func(has block.Allocation, affinity string) error, handles ...string) (released []netip.Addr, err error) {
	if len(handles) == 0 {
		return nil, nil
	}
	o, err := a.informed().begin(ctx)
	if err != nil {
		return nil, err
	}
	groups, read, err := o.held(ctx, handles)
	if err != nil {
		return nil, err
	}
	for i, g := range groups {
		for _, r := range g.requests {
			has, _ := read[i].Lookup(r.Addr)
			if err := may(has, read[i].Affinity()); err != nil {
				return nil, err
			}
			released = append(released, r.Addr)
		}
	}
	var g errgroup.Group
	g.SetLimit(parallel)
	errs := make([]error, len(groups))
	for i, in := range groups {
		g.Go(func() error {
			errs[i] = o.releaseWith(ctx, in.cidr, read[i], func(b block.Block) (map[string]int, error) {
				if b.IPAMBlock == nil {
					return nil, nil
				}
				done, err := b.Release(in.requests, o.now(), o.cooldown())
				if err == nil && !done.Any {
					return fence, nil
				}
				return done.ByHandle, err
			})
			return nil
		})
	}
	_ = g.Wait() // the goroutines report through errs
	return released, errors.Join(errs...)
}

// held is what releases all addresses of some handles, by block, and the blocks, each of which is read once.
func (o op) held(ctx context.Context, handles []string) (groups []group, read []block.Block, err error) {
	found := make([]*api.IPAMHandle, len(handles))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, handle := range handles {
		g.Go(func() (err error) {
			found[i], err = o.handle(ctx, block.CleanHandle(handle))
			if errors.Is(err, datastore.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	at := map[netip.Prefix]int{}
	for i, h := range found {
		if h == nil {
			continue
		}
		for _, cidr := range handleBlocks(h) {
			n, known := at[cidr]
			if !known {
				b, err := o.block(ctx, cidr)
				if err != nil && !errors.Is(err, datastore.ErrNotFound) {
					return nil, nil, err
				}
				n = len(groups)
				at[cidr], groups, read = n, append(groups, group{cidr: cidr}), append(read, b)
			}
			if read[n].IPAMBlock == nil {
				continue
			}
			handle := block.CleanHandle(handles[i])
			for _, addr := range read[n].ByHandle(handle) {
				groups[n].requests = append(groups[n].requests, block.Release{Addr: addr, Handle: handle})
			}
		}
	}
	return groups, read, nil
}

// Collect writes back every block in which a cool-down is over. Blocks in use are written soon anyway; this serves those
// that nobody touches. It returns how many blocks it wrote.
func (a *Allocator) Collect(ctx context.Context) (int, error) {
	o, err := a.begin(ctx)
	if err != nil {
		return 0, err
	}
	all, err := list[*api.IPAMBlock](ctx, a.ds, kindBlock, "")
	if err != nil {
		return 0, fmt.Errorf("list of blocks: %w", err)
	}
	wrote := 0
	var errs []error
	for _, obj := range all {
		b, err := block.Of(obj)
		if err != nil || obj.Spec.Deleted || !b.Collect(o.now(), o.cooldown()) {
			continue
		}
		if b.Empty() && b.Affinity() == "" {
			err = o.remove(ctx, b.IPAMBlock)
		} else {
			err = o.write(ctx, b, nil)
		}
		switch {
		case err == nil:
			wrote++
		case !errors.Is(err, errMoved): // whoever was faster has collected it too
			errs = append(errs, fmt.Errorf("block %s: %w", b.CIDR(), err))
		}
	}
	return wrote, errors.Join(errs...)
}
