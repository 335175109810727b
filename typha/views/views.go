// Package views holds what every node must know, and hands each client the difference to what it knows already.
//
// A scope is one node's view of one kind: the NODE view that felix follows, the BGP view that confd follows. Its content
// is the items common to all scopes of its kind (routes, nodes, pools) and the items of its own. The computation loop
// commits changes; each Commit is one generation, and no reader ever sees a part of one.
//
// A Subscription is one client. What is kept for it is the set of keys that changed since it last took a Cut, never a
// queue of old values: whenever it asks, it gets the newest of everything. So a slow client costs memory bounded by its
// own view, is never sent what is already outdated, and holds nobody up.
//
// The package refuses to know what items mean and how they look on the wire.
package views

import "github.com/muslin-net/muslin/api/view"

// ViewKind says who reads a view.
type ViewKind uint8

// The kinds of view.
const (
	NodeView ViewKind = iota // felix's
	BGPView                  // confd's

	viewKinds // how many there are
)

// String is the kind's name.
func (k ViewKind) String() string {
	if k == BGPView {
		return "BGP"
	}
	return "NODE"
}

// Scope names one view: a kind of view for one node.
type Scope struct {
	Node string
	View ViewKind
}

// String is kind/node.
func (s Scope) String() string { return s.View.String() + "/" + s.Node }

// Cut is what a client needs to get from what it has to the newest generation. It is taken at one generation. Updates
// are in ascending, Removes in descending order of kind, and by id within a kind.
type Cut struct {
	Updates []*Entry
	// Common are updates beside those, in the same order, that all clients of the kind have: those of a first cut. It is the same
	// slice for all who come until it changes, and must not be changed.
	Common     []*Entry
	Removes    []view.Key
	Checkpoint view.Checkpoint
	// InSync says that the client's view is whole once it has this cut. No cut is given before that is so.
	InSync bool
}

// Delta changes a set of entries: those put are new or replace what had their key, those dropped go. No key is in both.
type Delta struct {
	Put  []*Entry
	Drop []view.Key
}

// Empty tells whether the delta changes nothing.
func (d *Delta) Empty() bool { return len(d.Put) == 0 && len(d.Drop) == 0 }

// Change is one generation: everything that one pass of the computation changed.
type Change struct {
	// Common changes what all scopes of a kind share; it is indexed by ViewKind. A key is either common or scoped
	// within a kind of view, never both.
	Common [viewKinds]Delta
	// Scopes changes what single scopes have. An entry shared by several scopes is one *Entry in each of them, so
	// that it is encoded once.
	Scopes map[Scope]*Delta
	// Checkpoint is the point in the datastore's history that this generation reflects; nil leaves the last one.
	Checkpoint view.Checkpoint
	// Floor is the point up to which everything is reflected; it may lag behind Checkpoint, which is the highest
	// revision of anything reflected. nil leaves the last one.
	Floor view.Checkpoint
	// InSync tells that everything there was at the start has been computed. Once true it stays true.
	InSync bool
}
