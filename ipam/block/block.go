// Package block is the arithmetic of address blocks: which address of an api.IPAMBlock is free, who has it, and how
// taking, releasing and cooling down change the block, in exactly the shape that Calico writes. It also knows the order
// in which a node tries the blocks of a pool (Order) and sets of reserved addresses (Reserved).
//
// It is pure: no clock, no I/O, no log; times are passed in. Who may use a block, and how it gets to the datastore, is
// package alloc's business.
package block

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// windowsHandle marks addresses that Calico on a Windows node keeps for the host. They do not make a block occupied.
const windowsHandle = "windows-reserved-ipam-handle"

// Block is an api.IPAMBlock whose content has been checked. Its methods read and change that object in place; none of
// them counts its sequence number on, which is for the one who writes it (Written).
type Block struct {
	*api.IPAMBlock
	cidr netip.Prefix
}

// New is an empty block that belongs to affinity ("host:<node>", "virtual:load-balancer"), claimed now. Sequence
// numbers start at the time, so that those of a block that was deleted and made again never come back.
func New(cidr netip.Prefix, affinity string, now time.Time) Block {
	b := api.NewIPAMBlock(cidr)
	b.Spec.Affinity = &affinity
	claimed := metav1.NewTime(now.Truncate(time.Second))
	b.Spec.AffinityClaimTime = &claimed
	b.Spec.SequenceNumber = uint64(now.UnixNano())
	return Block{b, cidr.Masked()}
}

// Of checks an object from a datastore, which it leaves as it is, and makes its content accessible. The error names the block and what is damaged;
// such a block must not be written.
func Of(b *api.IPAMBlock) (Block, error) {
	damaged := func(format string, args ...any) (Block, error) {
		return Block{}, fmt.Errorf("block %s is damaged: %s; release its addresses, then delete it", b.Spec.CIDR, fmt.Sprintf(format, args...))
	}
	cidr, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil || cidr != cidr.Masked() || cidr.Addr().BitLen()-cidr.Bits() > 16 {
		return damaged("spec.cidr %q of %s is not a block's network", b.Spec.CIDR, b.Name)
	}
	size := 1 << (cidr.Addr().BitLen() - cidr.Bits())
	if len(b.Spec.Allocations) != size {
		return damaged("spec.allocations has %d entries, not %d", len(b.Spec.Allocations), size)
	}
	for o, i := range b.Spec.Allocations {
		if i != nil && (*i < 0 || *i >= len(b.Spec.Attributes)) {
			return damaged("ordinal %d points to attribute %d of %d", o, *i, len(b.Spec.Attributes))
		}
	}
	free := make([]bool, size)
	for _, o := range b.Spec.Unallocated {
		switch {
		case o < 0 || o >= size:
			return damaged("spec.unallocated names ordinal %d of %d", o, size)
		case free[o]:
			return damaged("ordinal %d is in spec.unallocated twice", o)
		case b.Spec.Allocations[o] != nil:
			return damaged("ordinal %d is both allocated and in spec.unallocated", o)
		}
		free[o] = true
	}
	return Block{b, cidr}, nil
}

// Written counts the block's sequence number on. Call it once before each write.
func (b Block) Written() { b.Spec.SequenceNumber++ }

// CIDR is the block's range.
func (b Block) CIDR() netip.Prefix { return b.cidr }

// Size is the number of addresses.
func (b Block) Size() int { return len(b.Spec.Allocations) }

// Affinity is the owner, "host:<node>" or "virtual:<name>", or empty.
func (b Block) Affinity() string {
	if b.Spec.Affinity == nil {
		return ""
	}
	return *b.Spec.Affinity
}

// Owner takes the affinity apart; both are empty if nobody owns the block.
func (b Block) Owner() (api.AffinityType, string) {
	t, node, _ := strings.Cut(b.Affinity(), ":")
	return api.AffinityType(t), node
}

// Disown takes the affinity away. Addresses stay assigned.
func (b Block) Disown() { b.Spec.Affinity, b.Spec.AffinityClaimTime = nil, nil }

// ClaimedBefore tells whether the owner claimed the block before t. Blocks without a claim time are older than any.
func (b Block) ClaimedBefore(t time.Time) bool {
	return b.Spec.AffinityClaimTime == nil || b.Spec.AffinityClaimTime.Time.Before(t)
}

// Free is the number of addresses that can be taken.
func (b Block) Free(reserved Reserved) int {
	n := 0
	for _, o := range b.Spec.Unallocated {
		if !reserved.Contains(b.addr(o)) {
			n++
		}
	}
	return n
}

// Empty tells whether no address is in use. Cooling ones are; those that Windows keeps for its host are not.
func (b Block) Empty() bool {
	for _, i := range b.Spec.Allocations {
		if i == nil {
			continue
		}
		if h := b.Spec.Attributes[*i].HandleID; h == nil || strings.ToLower(*h) != windowsHandle {
			return false
		}
	}
	return true
}

// Allocation is one address that is not free.
type Allocation struct {
	Addr      netip.Addr
	Handle    string            // without trailing garbage; empty if assigned without one
	Owner     map[string]string // keys are api.OwnerNode and so on
	Alternate map[string]string // who takes over after a live migration
	Sequence  uint64            // the block's sequence number when the address was last assigned or released
	Released  time.Time         // not zero while the address cools down; then it has no owner
}

// Cooling tells whether the address was released and waits to be free.
func (a Allocation) Cooling() bool { return !a.Released.IsZero() }

// All yields the addresses that are not free, in order.
func (b Block) All() iter.Seq[Allocation] {
	return func(yield func(Allocation) bool) {
		for o, i := range b.Spec.Allocations {
			if i != nil && !yield(b.allocation(o, *i)) {
				return
			}
		}
	}
}

// Lookup returns what an address of the block is used for; false if it is free or not of this block.
func (b Block) Lookup(a netip.Addr) (Allocation, bool) {
	o, ok := b.ordinal(a)
	if !ok || b.Spec.Allocations[o] == nil {
		return Allocation{}, false
	}
	return b.allocation(o, *b.Spec.Allocations[o]), true
}

// ByHandle returns the addresses assigned under a handle, in order.
func (b Block) ByHandle(handle string) []netip.Addr {
	var out []netip.Addr
	for a := range b.All() {
		if !a.Cooling() && a.Handle == CleanHandle(handle) {
			out = append(out, a.Addr)
		}
	}
	return out
}

func (b Block) allocation(ordinal, index int) Allocation {
	attr := b.Spec.Attributes[index]
	a := Allocation{
		Addr:      b.addr(ordinal),
		Owner:     attr.Owner,
		Alternate: attr.AlternateOwner,
		Sequence:  b.Spec.SequenceNumberForAllocation[key(ordinal)],
	}
	if attr.HandleID != nil {
		a.Handle = CleanHandle(*attr.HandleID)
	}
	if attr.ReleasedAt != nil {
		a.Released = attr.ReleasedAt.Time
	}
	return a
}

// CleanHandle cuts a handle at the first carriage return: old migrations of host-local data stored such handles.
func CleanHandle(handle string) string {
	handle, _, _ = strings.Cut(handle, "\r")
	return handle
}

func (b Block) addr(ordinal int) netip.Addr {
	return numberOf(b.cidr.Addr()).add(number{lo: uint64(ordinal)}).addr(b.cidr.Addr())
}

func (b Block) ordinal(a netip.Addr) (int, bool) {
	if !b.cidr.Contains(a) {
		return 0, false
	}
	return int(numberOf(a).sub(numberOf(b.cidr.Addr())).lo), true
}

// key is an ordinal as sequenceNumberForAllocation spells it.
func key(ordinal int) string { return strconv.Itoa(ordinal) }

// touch notes the block's sequence number for an address that changes.
func (b Block) touch(ordinal int) {
	if b.Spec.SequenceNumberForAllocation == nil {
		b.Spec.SequenceNumberForAllocation = map[string]uint64{}
	}
	b.Spec.SequenceNumberForAllocation[key(ordinal)] = b.Spec.SequenceNumber
}

// unlist takes an ordinal out of the free list.
func (b Block) unlist(ordinal int) {
	b.Spec.Unallocated = slices.DeleteFunc(b.Spec.Unallocated, func(o int) bool { return o == ordinal })
}
