package lease

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Op is what a record says.
type Op string

// The operations. Those with addresses are about all of them.
const (
	OpBegin    Op = "begin"    // typha confirmed Epoch: nothing is warm yet
	OpFence    Op = "fence"    // the epoch is over: what is not lent is no longer the node's
	OpReboot   Op = "reboot"   // a new Boot: no pod has lived through it
	OpTerms    Op = "terms"    // addresses rest for Cooldown
	OpStock    Op = "stock"    // reserved: warm addresses of Class
	OpLend     Op = "lend"     // a pod's now, with Handle and Attributes
	OpBack     Op = "back"     // the pod is gone, typha never knew: they cool down
	OpSettle   Op = "settle"   // typha is about to be told
	OpReturn   Op = "return"   // typha is about to get them back
	OpDrop     Op = "drop"     // no longer in this journal's care
	OpOwe      Op = "owe"      // what Handle has at typha is to be freed
	OpHold     Op = "hold"     // but not yet: Handle is in use, and has something at typha
	OpPaid     Op = "paid"     // it was freed
	opSnapshot Op = "snapshot" // the whole state, first in each file
)

// What a record can hold. More is no node's.
const (
	maxHandle   = 1 << 10 // bytes
	maxAddrs    = 1 << 12
	maxAttrs    = 64
	maxCooldown = 24 * time.Hour
)

// Record is one step of a journal's life.
type Record struct {
	Op         Op                `json:"op"`
	Addrs      []netip.Addr      `json:"addrs,omitempty"`
	Sequences  []uint64          `json:"sequences,omitempty"` // of the addresses' allocations
	Class      *Class            `json:"class,omitempty"`
	Handle     string            `json:"handle,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Epoch      uint64            `json:"epoch,omitempty"`
	Boot       string            `json:"boot,omitempty"`
	Cooldown   time.Duration     `json:"cooldown,omitempty"`
	At         time.Duration     `json:"at,omitempty"` // boot time
}

// from says in which phases an operation finds its addresses.
var from = map[Op][]Phase{
	OpLend: {Warm, Cooling}, OpBack: {Lent}, OpSettle: {Lent, Settling}, OpReturn: {Warm, Cooling, Returning},
	OpDrop: {Warm, Cooling, Lent, Settling, Returning},
}

// Apply carries a record out. One that does not fit the state is an error and changes nothing; it means that the journal
// is not what was written.
func (s *State) Apply(r Record) error {
	if err := s.check(r); err != nil {
		return err
	}
	switch r.Op {
	case OpBegin:
		s.fence()
		s.Epoch, s.Before = r.Epoch, 0
	case OpFence:
		s.fence()
	case OpReboot:
		for _, slot := range s.Slots {
			if slot.Handle != "" { // typha may or may not have been told
				s.Debts[slot.Handle] = Debt{}
			}
		}
		for handle := range s.Debts {
			s.Debts[handle] = Debt{}
		}
		clear(s.Slots)
		s.fence()
		s.Boot = r.Boot
	case OpTerms:
		s.Cooldown = r.Cooldown
	case OpStock:
		for i, a := range r.Addrs {
			s.Slots[a] = Slot{Class: *r.Class, Phase: Warm, Since: r.At, Sequence: r.Sequences[i]}
		}
	case OpLend:
		s.each(r, func(slot *Slot) {
			slot.Phase, slot.Since, slot.Handle, slot.Attributes = Lent, r.At, r.Handle, r.Attributes
		})
	case OpBack:
		s.each(r, func(slot *Slot) { slot.Phase, slot.Since, slot.Handle, slot.Attributes = Cooling, r.At, "", nil })
	case OpSettle:
		s.each(r, func(slot *Slot) { slot.Phase = Settling }) // Since stays: it is how long typha does not know
	case OpReturn:
		for i, a := range r.Addrs { // also one that typha says is here
			slot, known := s.Slots[a]
			if !known {
				slot.Class = ClassOf(family(a))
			}
			slot.Phase, slot.Since, slot.Sequence = Returning, r.At, r.Sequences[i]
			s.Slots[a] = slot
		}
	case OpDrop:
		for _, a := range r.Addrs {
			delete(s.Slots, a)
		}
	case OpOwe:
		s.Debts[r.Handle] = Debt{Since: r.At}
	case OpHold:
		s.Debts[r.Handle] = Debt{Since: s.Debts[r.Handle].Since, Held: true}
	case OpPaid:
		delete(s.Debts, r.Handle)
	}
	return nil
}

// fence ends the epoch. Pods keep what was lent to them: it is settled, or claimed, under the next.
func (s *State) fence() {
	for a, slot := range s.Slots {
		if slot.Phase != Lent && slot.Phase != Settling {
			delete(s.Slots, a)
		}
	}
	if s.Epoch != 0 {
		s.Epoch, s.Before = 0, s.Epoch
	}
}

func (s *State) each(r Record, change func(*Slot)) {
	for _, a := range r.Addrs {
		slot := s.Slots[a]
		change(&slot)
		s.Slots[a] = slot
	}
}

func (s *State) check(r Record) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("record %q does not fit: %s", r.Op, fmt.Sprintf(format, args...))
	}
	if len(r.Addrs) > maxAddrs || len(r.Handle) > maxHandle || len(r.Attributes) > maxAttrs {
		return bad("%d addresses, a handle of %d bytes, %d attributes", len(r.Addrs), len(r.Handle), len(r.Attributes))
	}
	if (r.Op == OpStock || r.Op == OpReturn) && len(r.Sequences) != len(r.Addrs) {
		return bad("%d addresses have %d sequence numbers", len(r.Addrs), len(r.Sequences))
	}
	seen := map[netip.Addr]bool{}
	for _, a := range r.Addrs {
		slot, known := s.Slots[a]
		switch {
		case !proper(a) || seen[a]:
			return bad("address %s is no node's, or there twice", a)
		case r.Op == OpStock && known:
			return bad("%s is here already", a)
		case r.Op == OpReturn && !known: // found at typha
		case from[r.Op] != nil && !slices.Contains(from[r.Op], slot.Phase):
			return bad("%s is %q", a, slot.Phase)
		}
		seen[a] = true
	}
	switch r.Op {
	case OpBegin:
		if r.Epoch == 0 {
			return bad("no epoch")
		}
	case OpReboot:
		if r.Boot == "" {
			return bad("no boot")
		}
	case OpTerms:
		if r.Cooldown < 0 || r.Cooldown > maxCooldown {
			return bad("cool-down of %s", r.Cooldown)
		}
	case OpStock:
		if r.Class == nil || s.Epoch == 0 {
			return bad("no class, or no epoch")
		}
		for _, a := range r.Addrs {
			if family(a) != r.Class.Family {
				return bad("%s is not of class %s", a, r.Class)
			}
		}
	case OpLend:
		if r.Handle == "" || s.Epoch == 0 {
			return bad("no handle, or no epoch")
		}
	case OpReturn:
		if s.Epoch == 0 {
			return bad("no epoch")
		}
	case OpOwe, OpHold:
		if r.Handle == "" {
			return bad("no handle")
		}
	case OpPaid:
		if _, known := s.Debts[r.Handle]; !known {
			return bad("handle %q is not to be freed", r.Handle)
		}
	case OpFence, OpBack, OpSettle, OpDrop:
	default:
		return bad("no such operation")
	}
	return nil
}

// proper tells whether an address is written the one way that addresses of pods are.
func proper(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}
