package dataplane

import (
	"fmt"
	"time"
)

// What somebody else keeps undoing is put back contests times at once. Then felix gives way, at first for contestPause, as one
// command may undo it several times (ip addr flush goes on until a listing is empty), then for twice as long each time. What was
// let be for contestTime, or given way to for as long, is not contested any more.
const (
	contests     = 3
	contestPause = time.Second
	contestTime  = time.Minute
)

// Contests count how often things were put back, so that none is fought over in a loop. The zero value has counted nothing.
type Contests[K comparable] struct {
	byKey map[K]contest
}

type contest struct {
	last  time.Time // when it was put back
	count int
}

// Enter tells whether a thing may be put back once more, and counts it if so.
func (c *Contests[K]) Enter(k K, now time.Time) bool {
	one := c.byKey[k]
	since := now.Sub(one.last)
	switch {
	case since >= contestTime:
		one = contest{}
	case one.count >= contests && since < contestPause<<(one.count-contests):
		return false
	}
	if c.byKey == nil {
		c.byKey = map[K]contest{}
	}
	c.byKey[k] = contest{last: now, count: one.count + 1}
	return true
}

// Forget forgets what was counted of a thing.
func (c *Contests[K]) Forget(k K) { delete(c.byKey, k) }

// Repairs tell what others undo of devices from what felix itself changes, and limit how often that is put back. V says how a
// device is wanted. The zero value knows no device.
type Repairs[V comparable] struct {
	devices map[string]*repaired[V]
}

type repaired[V comparable] struct {
	as   V // the device was just so: what differs since is the doing of others
	each Contests[string]
}

// Done says that a device is as wanted.
func (r *Repairs[V]) Done(device string, as V) {
	if d := r.devices[device]; d != nil && d.as == as {
		return
	}
	if r.devices == nil {
		r.devices = map[string]*repaired[V]{}
	}
	r.devices[device] = &repaired[V]{as: as}
}

// Forget says that a device is not there: to make it is no repair.
func (r *Repairs[V]) Forget(device string) { delete(r.devices, device) }

// Do does something, which what names, so that a device becomes as wanted; or it is a *ContestedError. What fails was undone by
// nobody, and is not counted.
func (r *Repairs[V]) Do(device string, as V, what string, change func() error) error {
	d := r.devices[device]
	if d == nil || d.as != as {
		return change()
	}
	if !d.each.Enter(what, time.Now()) {
		return &ContestedError{What: what}
	}
	err := change()
	if err != nil {
		d.each.Forget(what)
	}
	return err
}

// ContestedError says that others keep undoing something, and felix gives way.
type ContestedError struct {
	What string // in the infinitive
}

// Error says what is not done any more, for how long, and how to find who is in the way.
func (e *ContestedError) Error() string {
	return fmt.Sprintf("somebody else keeps undoing what felix does, and it gives way for up to %s: it would %s; see who changes the device (ip monitor link address), and keep them from it",
		contestTime, e.What)
}

// ForeignDeviceError says that somebody else's device has the name of one of felix's. Felix does not touch it.
type ForeignDeviceError struct {
	Device  string
	Is      string // "of type bridge"
	Alias   string // which may say whose it is
	Instead string // the setting that does without the device
}

// Error names the device, what it is, and the choices.
func (e *ForeignDeviceError) Error() string {
	is := e.Is
	if e.Alias != "" {
		is += fmt.Sprintf(" (alias %q)", e.Alias)
	}
	return fmt.Sprintf("somebody else's device %s has the name: it is %s; rename it (ip link set %s name …) or remove it, or set %s",
		e.Device, is, e.Device, e.Instead)
}
