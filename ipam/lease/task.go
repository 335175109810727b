package lease

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Kind is what a task does.
type Kind string

// The kinds of tasks: the methods of Authority.
const (
	DoReview  Kind = "review"
	DoEnter   Kind = "enter"
	DoReserve Kind = "reserve"
	DoSettle  Kind = "settle"
	DoClaim   Kind = "claim"
	DoReturn  Kind = "return"
	DoFree    Kind = "free"
)

// Task is something to be said to typha. Only one is under way at a time.
type Task struct {
	Kind    Kind
	Epoch   uint64 // the journal's; of DoEnter the node's present one
	Before  uint64 // of DoEnter: the journal's last one
	Class   Class
	Count   int
	Addrs   []Reserved
	Claims  []Claim
	Handles []string

	before map[netip.Addr]Slot // what was here when the review began
}

// Answer is what typha said to a task.
type Answer struct {
	Err      error // of the whole task
	Review   Review
	Addrs    []Reserved
	Refused  map[netip.Addr]string
	Failures map[string]error // by handle
}

// Lost is an address that a pod had, and that is another's now.
type Lost struct {
	Claim
	Reason string
}

// Next says what is to be done, with the records that must be on disk before. Without a task, wake is when to ask again.
func (c *Core) Next(now time.Duration) (task *Task, records []Record, wake time.Duration) {
	c.shrink(now)
	if c.may(DoReview, now) && c.may(DoEnter, now) && c.reviewDue(now) {
		t := c.look()
		return t, c.told(t), 0
	}
	if t := c.fill(now, true); t != nil { // pods wait for it
		return t, nil, 0
	}
	if c.Epoch != 0 && c.may(DoSettle, now) && c.may(DoClaim, now) {
		if t := c.settle(); t != nil {
			return t, c.told(t), 0
		}
	}
	if c.may(DoFree, now) {
		if handles := c.payable(); len(handles) > 0 {
			for _, h := range handles {
				c.paying[h] = true
			}
			return &Task{Kind: DoFree, Handles: handles}, nil, 0
		}
	}
	if c.Epoch != 0 && c.may(DoReturn, now) {
		if t := c.giveBack(now); t != nil {
			return t, c.returning(t.Addrs, now), 0
		}
	}
	if t := c.fill(now, false); t != nil {
		return t, nil, 0
	}
	wake = now + reviewEvery
	for _, r := range c.retries {
		if r.after > now {
			wake = min(wake, r.after)
		}
	}
	return nil, nil, wake
}

// fill reserves what a class lacks, or looks only at those that have nothing left.
func (c *Core) fill(now time.Duration, empty bool) *Task {
	if c.Epoch == 0 || !c.may(DoReserve, now) {
		return nil
	}
	for _, class := range c.classes() {
		if empty && c.count(class, now) > 0 {
			continue
		}
		if n := c.lack(class, now); n > 0 {
			return &Task{Kind: DoReserve, Epoch: c.Epoch, Class: class, Count: n}
		}
	}
	return nil
}

// reviewDue tells whether typha is to be asked what it has: for an epoch if one is needed, and now and then.
func (c *Core) reviewDue(now time.Duration) bool {
	if c.Epoch != 0 {
		return c.reviewed == 0 || now-c.reviewed >= reviewEvery
	}
	// So that what the last epoch reserved does not lie idle, known of here or not.
	wanted := c.Before != 0 || len(c.claims) > 0 || !c.looked || c.present != nil && *c.present != 0
	for _, d := range c.demand {
		wanted = wanted || d.target > 0
	}
	for _, slot := range c.Slots {
		wanted = wanted || slot.Handle != ""
	}
	return wanted
}

// told notes that typha is about to hear of claims: their pods' end is its business from now on.
func (c *Core) told(t *Task) []Record {
	var addrs []netip.Addr
	for _, claim := range t.Claims {
		if slot, is := c.Slots[claim.Addr]; is && slot.Handle == claim.Handle {
			addrs = append(addrs, claim.Addr)
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	return c.do(Record{Op: OpSettle, Addrs: addrs})
}

// look asks what typha has, or enters a new epoch once it is known which one that ends.
func (c *Core) look() *Task {
	if c.Epoch != 0 || c.present == nil {
		t := &Task{Kind: DoReview, Epoch: c.Epoch, before: map[netip.Addr]Slot{}}
		for a, slot := range c.Slots {
			if slot.Handle == "" {
				t.before[a] = slot
			}
		}
		return t
	}
	t := &Task{Kind: DoEnter, Epoch: *c.present, Before: c.Before, Claims: slices.Clone(c.claims)}
	for a, slot := range c.Slots {
		if slot.Handle != "" && !slices.ContainsFunc(c.claims, func(c Claim) bool { return c.Addr == a }) {
			t.Claims = append(t.Claims, slot.claim(a))
		}
	}
	slices.SortFunc(t.Claims, func(x, y Claim) int { return x.Addr.Compare(y.Addr) })
	return t
}

func (s Slot) claim(a netip.Addr) Claim { return Claim{a, s.Sequence, s.Handle, s.Attributes} }

// settle takes what pods have and typha does not know of, longest first. What it may have been told of already comes alone: so while
// typha is away the addresses whose fate there is not known, which nobody gets, do not become more with each attempt.
func (c *Core) settle() *Task {
	addrs := c.in(Settling)
	if len(addrs) == 0 {
		addrs = c.in(Lent)
	}
	if len(addrs) == 0 {
		return nil
	}
	t := &Task{Kind: DoSettle, Epoch: c.Epoch}
	for _, a := range addrs[:min(len(addrs), maxSettle)] {
		t.Claims = append(t.Claims, c.Slots[a].claim(a))
	}
	return t
}

// payable are debts that can be paid, the oldest first: nothing of the handle is on its way to being settled.
func (c *Core) payable() []string {
	var out []string
	for h, d := range c.Debts {
		if !d.Held {
			out = append(out, h)
		}
	}
	if len(out) == 0 {
		return nil
	}
	busy := map[string]bool{}
	for _, slot := range c.Slots {
		busy[slot.Handle] = true
	}
	out = slices.DeleteFunc(out, func(h string) bool { return busy[h] })
	slices.SortFunc(out, func(x, y string) int {
		return cmp.Or(cmp.Compare(c.Debts[x].Since, c.Debts[y].Since), cmp.Compare(x, y))
	})
	return out[:min(len(out), maxPay)]
}

// giveBack takes what is not fit, or not needed.
func (c *Core) giveBack(now time.Duration) *Task {
	addrs := c.in(Returning)
	for a := range c.unfit {
		if phase := c.Slots[a].Phase; phase == Warm || phase == Cooling {
			addrs = append(addrs, a)
		}
	}
	classes := map[Class]bool{}
	for _, slot := range c.Slots {
		classes[slot.Class] = true
	}
	for class := range classes {
		if n := c.excess(class, now); n > 0 {
			addrs = append(addrs, c.warm(class, now)[:n]...)
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	t := &Task{Kind: DoReturn, Epoch: c.Epoch}
	for _, a := range addrs[:min(len(addrs), maxReserve)] {
		t.Addrs = append(t.Addrs, Reserved{Addr: a, Sequence: c.Slots[a].Sequence})
	}
	return t
}

// returning notes that addresses are given back, whatever becomes of it.
func (c *Core) returning(addrs []Reserved, now time.Duration) []Record {
	return c.do(Record{Op: OpReturn, Addrs: addrsOf(addrs), Sequences: sequencesOf(addrs), At: now})
}

// Done takes typha's answer to a task. next is what must follow at once, lost what pods must not use any longer.
func (c *Core) Done(now time.Duration, t *Task, answer Answer) (records []Record, next *Task, lost []Lost) {
	stale := errors.Is(answer.Err, ErrStale)
	switch {
	case t.Kind == DoFree:
		return c.freed(now, t, answer), nil, nil
	case t.Kind == DoEnter && stale:
		c.present, c.looked = nil, false // another one entered, or an earlier call of this one
		return nil, nil, nil
	case stale:
		c.reviewed = 0
		return c.do(Record{Op: OpFence}), nil, nil
	case t.Kind == DoReserve && errors.Is(answer.Err, ErrShort):
		c.wants(t.Class, now).short = now + shortFor
		return nil, nil, nil
	case t.Kind == DoClaim && errors.Is(answer.Err, ErrTaken):
	case answer.Err != nil:
		if t.Kind == DoReserve {
			c.reviewed = 0 // it may have been carried out: a review shows what nobody here knows of
		}
		c.later(t.Kind, now)
		return nil, nil, nil
	}
	delete(c.retries, t.Kind)
	switch t.Kind {
	case DoReview:
		records = c.review(now, t, answer.Review)
	case DoEnter:
		c.present, c.claims = nil, nil
		records = append(c.do(Record{Op: OpBegin, Epoch: answer.Review.Epoch}), c.confirm(now, answer.Review)...)
	case DoReserve:
		records = c.stock(now, t.Class, answer.Addrs)
	case DoSettle:
		records, next = c.settled(t, answer)
	case DoClaim:
		claim := t.Claims[0]
		if answer.Err != nil && !c.ended(claim.Handle) {
			lost = append(lost, Lost{claim, answer.Err.Error()})
		}
		records = c.hand(t.Claims)
	case DoReturn:
		records = c.do(Record{Op: OpDrop, Addrs: addrsOf(t.Addrs)})
	}
	return records, next, lost
}

// stock takes up what was reserved. What is here already is left to the next review.
func (c *Core) stock(now time.Duration, class Class, list []Reserved) []Record {
	fresh := slices.DeleteFunc(slices.Clone(list), func(r Reserved) bool {
		_, known := c.Slots[r.Addr]
		return known || !proper(r.Addr) || family(r.Addr) != class.Family
	})
	if len(fresh) == 0 {
		return nil
	}
	return c.do(Record{Op: OpStock, Addrs: addrsOf(fresh), Sequences: sequencesOf(fresh), Class: &class, At: now})
}

// ended tells whether the pod of a handle is gone.
func (c *Core) ended(handle string) bool {
	debt, owes := c.Debts[handle]
	return owes && !debt.Held
}

// settled drops what is the pods' at typha too. The first that typha refused is claimed: a pod has it all the same.
func (c *Core) settled(t *Task, answer Answer) (records []Record, next *Task) {
	var done []Claim
	for _, claim := range t.Claims {
		switch _, refused := answer.Refused[claim.Addr]; {
		case !refused || c.ended(claim.Handle):
			done = append(done, claim)
		case next == nil:
			next = &Task{Kind: DoClaim, Epoch: t.Epoch, Claims: []Claim{claim}}
		}
	}
	return c.hand(done), next
}

// hand leaves addresses to typha. What stays is that their handles have something there: should the same ADD come again, as the
// process that had it ended, its pod's end must free more than what it is lent then.
func (c *Core) hand(done []Claim) (records []Record) {
	var addrs []netip.Addr
	for _, claim := range done {
		if _, owes := c.Debts[claim.Handle]; !owes {
			records = append(records, c.do(Record{Op: OpHold, Handle: claim.Handle})...)
		}
		addrs = append(addrs, claim.Addr)
	}
	if len(addrs) > 0 {
		records = append(records, c.do(Record{Op: OpDrop, Addrs: addrs})...)
	}
	return records
}

func (c *Core) freed(now time.Duration, t *Task, answer Answer) (records []Record) {
	failed := answer.Err
	for _, h := range t.Handles {
		delete(c.paying, h)
		if err := cmp.Or(answer.Err, answer.Failures[h]); err != nil {
			failed = err
			continue
		}
		if _, owed := c.Debts[h]; owed { // held or not: at typha it has nothing any more
			records = append(records, c.do(Record{Op: OpPaid, Handle: h})...)
		}
	}
	if failed == nil {
		delete(c.retries, t.Kind)
	} else {
		c.later(t.Kind, now)
	}
	return records
}

// confirm notes that typha has confirmed the epoch, and its terms.
func (c *Core) confirm(now time.Duration, r Review) []Record {
	c.confirmed, c.reviewed = now, max(now, 1)
	c.unfit = map[netip.Addr]string{}
	if cooldown := min(max(r.Cooldown, 0), maxCooldown); cooldown != c.Cooldown {
		return c.do(Record{Op: OpTerms, Cooldown: cooldown})
	}
	return nil
}

// review compares what typha has with what is here. Nothing but lending and coming back went on meanwhile.
func (c *Core) review(now time.Duration, t *Task, r Review) (records []Record) {
	c.looked = true
	if c.Epoch == 0 || r.Epoch != c.Epoch {
		c.present = new(r.Epoch)
		if c.Epoch != 0 {
			records = c.do(Record{Op: OpFence})
		}
		return records
	}
	records = c.confirm(now, r)
	there := map[netip.Addr]uint64{}
	var strange []Reserved
	for _, res := range r.Reserved {
		there[res.Addr] = res.Sequence
		slot, known := c.Slots[res.Addr]
		switch {
		case !known && proper(res.Addr): // an answer was lost, and with it what it was wanted for
			strange = append(strange, res)
		case res.Unfit != "":
			c.unfit[res.Addr] = res.Unfit
		case res.ByNameOnly != "" && slot.Class.Pools == "":
			c.unfit[res.Addr] = res.ByNameOnly
		}
	}
	var gone []netip.Addr
	for a, slot := range t.before {
		present := c.Slots[a]
		if sequence, is := there[a]; (!is || sequence != slot.Sequence) && present.Phase == slot.Phase && present.Since == slot.Since {
			gone = append(gone, a)
		}
	}
	slices.SortFunc(gone, netip.Addr.Compare)
	for part := range slices.Chunk(gone, maxAddrs) {
		records = append(records, c.do(Record{Op: OpDrop, Addrs: part})...)
	}
	if strange = strange[:min(len(strange), maxReserve)]; len(strange) > 0 {
		records = append(records, c.returning(strange, now)...)
	}
	return records
}

// Ask has a review done next, and nothing put off any longer: typha is there, and may have changed its mind.
func (c *Core) Ask() {
	c.reviewed = 0
	clear(c.retries)
}

// Unfit tells why warm addresses are about to go back to typha.
func (c *Core) Unfit() map[netip.Addr]string { return maps.Clone(c.unfit) }

func addrsOf(list []Reserved) (out []netip.Addr) {
	for _, r := range list {
		out = append(out, r.Addr)
	}
	return out
}

func sequencesOf(list []Reserved) (out []uint64) {
	for _, r := range list {
		out = append(out, r.Sequence)
	}
	return out
}
