// Package lease keeps addresses that a node holds ahead of need: reserved at typha out of the node's own blocks, lent to
// pods without asking anybody, and settled with typha afterwards. It also remembers which handles are still to be freed,
// so that a pod can end while typha is away.
//
// The decisions are pure and in one place: State and what Records make of it, Core with what to do next. Around them are
// thin drivers: Journal puts records on disk, Pool serves ADD and DEL, Run talks to typha. Package sim drives the same
// core, step by step and crash by crash.
//
// What makes it safe:
//
//   - An address is lent only out of an epoch that typha has confirmed to this journal in this boot of the host. Typha
//     raises the epoch when a journal without one asks, and frees what earlier epochs had not settled. So a node that was
//     restored from an image, or deleted and made again, cannot lend what it no longer owns.
//   - A record is on disk before what it says has any effect outside. What is written lags behind what is known at typha
//     in one way only: a step may have to be repeated, and each can be.
//   - An address whose fate at typha is not known (a call without an answer) is never lent.
//
// It does not know pools' rules, blocks, or datastores: which addresses are fit, typha says (Authority).
package lease

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Class says whom an address may serve. Addresses of one class are alike.
type Class struct {
	Family int    // 4 or 6
	Pools  string // names of pools that a request gave, joined by ","; empty: requests that leave the choice to typha
}

// ClassOf is the class of requests for an address of a family out of the named pools, if any are named.
func ClassOf(family int, pools ...string) Class {
	return Class{Family: family, Pools: strings.Join(pools, ",")}
}

// Names are the pools that requests of the class name.
func (c Class) Names() []string {
	if c.Pools == "" {
		return nil
	}
	return strings.Split(c.Pools, ",")
}

// String is the family, and the pools if there are any: "4", "6 blue,green".
func (c Class) String() string {
	if c.Pools == "" {
		return strconv.Itoa(c.Family)
	}
	return strconv.Itoa(c.Family) + " " + c.Pools
}

// MarshalText writes a class as String does.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (c *Class) UnmarshalText(text []byte) error {
	family, pools, _ := strings.Cut(string(text), " ")
	if family != "4" && family != "6" {
		return fmt.Errorf("class %q has no family", text)
	}
	*c = Class{Family: int(family[0] - '0'), Pools: pools}
	return nil
}

func (c Class) compare(d Class) int {
	return cmp.Or(cmp.Compare(c.Family, d.Family), strings.Compare(c.Pools, d.Pools))
}

// Phase is where an address is in its life.
type Phase string

// The phases, in the order of a life. An address that is settled is the pod's at typha, and no longer in the journal.
const (
	Warm      Phase = "warm"      // reserved, to be lent
	Lent      Phase = "lent"      // a pod has it; typha was not told yet, so that it can come back without a word
	Settling  Phase = "settling"  // a pod has or had it; typha was told, perhaps in vain
	Cooling   Phase = "cooling"   // came back unsettled; warm again after the cool-down
	Returning Phase = "returning" // given back to typha, perhaps in vain
)

// Slot is an address that the node has reserved.
type Slot struct {
	Class      Class             `json:"class"`
	Phase      Phase             `json:"phase"`
	Since      time.Duration     `json:"since"`            // boot time at which the phase began
	Sequence   uint64            `json:"sequence"`         // of its allocation at typha
	Handle     string            `json:"handle,omitempty"` // whose it is, while lent or settling
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Debt is a handle that has addresses at typha, or may have, which are to be freed.
type Debt struct {
	Since time.Duration `json:"since"`          // boot time of the DEL
	Held  bool          `json:"held,omitempty"` // the handle is in use: to be freed when that ends
}

// State is all that outlives a process. It changes by records only.
type State struct {
	Boot     string              `json:"boot"`             // id of the host's boot, to which all times refer
	Epoch    uint64              `json:"epoch"`            // that typha confirmed; 0: none
	Cooldown time.Duration       `json:"cooldown"`         // how long an address rests between two pods
	Slots    map[netip.Addr]Slot `json:"slots"`            // what is reserved
	Debts    map[string]Debt     `json:"debts"`            // what is to be freed, now or when its use ends, by handle
	Before   uint64              `json:"before,omitempty"` // epoch that ended, while there is none
}

// NewState is the state of a node of which nothing is known, in a boot.
func NewState(boot string) State {
	return State{Boot: boot, Slots: map[netip.Addr]Slot{}, Debts: map[string]Debt{}}
}

// Clone copies a state. Attributes are shared: nobody changes them.
func (s State) Clone() State {
	s.Slots, s.Debts = maps.Clone(s.Slots), maps.Clone(s.Debts)
	return s
}

// of returns the addresses of a handle that are in one of some phases, in order.
func (s State) of(handle string, phases ...Phase) (out []netip.Addr) {
	for a, slot := range s.Slots {
		if slot.Handle == handle && slices.Contains(phases, slot.Phase) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// in returns the addresses in a phase, those longest in it first.
func (s State) in(phase Phase) (out []netip.Addr) {
	for a, slot := range s.Slots {
		if slot.Phase == phase {
			out = append(out, a)
		}
	}
	s.sort(out)
	return out
}

// sort orders addresses by how long they have been in their phase.
func (s State) sort(addrs []netip.Addr) {
	slices.SortFunc(addrs, func(x, y netip.Addr) int {
		return cmp.Or(cmp.Compare(s.Slots[x].Since, s.Slots[y].Since), x.Compare(y))
	})
}
