// Package dataplane holds what felix's kernel drivers have in common: how they name objects, report failures, and tell
// of changes that others made. Each driver is a package below it and owns one kind of kernel state:
//
//	route   routes                                  link    workloads' veth pairs, sysctls
//	tunnel  tunnel devices, neighbours, FDB         rules   nftables tables, with their sets (ipset)
//
// Every driver has three verbs: Update takes changes of the desired state (memory only), Apply does all I/O and keeps
// what failed for the next time, Resync forgets what is believed about the kernel. Whole tells a driver that it has been
// told everything; before that, nothing is removed that it was not told to remove, so that a restart leaves the former
// state working. Watch follows the kernel's notifications and calls wake when something must be repaired: Apply then
// does it.
package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// Kind is a kind of kernel object.
type Kind string

// The kinds, as felix's Dump names its sections.
const (
	KindRoute    Kind = "route"
	KindLink     Kind = "link"
	KindNeighbor Kind = "neigh"
	KindFDB      Kind = "fdb"
	KindRule     Kind = "rule"
	KindSet      Kind = "set"
	KindSysctl   Kind = "sysctl"
)

// Object names a kernel object.
type Object struct {
	Kind Kind
	Key  string // as the kernel's own tools print it
}

// String is "route 10.1.2.0/26".
func (o Object) String() string { return string(o.Kind) + " " + o.Key }

// ObjectError is the failure to program one object. The object stays dirty and is tried again at the next Apply.
type ObjectError struct {
	Object
	Err error
}

// Error names the object and the reason.
func (e *ObjectError) Error() string { return fmt.Sprintf("%s: %v", e.Object, e.Err) }

// Unwrap is the reason.
func (e *ObjectError) Unwrap() error { return e.Err }

// DriverError is all that failed in one Apply of a driver.
type DriverError struct {
	Driver string // its package
	Err    error
}

// Error names the driver and the reason.
func (e *DriverError) Error() string { return e.Driver + ": " + e.Err.Error() }

// Unwrap is the reason.
func (e *DriverError) Unwrap() error { return e.Err }

// Of says whose failure it is; nil is none.
func Of(driver string, err error) error {
	if err == nil {
		return nil
	}
	return &DriverError{driver, err}
}

// SetLimitError is that a set has more members than a set may have. It is not programmed.
type SetLimitError struct {
	Members, Limit int
}

// Error says how many there are and may be, and what to change.
func (e *SetLimitError) Error() string {
	return fmt.Sprintf("%d members, and no set may have more than %d (maxIpsetSize); rules that name it drop", e.Members, e.Limit)
}

// Failures collects the failures of one Apply by object. The zero value is ready to use.
type Failures struct {
	byObject map[Object]error
}

// Add records a failure; nil is none.
func (f *Failures) Add(kind Kind, key string, err error) {
	if err == nil {
		return
	}
	if f.byObject == nil {
		f.byObject = map[Object]error{}
	}
	f.byObject[Object{kind, key}] = err
}

// Merge adds the failures of a part, with prefix before their keys.
func (f *Failures) Merge(prefix string, part Failures) {
	for o, err := range part.byObject {
		f.Add(o.Kind, prefix+o.Key, err)
	}
}

// Of returns the failure of an object, nil if it has none.
func (f *Failures) Of(kind Kind, key string) error { return f.byObject[Object{kind, key}] }

// Len is the number of failures.
func (f *Failures) Len() int { return len(f.byObject) }

// Join is all failures as one error in the order of their names, nil if there are none. Each is an *ObjectError.
func (f *Failures) Join() error {
	errs := make([]error, 0, len(f.byObject))
	for o, err := range f.byObject {
		errs = append(errs, &ObjectError{o, err})
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// Entry is one object as felix wants it beside as the kernel has it, for people.
type Entry struct {
	Object
	Desired, Actual string // empty: not wanted, not there
	Err             error  // why the last attempt to program it failed, or what it waits for
}

// Drift tells that the kernel's state was changed by someone else.
type Drift struct {
	Object
	What string // "removed", "changed", …
}

// Wake is called by a driver's Watch when an Apply is due: with what was found changed, or with nothing when something
// that the driver waited for has come. It must not block, and must not call the driver.
type Wake func(...Drift)

// Want takes a change of what is desired into a tracker.
func Want[K comparable, V any](t *delta.Tracker[K, V], d desired.Delta[K, V]) {
	for k := range d.Removed {
		t.DeleteDesired(k)
	}
	for k, v := range d.Set {
		t.SetDesired(k, v)
	}
}
