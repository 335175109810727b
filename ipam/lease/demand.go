package lease

import "time"

// How the number of warm addresses of a class follows what is asked for: it doubles whenever there is none left, and is
// halved when for a whole period half of them were not needed. So a node that starts pods in bursts keeps a burst's
// worth, and one that starts none keeps few, then none.
const (
	firstTarget  = 8
	leastTarget  = 4
	shrinkEvery  = 10 * time.Minute
	forgetAfter  = 6 * time.Hour
	mostClasses  = 16 // that are kept filled: requests choose them by the pools they name
	refillMarkOf = 4  // the pool is filled up when a quarter of the target is missing
)

// demand is what is known of the requests of a class.
type demand struct {
	target int           // warm addresses to have
	low    int           // the least there were in this period
	period time.Duration // since when
	last   time.Duration // when one was asked for last
	short  time.Duration // until when its pools are not asked again
}

func (c *Core) wants(class Class, now time.Duration) *demand {
	d := c.demand[class]
	if d == nil {
		d = &demand{period: now, last: now}
		c.demand[class] = d
	}
	return d
}

// asked notes a request, before it is served. It tells whether it is the first.
func (c *Core) asked(class Class, now time.Duration) (first bool) {
	if c.demand[class] == nil && len(c.demand) >= mostClasses {
		return false
	}
	d := c.wants(class, now)
	d.last = now
	if first = d.target == 0; first {
		d.target, d.low, d.period = min(firstTarget, c.Terms.Max), 0, now
	}
	return first
}

// used notes that one was lent.
func (c *Core) used(class Class, now time.Duration) {
	if d := c.demand[class]; d != nil {
		d.low = min(d.low, c.count(class, now))
	}
}

// missed notes that there was none.
func (c *Core) missed(class Class) {
	if d := c.demand[class]; d != nil {
		d.target, d.low = min(2*d.target, c.Terms.Max), 0
	}
}

// shrink looks whether a period is over, and lets go of what was not needed in it.
func (c *Core) shrink(now time.Duration) {
	for class, d := range c.demand {
		if now-d.last >= forgetAfter {
			d.target = 0
			continue
		}
		if now-d.period < shrinkEvery {
			continue
		}
		if d.low >= (d.target+1)/2 {
			d.target = max(d.target/2, min(leastTarget, c.Terms.Max))
		}
		d.low, d.period = c.count(class, now), now
	}
}

// lack is how many addresses of a class are to be reserved now.
func (c *Core) lack(class Class, now time.Duration) int {
	d := c.demand[class]
	if d == nil || now < d.short {
		return 0
	}
	here := 0 // also those that cool down, which bounds what a long cool-down can tie up
	for _, slot := range c.Slots {
		if slot.Class == class && (slot.Phase == Warm || slot.Phase == Cooling) {
			here++
		}
	}
	lack := min(d.target-c.count(class, now), 2*d.target-here, maxReserve)
	if lack <= 0 || lack < d.target/refillMarkOf {
		return 0
	}
	return lack
}

// fills tells whether a class is being filled up, or will be as soon as somebody looks: typha is not known to be away, nor the
// class's pools to have nothing.
func (c *Core) fills(class Class, now time.Duration) bool {
	return c.Epoch != 0 && now-c.confirmed <= c.Terms.Trust && c.may(DoReview, now) && c.may(DoReserve, now) && c.lack(class, now) > 0
}

// excess are addresses of a class that are not needed, with some slack so that they do not come and go.
func (c *Core) excess(class Class, now time.Duration) int {
	target := 0
	if d := c.demand[class]; d != nil {
		target = d.target
	}
	if n := c.count(class, now); n > target+target/2 {
		return n - target
	}
	return 0
}
