package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// Transfer is an address that changes hands.
type Transfer struct {
	Addr     netip.Addr
	Sequence uint64 // of its allocation; 0: any
	To       block.Owner
}

// Reassign moves an address from the handle that has it to another owner, in one write of its block: a node settles an
// address that it had reserved. Doing so again is no error. It fails with ErrNotAssigned, or with a *block.ConflictError
// if another handle has the address.
func (a *Allocator) Reassign(ctx context.Context, addr netip.Addr, from string, to block.Owner) error {
	refused, err := a.ReassignAll(ctx, from, Transfer{Addr: addr, To: to})
	for _, reason := range refused {
		err = errors.Join(err, reason)
	}
	return err
}

// ReassignAll is Reassign of many, with one write for each block. Those that are not under the handle any more are
// returned, each with what Reassign would fail with; the others change hands all the same.
func (a *Allocator) ReassignAll(ctx context.Context, from string, list ...Transfer) (refused map[netip.Addr]error, err error) {
	refused = map[netip.Addr]error{}
	if len(list) == 0 {
		return refused, nil
	}
	o, err := a.informed().begin(ctx)
	if err != nil {
		return nil, err
	}
	from = block.CleanHandle(from)
	transfers := map[netip.Addr]Transfer{}
	var requests []block.Release
	for _, t := range list {
		t.Addr, t.To.Handle = t.Addr.Unmap().WithZone(""), block.CleanHandle(t.To.Handle)
		transfers[t.Addr] = t
		requests = append(requests, block.Release{Addr: t.Addr})
	}
	groups, unknown, err := o.groupByBlock(ctx, requests)
	if err != nil {
		return nil, err
	}
	for _, addr := range unknown {
		refused[addr] = fmt.Errorf("%s %w", addr, ErrNotAssigned)
	}
	var errs []error
	for len(groups) > 0 {
		g := groups[0]
		groups = groups[1:]
		var of []Transfer
		for _, r := range g.requests {
			of = append(of, transfers[r.Addr])
		}
		err := o.reassign(ctx, g.cidr, from, of, refused)
		if errors.Is(err, datastore.ErrNotFound) && !g.searched { // they may be in blocks of another size, from an earlier pool
			var more []group
			if more, unknown, err = o.groupBySearch(ctx, g.requests); err == nil {
				for _, addr := range unknown {
					refused[addr] = fmt.Errorf("%s %w", addr, ErrNotAssigned)
				}
				for _, m := range more {
					m.searched = true
					groups = append(groups, m)
				}
			}
		}
		errs = append(errs, err)
	}
	return refused, errors.Join(errs...)
}

// reassign moves addresses of one block. Handles are counted up before it is written, all at a time, and down after.
func (o op) reassign(ctx context.Context, cidr netip.Prefix, from string, list []Transfer, refused map[netip.Addr]error) error {
	credit := map[string]int{} // what handles count already and do not have yet
	defer func() {
		for handle, n := range credit {
			if n > 0 {
				o.decrement(ctx, handle, cidr, n)
			}
		}
	}()
	var moved []Transfer
	first := true
	err := retry(ctx, fmt.Sprintf("give addresses of block %s to others", cidr), func() error {
		var b block.Block
		var err error
		old := false
		if first {
			b, old = o.remembered(cidr)
		}
		if first = false; !old {
			b, err = o.block(ctx, cidr)
		}
		if err != nil {
			return err
		}
		moved = nil
		counts := map[string]int{}
		for _, t := range list {
			delete(refused, t.Addr)
			switch need, err := transferable(b, from, t); {
			case err != nil:
				refused[t.Addr] = err
			case need:
				moved = append(moved, t)
				counts[t.To.Handle]++
			}
		}
		switch {
		case old && len(moved) < len(list):
			return fmt.Errorf("%w: block %s, perhaps", errMoved, cidr)
		case len(moved) == 0:
			return nil
		}
		if err := o.count(ctx, cidr, counts, credit); err != nil {
			return err
		}
		sequence := b.Spec.SequenceNumber
		for _, t := range moved {
			if err := b.Reassign(t.Addr, from, t.To); err != nil {
				return err
			}
		}
		err = o.write(ctx, b, func(stored block.Block) bool {
			return !slices.ContainsFunc(moved, func(t Transfer) bool {
				return !holds(stored, []netip.Addr{t.Addr}, t.To.Handle, sequence)
			})
		})
		if errors.Is(err, errUncertain) {
			clear(credit) // the addresses may be theirs: the handles must keep counting them
		}
		if err == nil {
			for handle, n := range counts {
				credit[handle] -= n
			}
		}
		return err
	})
	if err == nil && len(moved) > 0 {
		o.decrement(ctx, from, cidr, len(moved))
	}
	return err
}

// transferable tells whether an address is to change hands; not if the owner has it already.
func transferable(b block.Block, from string, t Transfer) (bool, error) {
	has, ok := b.Lookup(t.Addr)
	switch {
	case !ok || has.Cooling():
		return false, fmt.Errorf("%s %w", t.Addr, ErrNotAssigned)
	case has.Handle == t.To.Handle:
		return false, nil
	case has.Handle != from || t.Sequence != 0 && t.Sequence != has.Sequence:
		asked := block.Release{Addr: t.Addr, Handle: from}
		if t.Sequence != 0 {
			asked.Sequence = &t.Sequence
		}
		return false, &block.ConflictError{Asked: asked, Has: has}
	}
	return true, nil
}

// count counts handles up by what they are about to get and do not count yet.
func (o op) count(ctx context.Context, cidr netip.Prefix, counts, credit map[string]int) error {
	var g errgroup.Group
	g.SetLimit(parallel)
	type counted struct {
		handle string
		n      int
	}
	results := make(chan counted, len(counts))
	for handle, n := range counts {
		more := n - credit[handle]
		if handle == "" || more <= 0 {
			continue
		}
		g.Go(func() error {
			err := o.increment(ctx, handle, cidr, more, true)
			if err == nil {
				results <- counted{handle, more}
			}
			return err
		})
	}
	err := g.Wait()
	close(results)
	for c := range results {
		credit[c.handle] += c.n
	}
	return err
}
