package block

import (
	"fmt"
	"maps"
	"net/netip"

	"github.com/muslin-net/muslin/api"
)

// Owner is what is stored with an address.
type Owner struct {
	Handle     string            // empty for none
	Attributes map[string]string // keys are api.OwnerNode and so on
}

// TakenError says that an address is not free.
type TakenError struct {
	Block netip.Prefix
	By    Allocation
}

// Error names the address, the block and the holder.
func (e *TakenError) Error() string {
	by := "without a handle"
	switch {
	case e.By.Cooling():
		by = "cooling down since its release at " + e.By.Released.UTC().Format("15:04:05") + " UTC"
	case e.By.Handle != "":
		by = "under handle " + e.By.Handle
	}
	if e.By.Purpose() != Unknown && !e.By.Cooling() {
		by += " (" + e.By.Whom() + ")"
	}
	return fmt.Sprintf("address %s is already assigned in block %s, %s; choose another one", e.By.Addr, e.Block, by)
}

// Take assigns up to n free addresses, those freed longest ago first, without reserved ones. It returns fewer if there
// are no more.
func (b Block) Take(n int, owner Owner, reserved Reserved) []netip.Addr {
	var taken []netip.Addr
	left := make([]int, 0, len(b.Spec.Unallocated))
	for _, o := range b.Spec.Unallocated {
		if a := b.addr(o); len(taken) < n && !reserved.Contains(a) {
			b.assign(o, owner)
			taken = append(taken, a)
		} else {
			left = append(left, o)
		}
	}
	b.Spec.Unallocated = left
	return taken
}

// TakeAddr assigns one address, reserved or not. It fails with a *TakenError if the address is in use or cooling down.
func (b Block) TakeAddr(a netip.Addr, owner Owner) error {
	o, ok := b.ordinal(a)
	if !ok {
		return fmt.Errorf("address %s is not in block %s", a, b.cidr)
	}
	if i := b.Spec.Allocations[o]; i != nil {
		return &TakenError{Block: b.cidr, By: b.allocation(o, *i)}
	}
	b.assign(o, owner)
	b.unlist(o)
	return nil
}

// assign gives an ordinal to an owner; taking it off the free list is the caller's part.
func (b Block) assign(ordinal int, owner Owner) {
	b.Spec.Allocations[ordinal] = new(b.attribute(owner))
	b.touch(ordinal)
}

// attribute returns the index of the owner's entry, which all its addresses share, and adds it if there is none.
func (b Block) attribute(owner Owner) int {
	for i, attr := range b.Spec.Attributes {
		if attr.ReleasedAt == nil && len(attr.AlternateOwner) == 0 && maps.Equal(attr.Owner, owner.Attributes) &&
			(attr.HandleID == nil) == (owner.Handle == "") && (attr.HandleID == nil || *attr.HandleID == owner.Handle) {
			return i
		}
	}
	attr := api.AllocationAttribute{Owner: maps.Clone(owner.Attributes)}
	if owner.Handle != "" {
		attr.HandleID = &owner.Handle
	}
	b.Spec.Attributes = append(b.Spec.Attributes, attr)
	return len(b.Spec.Attributes) - 1
}
