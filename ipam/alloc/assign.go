package alloc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// assign takes addresses from a block that was just read and writes it. When another writer was faster, the block is read
// again and take decides anew. take may return nothing; then nothing is written. With strictAffinity the block must be
// who's; the zero owner stands for whoever has it.
func (o op) assign(ctx context.Context, b block.Block, who owner, what block.Owner, take func(block.Block) ([]netip.Addr, error)) (got []Taken, err error) {
	cidr := b.CIDR()
	credit := 0 // addresses that the handle counts already, but that are not in the block yet
	defer func() {
		if credit > 0 {
			o.decrement(ctx, what.Handle, cidr, credit)
		}
	}()
	fresh := true
	err = retry(ctx, fmt.Sprintf("assign addresses from block %s", cidr), func() error {
		if !fresh {
			if b, err = o.block(ctx, cidr); err != nil {
				return err
			}
		}
		fresh = false
		if o.cfg.StrictAffinity && who != (owner{}) && b.Affinity() != who.String() {
			return fmt.Errorf("%w: %s belongs to %s, not to %s", ErrStrictAffinity, cidr, orNobody(b.Affinity()), who)
		}
		sequence := b.Spec.SequenceNumber
		taken, err := take(b)
		if err != nil || len(taken) == 0 {
			return err
		}
		if more := len(taken) - credit; what.Handle != "" && more > 0 {
			if err := o.increment(ctx, what.Handle, cidr, more, false); err != nil {
				return err
			}
			credit += more
		}
		err = o.write(ctx, b, func(stored block.Block) bool { return holds(stored, taken, what.Handle, sequence) })
		if errors.Is(err, errUncertain) {
			credit = 0 // the addresses may be ours: the handle must keep counting them
		}
		if err != nil {
			return err
		}
		credit -= min(credit, len(taken))
		for _, a := range taken {
			got = append(got, Taken{Addr: a, Block: cidr, Affinity: b.Affinity(), Sequence: sequence})
		}
		return nil
	})
	return got, err
}

// holds tells whether a block has these addresses under the handle, assigned in the write that followed sequence.
func holds(b block.Block, addrs []netip.Addr, handle string, sequence uint64) bool {
	for _, a := range addrs {
		if has, ok := b.Lookup(a); !ok || has.Handle != handle || has.Sequence != sequence || has.Cooling() {
			return false
		}
	}
	return true
}

func orNobody(affinity string) string {
	if affinity == "" {
		return "nobody"
	}
	return affinity
}

// Specific asks for one address.
type Specific struct {
	Addr       netip.Addr
	Node       string
	Handle     string            // empty for none
	Attributes map[string]string // keys are api.OwnerNode and so on
	Use        api.IPPoolUse     // what for; empty skips the check against the pool's allowedUses
	// Refuse, if set, says why a pool cannot be used for this request.
	Refuse func(*api.IPPool) error
}

// AssignIP assigns one address, which must be in an enabled pool. Selectors, assignmentMode, reservations and the block
// limit do not matter. If the block does not exist it becomes the node's; in another's block the address is borrowed,
// unless strictAffinity forbids it. A *block.TakenError tells that the address is in use or cooling down.
func (a *Allocator) AssignIP(ctx context.Context, r Specific) error {
	o, err := a.begin(ctx)
	if err != nil {
		return err
	}
	r.Addr = r.Addr.Unmap().WithZone("")
	who := hostOwner(r.Node)
	if r.Use == api.UseLoadBalancer {
		who = owner{api.AffinityVirtual, api.VirtualLoadBalancer}
	}
	if who.name == "" {
		return errors.New("must specify the node when assigning an IP")
	}
	all, err := a.pools(ctx)
	if err != nil {
		return err
	}
	p, err := poolOf(all, r.Addr)
	if err != nil {
		return err
	}
	if r.Use != "" && !p.allows(r.Use) {
		return fmt.Errorf("%w: IP address %s is in IP pool %q, which is not allowed for use %q (allowedUses: %v)",
			ErrNoPool, r.Addr, p.Name, r.Use, p.uses())
	}
	if r.Refuse != nil {
		if err := r.Refuse(p.IPPool); err != nil {
			return fmt.Errorf("%w: IP address %s: %w", ErrNoPool, r.Addr, err)
		}
	}
	what := block.Owner{Handle: block.CleanHandle(r.Handle), Attributes: r.Attributes}
	return retry(ctx, fmt.Sprintf("assign %s", r.Addr), func() error {
		b, err := o.blockFor(ctx, who, p, r.Addr)
		if err != nil {
			return err
		}
		_, err = o.assign(ctx, b, who, what, func(b block.Block) ([]netip.Addr, error) {
			return []netip.Addr{r.Addr}, b.TakeAddr(r.Addr, what)
		})
		if errors.Is(err, datastore.ErrNotFound) {
			return moved(err) // the block was released between the two
		}
		return err
	})
}

// poolOf returns the enabled pool that an address is in; the error says which there are, or why it is not enabled.
func poolOf(all []pool, a netip.Addr) (pool, error) {
	p, ok := containing(all, a)
	if !ok {
		var ranges []string
		for _, p := range all {
			if family(p.cidr.Addr()) == family(a) {
				ranges = append(ranges, p.Name+" ("+p.Spec.CIDR+")")
			}
		}
		return p, fmt.Errorf("%w: the provided IP address %s is not in a configured pool; the IPv%d pools are: %s",
			ErrNoPool, a, family(a), cmp.Or(strings.Join(ranges, ", "), "none"))
	}
	if why := p.closed(); why != "" {
		return p, fmt.Errorf("%w: the provided IP address %s is in pool %s, which is not enabled: %s", ErrNoPool, a, p.Name, why)
	}
	return p, nil
}

// blockFor returns the block of an address of a pool, whoever owns it; if there is none, a new one of the owner's.
func (o op) blockFor(ctx context.Context, who owner, p pool, addr netip.Addr) (b block.Block, err error) {
	cidr := p.blockOf(addr)
	err = retry(ctx, fmt.Sprintf("claim block %s for %s", cidr, who), func() error {
		if b, err = o.block(ctx, cidr); !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		all, damaged, err := o.blocks(ctx)
		if err != nil {
			return err
		}
		for _, b = range all {
			if b.CIDR().Contains(addr) {
				return nil // of another size, from an earlier pool
			}
		}
		if indexBlocks(all, damaged, p).overlaps(cidr) {
			return fmt.Errorf("block %s cannot be made: a block of another size, or a damaged one, is in its place; release that one first", cidr)
		}
		b, err = o.claim(ctx, who, cidr)
		if errors.Is(err, errTaken) {
			return fmt.Errorf("%w: %w", errMoved, err)
		}
		return err
	})
	return b, err
}
