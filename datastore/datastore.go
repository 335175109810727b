// Package datastore is the one interface to the cluster's state. Backends live in etcd, kubernetes and embedded; the
// suite in conformance decides whether something is a backend. The package knows storage, not meaning: what an object
// says is api's business. Open (package open) picks a backend from a Config; Validating adds defaults, validation and
// the cross-object checks that must hold for every write.
package datastore

import (
	"context"
	"errors"
	"fmt"

	"github.com/muslin-net/muslin/api"
)

// Reader reads objects.
type Reader interface {
	// Get returns one object or an error for which errors.Is(err, ErrNotFound) holds.
	Get(ctx context.Context, key api.Key) (api.Object, error)
	// List returns all objects of a kind in key order, as of one revision. Backends page internally.
	List(ctx context.Context, kind string, opts ListOptions) (List, error)
	// Watch streams the changes of a kind that happened after opts.Revision, each once and in order. The stream lives
	// through reconnects, server restarts and loss of the leader. It ends only with ctx, Stop, or an error: ErrCompacted
	// when the revision is too old to resume from, after which the caller lists again (Follow does all that).
	Watch(ctx context.Context, kind string, opts WatchOptions) (Watcher, error)
}

// Writer changes objects. Every write is one atomic transaction; what is returned is the stored object with its new
// resourceVersion.
type Writer interface {
	// Create stores a new object; ErrExists if the key is taken. It sets uid and creationTimestamp unless given.
	Create(ctx context.Context, o api.Object) (api.Object, error)
	// Update replaces the object if the stored resourceVersion equals o's; ErrConflict if not, ErrNotFound if gone.
	Update(ctx context.Context, o api.Object) (api.Object, error)
	// Delete removes the object and returns what was removed. A non-empty revision or uid must match (ErrConflict).
	Delete(ctx context.Context, key api.Key, pre Precondition) (api.Object, error)
}

// Client is a whole backend. All methods may be called from many goroutines.
type Client interface {
	Reader
	Writer
	// Ready answers whether the backend can be reached now; the error says what to do.
	Ready(ctx context.Context) error
	Close() error
}

// Prompt asks a backend to tell its watches soon how far they are complete, by Bookmarks, where it can; without that an idle
// watch may not know for long that there is nothing to know. It does not wait.
func Prompt(c Reader) {
	if p, ok := c.(interface{ Prompt() }); ok {
		p.Prompt()
	}
}

// Pages gives take the objects of a kind, as of one revision, some at a time and in no order, and returns the listing without them.
// So who keeps little of each never holds all, where a backend can read them so. When it fails some may have been taken.
func Pages(ctx context.Context, c Reader, kind string, opts ListOptions, take func([]api.Object) error) (List, error) {
	if p, ok := c.(interface {
		Pages(context.Context, string, ListOptions, func([]api.Object) error) (List, error)
	}); ok {
		return p.Pages(ctx, kind, opts, take)
	}
	l, err := c.List(ctx, kind, opts)
	if err == nil {
		err = take(l.Items)
	}
	l.Items = nil
	return l, err
}

// Full asks a backend that bounds its space whether it is used up: nil, an ErrFull that says what to do, or another error if the backend
// could not be asked.
func Full(ctx context.Context, c Reader) error {
	if f, ok := c.(interface{ Full(context.Context) error }); ok {
		return f.Full(ctx)
	}
	return nil
}

// Remove deletes an internal object that was read before, if it is still as it was; a backend that reads it again for Delete does
// not do so here. The errors are Delete's.
func Remove(ctx context.Context, c Writer, o api.Object) error {
	if r, ok := c.(interface {
		Remove(context.Context, api.Object) error
	}); ok {
		return r.Remove(ctx, o)
	}
	_, err := c.Delete(ctx, api.KeyOf(o), Precondition{Revision: o.GetResourceVersion()})
	return err
}

// ListOptions narrows a List. The zero value lists everything.
type ListOptions struct {
	Namespace  string // only this namespace
	NamePrefix string // only names that begin with it
	Node       string // of workload endpoints: those of others may be left out, which a backend does where it is cheaper
}

// List is a listing at one revision.
type List struct {
	Items    []api.Object
	Revision string // where a Watch takes over without gap or overlap
	Seen     Seen
}

// Seen is the highest revision of anything told, in the form of a Revision. It is what others who read the same come to see too,
// while the Revision of a listing or a Bookmark is one at which nothing need have happened. It is empty where revisions count the
// writes of all kinds.
type Seen string

// WatchOptions say from where to watch.
type WatchOptions struct {
	Revision  string // changes after this one; empty means from now
	Namespace string
}

// Watcher is a running watch.
type Watcher interface {
	// Events is closed when the watch ends; Err then tells why (nil after Stop or the end of ctx).
	Events() <-chan Event
	Err() error
	Stop()
}

// EventType is what happened to an object.
type EventType int

// The types of Event. A Bookmark has no object: it tells that all changes up to Revision have been delivered.
const (
	Added EventType = iota + 1
	Modified
	Deleted
	Bookmark
)

// Event is one change. For Deleted, Object is the last state known (its key at least).
type Event struct {
	Type     EventType
	Key      api.Key
	Object   api.Object
	Revision string
	Seen     Seen // by this watch
}

// Precondition of a delete. Empty fields are not checked.
type Precondition struct {
	Revision string
	UID      string
}

// What an operation can fail with. Test with errors.Is; the error text names the object and what to do.
var (
	ErrNotFound    = errors.New("does not exist")
	ErrExists      = errors.New("already exists")
	ErrConflict    = errors.New("was changed by someone else since it was read; read it again and repeat")
	ErrCompacted   = errors.New("revision is no longer held by the datastore")
	ErrUnavailable = errors.New("datastore cannot be reached")
	ErrFull        = errors.New("datastore has no space left and takes no writes")
)

// Error is an operation's failure on one object. errors.Is sees the sentinel in Reason and any cause in Err.
type Error struct {
	Op     string // get, list, watch, create, update, delete
	Key    api.Key
	Reason error // one of the Err values above, or nil
	Err    error // the backend's own error, or nil
}

// Error names the operation, the object and the reason.
func (e *Error) Error() string {
	switch {
	case e.Reason != nil && e.Err != nil:
		return fmt.Sprintf("%s %s: %v: %v", e.Op, e.Key, e.Reason, e.Err)
	case e.Reason != nil:
		return fmt.Sprintf("%s %s: %v", e.Op, e.Key, e.Reason)
	default:
		return fmt.Sprintf("%s %s: %v", e.Op, e.Key, e.Err)
	}
}

// Unwrap gives both the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Reason, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
