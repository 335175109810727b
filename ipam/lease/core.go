package lease

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Terms bound a pool.
type Terms struct {
	Max   int           // addresses kept warm of one class; 0 turns the pool off
	Trust time.Duration // addresses are lent for so long after typha last confirmed the epoch
}

// DefaultTerms are what a node has unless told otherwise. An hour without typha is twice what a node must get over; after
// that somebody may have given up on the node, and given its addresses away.
func DefaultTerms() Terms { return Terms{Max: 64, Trust: time.Hour} }

// Times of a Core, all boot time.
const (
	reviewEvery = 30 * time.Second // that typha is asked what it has for the node
	retryFirst  = time.Second      // before what failed is tried again
	retryLast   = 30 * time.Second
	shortFor    = 2 * time.Minute // that a class is not filled up after its pools had nothing
)

// Bounds of one task.
const (
	maxSettle  = 128
	maxPay     = 32
	maxReserve = 128
)

// Core decides. It is State and what need not outlive the process. Its methods return records that are already part of
// the state; the caller puts them on disk, in the order in which it got them, before it acts on them.
type Core struct {
	State
	Terms Terms

	confirmed time.Duration // when typha confirmed the epoch last
	reviewed  time.Duration // when a review ended last; 0: never, or one is due
	claims    []Claim       // of pods that lived before there was a journal
	unfit     map[netip.Addr]string
	demand    map[Class]*demand
	paying    map[string]bool // debts that are being paid just now
	looked    bool            // this process has asked typha
	present   *uint64         // the node's epoch at typha, which is not this journal's
	retries   map[Kind]retry  // of what failed
}

// retry is when something that failed is tried again.
type retry struct{ wait, after time.Duration }

// Claim is an address that a living pod has, perhaps without typha's knowledge.
type Claim struct {
	Addr       netip.Addr
	Sequence   uint64 // of the reservation; 0: not known
	Handle     string
	Attributes map[string]string
}

// NewCore takes up a state. confirmed is when typha confirmed its epoch last. claims are of pods that live on a node whose
// journal is lost.
func NewCore(s State, terms Terms, now, confirmed time.Duration, claims []Claim) *Core {
	c := &Core{
		State: s, Terms: terms, confirmed: confirmed, claims: claims,
		unfit: map[netip.Addr]string{}, demand: map[Class]*demand{}, paying: map[string]bool{}, retries: map[Kind]retry{},
	}
	for _, slot := range s.Slots {
		if slot.Phase == Warm || slot.Phase == Cooling {
			c.wants(slot.Class, now).target++
		}
	}
	for class, d := range c.demand {
		d.target = min(max(d.target, firstTarget), terms.Max)
		d.low = c.count(class, now)
	}
	return c
}

func (c *Core) do(records ...Record) []Record {
	for _, r := range records {
		if err := c.Apply(r); err != nil {
			panic("lease: " + err.Error()) // a decision that its own state refuses
		}
	}
	return records
}

// Miss says why a request cannot be served; empty: it was.
type Miss string

// The reasons. They are values of a metric's label.
const (
	Off     Miss = "off"     // the pool is turned off, or no epoch was confirmed yet
	Untrust Miss = "untrust" // typha has been silent for too long
	Empty   Miss = "empty"   // no warm address
)

// Lend gives a pod an address of each class, or none and the reason. A handle that was lent them already gets the same.
func (c *Core) Lend(now time.Duration, handle string, attributes map[string]string, classes ...Class) ([]Record, []netip.Addr, Miss) {
	if c.Terms.Max == 0 || c.Epoch == 0 {
		for _, class := range classes {
			c.asked(class, now)
		}
		return nil, nil, Off
	}
	if again := c.of(handle, Lent, Settling); c.cover(again, classes) {
		return nil, again, ""
	}
	if now-c.confirmed > c.Terms.Trust {
		return nil, nil, Untrust
	}
	var addrs []netip.Addr
	for _, class := range classes {
		first := c.asked(class, now)
		if warm := c.warm(class, now); len(warm) > 0 {
			addrs = append(addrs, warm[0])
		} else if !first {
			c.missed(class)
		}
	}
	if len(addrs) < len(classes) {
		return nil, nil, Empty
	}
	records := c.do(Record{Op: OpLend, Addrs: addrs, Handle: handle, Attributes: maps.Clone(attributes), At: now})
	for _, class := range classes {
		c.used(class, now)
	}
	return records, addrs, ""
}

// cover tells whether addresses are one of each class.
func (c *Core) cover(addrs []netip.Addr, classes []Class) bool {
	return len(addrs) > 0 && slices.EqualFunc(addrs, classes, func(a netip.Addr, class Class) bool { return c.Slots[a].Class == class })
}

// Free ends a handle's use of its addresses: of what typha was never told, here and now; of the rest, when typha can be
// told. It needs no leave of anybody.
func (c *Core) Free(now time.Duration, handle string) []Record {
	var records []Record
	c.claims = slices.DeleteFunc(c.claims, func(c Claim) bool { return c.Handle == handle })
	lent := c.of(handle, Lent)
	if len(lent) > 0 {
		records = c.do(Record{Op: OpBack, Addrs: lent, At: now})
	}
	debt, owes := c.Debts[handle]
	switch {
	case owes && !debt.Held:
	case owes, len(lent) == 0: // settled, perhaps settled, or got from typha
		records = append(records, c.do(Record{Op: OpOwe, Handle: handle, At: now})...)
	}
	return records
}

// Clear ends an earlier use of a handle, if there was one of which the end was never told: nobody has its addresses.
func (c *Core) Clear(now time.Duration, handle string) []Record {
	if _, owes := c.Debts[handle]; !owes && len(c.of(handle, Lent, Settling)) == 0 {
		return nil
	}
	return c.Free(now, handle)
}

// Clearing tells whether what a handle has at typha is to be freed, and typha is not known to be away.
func (c *Core) Clearing(now time.Duration, handle string) bool {
	for kind := range c.retries {
		if !c.may(kind, now) {
			return false
		}
	}
	return c.ended(handle)
}

// Reuse takes back what Free put off, since the handle is in use again.
func (c *Core) Reuse(handle string) []Record {
	if debt, owes := c.Debts[handle]; !owes || debt.Held {
		return nil
	}
	return c.do(Record{Op: OpHold, Handle: handle})
}

// Remote notes that a handle is about to get something from typha directly. The process may end before the answer: the next one
// lends the same handle an address, perhaps, and must not take that for all it has.
func (c *Core) Remote(handle string) []Record {
	if _, owes := c.Debts[handle]; owes {
		return nil
	}
	return c.do(Record{Op: OpHold, Handle: handle})
}

// Paying tells whether typha is freeing a handle's addresses at this moment.
func (c *Core) Paying(handle string) bool { return c.paying[handle] }

// Confirmed is when typha confirmed the epoch last, boot time.
func (c *Core) Confirmed() time.Duration { return c.confirmed }

// lendable tells whether an address can be given to a pod now.
func (c *Core) lendable(a netip.Addr, now time.Duration) bool {
	slot := c.Slots[a]
	rested := slot.Phase == Warm || slot.Phase == Cooling && now-slot.Since >= c.Cooldown
	return rested && c.unfit[a] == ""
}

// warm are the addresses of a class that can be lent, those unused longest first.
func (c *Core) warm(class Class, now time.Duration) (out []netip.Addr) {
	for a, slot := range c.Slots {
		if slot.Class == class && c.lendable(a, now) {
			out = append(out, a)
		}
	}
	c.sort(out)
	return out
}

func (c *Core) count(class Class, now time.Duration) int { return len(c.warm(class, now)) }

// Usage is how a pool is doing.
type Usage struct {
	Epoch     uint64
	Slots     map[Class]map[Phase]int
	Targets   map[Class]int // warm addresses that are aimed at
	Unsettled int           // addresses that pods have and typha does not know of
	Oldest    time.Duration // how long it has not known of one of them
	Debts     int           // handles to be freed
	Silent    time.Duration // since typha confirmed the epoch
}

// Usage tells how the pool is doing.
func (c *Core) Usage(now time.Duration) Usage {
	u := Usage{Epoch: c.Epoch, Slots: map[Class]map[Phase]int{}, Targets: map[Class]int{}, Silent: now - c.confirmed}
	for _, slot := range c.Slots {
		if u.Slots[slot.Class] == nil {
			u.Slots[slot.Class] = map[Phase]int{}
		}
		u.Slots[slot.Class][slot.Phase]++
		if slot.Phase == Lent || slot.Phase == Settling {
			u.Unsettled++
			u.Oldest = max(u.Oldest, now-slot.Since)
		}
	}
	for class, d := range c.demand {
		u.Targets[class] = d.target
	}
	for _, d := range c.Debts {
		if !d.Held {
			u.Debts++
		}
	}
	return u
}

// classes are those that are or were asked for, in order.
func (c *Core) classes() []Class {
	return slices.SortedFunc(maps.Keys(c.demand), Class.compare)
}

// later puts off tasks of a kind for a while, longer each time.
func (c *Core) later(kind Kind, now time.Duration) {
	wait := min(cmp.Or(2*c.retries[kind].wait, retryFirst), retryLast)
	c.retries[kind] = retry{wait, now + wait}
}

// may tells whether tasks of a kind are not put off.
func (c *Core) may(kind Kind, now time.Duration) bool { return now >= c.retries[kind].after }
