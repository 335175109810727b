package block

import (
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// Release asks for one address to be released. With a handle or a sequence number, only if the address still has it:
// what the caller knows may be out of date.
type Release struct {
	Addr     netip.Addr
	Handle   string  // empty: any
	Sequence *uint64 // nil: any
}

// ConflictError says that an address is not what the one who wants it released believes it to be.
type ConflictError struct {
	Asked Release
	Has   Allocation
}

// Error names the address, what was expected and what is there.
func (e *ConflictError) Error() string {
	if e.Asked.Sequence != nil && *e.Asked.Sequence != e.Has.Sequence {
		return fmt.Sprintf("address %s was assigned again since it was looked at: its sequence number is %d, not %d; look it up again",
			e.Asked.Addr, e.Has.Sequence, *e.Asked.Sequence)
	}
	return fmt.Sprintf("address %s belongs to handle %q, not %q; look it up again", e.Asked.Addr, e.Has.Handle, e.Asked.Handle)
}

// Released is what a release did.
type Released struct {
	ByHandle map[string]int // number of addresses released for each handle; those without one are not counted
	Unknown  []netip.Addr   // addresses that were not assigned
	Any      bool           // the block has changed
}

// Release releases addresses, all or (with a *ConflictError) none. An address that is not assigned, or cooling already,
// is no error. A released one cools down, and is free again once cooldown has passed; with none that is at once.
func (b Block) Release(requests []Release, now time.Time, cooldown time.Duration) (Released, error) {
	done := Released{ByHandle: map[string]int{}}
	var ordinals []int
	seen := map[netip.Addr]bool{}
	for _, r := range requests {
		if seen[r.Addr] {
			continue
		}
		seen[r.Addr] = true
		has, ok := b.Lookup(r.Addr)
		if !ok || has.Cooling() {
			done.Unknown = append(done.Unknown, r.Addr)
			continue
		}
		if (r.Sequence != nil && *r.Sequence != has.Sequence) || (r.Handle != "" && CleanHandle(r.Handle) != has.Handle) {
			return Released{}, &ConflictError{Asked: r, Has: has}
		}
		o, _ := b.ordinal(r.Addr)
		ordinals = append(ordinals, o)
		if has.Handle != "" {
			done.ByHandle[has.Handle]++
		}
	}
	if len(ordinals) == 0 {
		return done, nil
	}
	for _, o := range ordinals {
		b.touch(o)
	}
	b.cool(ordinals, now, cooldown)
	done.Any = true
	return done, nil
}

// ReleaseHandle releases all addresses of a handle and returns how many there were.
func (b Block) ReleaseHandle(handle string, now time.Time, cooldown time.Duration) int {
	var ordinals []int
	for _, a := range b.ByHandle(handle) {
		o, _ := b.ordinal(a)
		ordinals = append(ordinals, o)
	}
	if len(ordinals) > 0 {
		b.cool(ordinals, now, cooldown)
	}
	return len(ordinals)
}

// cool marks ordinals as released now, and frees what has cooled down.
func (b Block) cool(ordinals []int, now time.Time, cooldown time.Duration) {
	released := metav1.NewTime(now.Truncate(time.Second))
	if cooldown > 0 && released.Time.Before(now) {
		// Storage keeps whole seconds. Rounded up, a cool-down is never shorter than asked for.
		released.Time = released.Add(time.Second)
	}
	b.Spec.Attributes = append(b.Spec.Attributes, api.AllocationAttribute{ReleasedAt: &released})
	for _, o := range ordinals {
		b.Spec.Allocations[o] = new(len(b.Spec.Attributes) - 1)
	}
	b.Collect(now, cooldown)
}

// Collect frees addresses whose cool-down is over, in ascending order to the end of the free list, and drops attributes
// that nothing uses. It returns whether the block changed. Run it on every block that is read to be changed.
func (b Block) Collect(now time.Time, cooldown time.Duration) bool {
	changed := false
	for o, i := range b.Spec.Allocations {
		if i == nil {
			continue
		}
		if at := b.Spec.Attributes[*i].ReleasedAt; at != nil && now.Sub(at.Time) >= cooldown {
			b.Spec.Allocations[o] = nil
			b.Spec.Unallocated = append(b.Spec.Unallocated, o)
			delete(b.Spec.SequenceNumberForAllocation, key(o))
			changed = true
		}
	}
	return b.compact() || changed
}

// compact keeps the attributes that are in use, and their order. It returns whether there were others.
func (b Block) compact() bool {
	used := make([]bool, len(b.Spec.Attributes))
	for _, i := range b.Spec.Allocations {
		if i != nil {
			used[*i] = true
		}
	}
	index := make([]int, len(used))
	kept := make([]api.AllocationAttribute, 0, len(used))
	for i, attr := range b.Spec.Attributes {
		index[i] = len(kept)
		if used[i] {
			kept = append(kept, attr)
		}
	}
	if len(kept) == len(used) {
		return false
	}
	b.Spec.Attributes = kept
	for o, i := range b.Spec.Allocations {
		if i != nil {
			b.Spec.Allocations[o] = new(index[*i])
		}
	}
	return true
}
