// Package kubefollow follows one kind of objects of Kubernetes: it lists them, watches them, and lists again when the server
// does not remember far enough back. Trouble with the API server it survives: what was told stays as it is, and is brought up
// to date when the server is back, retried with growing, jittered waits. Typha and kube-controllers share it.
package kubefollow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/internal/backoff"
)

const (
	// pageSize is how many objects are asked for at once.
	pageSize = 500
	// requestTimeout is how long a page may take.
	requestTimeout = 30 * time.Second
	// listAttempts is how often a listing starts anew when the server forgets its revision while it is being read. The last
	// attempt asks for everything at once, which cannot be forgotten.
	listAttempts = 3
	// spread is within which time those list again whose revision the server has forgotten. All of them come to know at once, when
	// the server has started anew.
	spread = 3 * time.Second
)

// Told is what is told at once.
type Told[T any] struct {
	// Changes are what objects are now, by their names; nil for those that are gone.
	Changes map[string]*T
	// Seen is the highest revision of any object told, and Reached the revision up to which everything has been told. 0 is
	// no news.
	Seen, Reached uint64
	// InSync says, exactly once, that everything there is has been told.
	InSync bool
}

// Follower says what to follow, and whom to tell.
type Follower[T any] struct {
	Client    rest.Interface
	Resource  string // "services"
	Namespace string // empty: all
	Name      string // empty: all
	Labels    string // a label selector; empty: all
	Fields    string // a field selector, where there is no Name; empty: all
	List      func() runtime.Object
	// Slim returns an object's name, unlike that of all others, and what of the object is wanted.
	Slim func(runtime.Object) (name string, o *T)
	Tell func(Told[T]) error
	// Forbidden is called once if for a while nothing may be read from the start; nil goes on as with any trouble.
	Forbidden func() error
	// Absent says of an error whether it means that the cluster has no such kind, and at which revision, unless it is known already
	// that there is none. It is nil if every cluster has it.
	Absent func(ctx context.Context, err error, known bool) (revision uint64, none bool)
	// Trouble, if set, is told each failure to follow, and nil once it goes on; the log says it no louder than Debug then.
	Trouble func(error)
	Log     *slog.Logger
}

// Run follows until ctx ends (and returns its error) or Tell fails (and returns that error).
func (f Follower[T]) Run(ctx context.Context) error {
	f.Log = f.Log.With("resource", f.Resource)
	return (&follower[T]{Follower: f, known: map[string]string{}}).run(ctx)
}

// follower is a running Follower.
type follower[T any] struct {
	Follower[T]
	known    map[string]string // resourceVersions of the objects that were told
	revision string            // where we are
	inSync   bool
	troubled bool
	refused  time.Time // since when nothing may be read, from the start
	given    bool      // up: Forbidden was called
	missing  time.Time // since when the cluster has seemed not to have the kind
}

// forbiddenFor is how long reading must be forbidden to be taken for what is meant: an API server that has just started
// forbids everything until it knows the roles.
const forbiddenFor = 5 * time.Second

// tellError marks the error of who is told, which ends all.
type tellError struct{ error }

func (f *follower[T]) run(ctx context.Context) error {
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}
	// A kind that the cluster lacks may come any time, and is looked for by all who would follow it, in all replicas.
	absent := backoff.Backoff{Min: 2 * time.Second, Max: time.Minute}
	for relist := true; ; {
		var err error
		wait := &retry
		if relist {
			if err = f.listAll(ctx); err == nil {
				f.missing = time.Time{}
			}
		}
		if err == nil {
			relist = false
			var heard bool
			if heard, err = f.watch(ctx); heard {
				f.missing = time.Time{}
				retry.Reset()
			}
		}
		if at, none := f.seemsAbsent(ctx, err); none {
			relist, err, wait = true, f.none(at), &absent
		} else {
			absent.Reset()
		}
		var fatal tellError
		switch {
		case errors.As(err, &fatal):
			return fatal.error
		case ctx.Err() != nil:
			return ctx.Err()
		case isGone(err):
			f.Log.Info("the API server does not remember that far back, listing again", "revision", f.revision)
			relist = true
			if err := backoff.Pause(ctx, rand.N(spread)); err != nil {
				return err
			}
		case err != nil:
			if !f.troubled {
				f.Log.Log(ctx, f.level(slog.LevelWarn), "cannot follow the Kubernetes API, trying again; what is known stays in force", "error", err)
			}
			f.troubled = true
			if f.Trouble != nil {
				f.Trouble(err)
			}
			if err := f.judge(err); err != nil {
				return err
			}
		}
		if err := wait.Wait(ctx); err != nil {
			return err
		}
	}
}

// level is how loud trouble is told: whoever is told of it tells of all kinds at once.
func (f *follower[T]) level(alone slog.Level) slog.Level {
	if f.Trouble != nil {
		return slog.LevelDebug
	}
	return alone
}

// judge takes notice of errors that say that nothing may be read.
func (f *follower[T]) judge(err error) error {
	switch {
	case f.Forbidden == nil || f.inSync || f.given:
		return nil
	case !apierrors.IsForbidden(err):
		f.refused = time.Time{}
		return nil
	case f.refused.IsZero():
		f.refused = time.Now()
	}
	if time.Since(f.refused) < forbiddenFor {
		return nil
	}
	f.given = true
	return f.Forbidden()
}

// options are those of every request.
func (f *follower[T]) options() metav1.ListOptions {
	o := metav1.ListOptions{LabelSelector: f.Labels, FieldSelector: f.Fields}
	if f.Name != "" {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", f.Name).String()
	}
	return o
}

func (f *follower[T]) get(o metav1.ListOptions) *rest.Request {
	return f.Client.Get().NamespaceIfScoped(f.Namespace, f.Namespace != "").Resource(f.Resource).
		VersionedParams(&o, metav1.ParameterCodec)
}

// listAll tells the difference between what was told and what there is.
func (f *follower[T]) listAll(ctx context.Context) error {
	var present map[string]string
	told, err := Told[T]{}, error(nil)
	for attempt := 1; attempt <= listAttempts; attempt++ {
		size := int64(pageSize)
		if attempt == listAttempts {
			size = 0
		}
		if present, told, err = f.pages(ctx, size); !isGone(err) {
			break
		}
	}
	if err != nil {
		return err
	}
	f.well()
	for name := range f.known {
		if _, ok := present[name]; !ok {
			told.Changes[name] = nil
		}
	}
	f.known = present
	told.InSync, f.inSync = !f.inSync, true
	return f.emit(told)
}

// pages reads what there is, some objects at a time, or all at once if size is 0. It returns the resourceVersions, and those that
// are not what was told.
func (f *follower[T]) pages(ctx context.Context, size int64) (present map[string]string, told Told[T], err error) {
	present, told.Changes = map[string]string{}, map[string]*T{}
	for o := f.options(); ; {
		o.Limit = size
		page := f.List()
		if err := f.get(o).Timeout(requestTimeout).Do(ctx).Into(page); err != nil {
			return nil, told, err
		}
		if err := meta.EachListItem(page, func(item runtime.Object) error {
			m, err := meta.Accessor(item)
			if err != nil {
				return err
			}
			name, slim := f.Slim(item)
			present[name] = m.GetResourceVersion()
			told.Seen = max(told.Seen, Number(m.GetResourceVersion()))
			if f.known[name] != m.GetResourceVersion() {
				told.Changes[name] = slim
			}
			return nil
		}); err != nil {
			return nil, told, err
		}
		m, err := meta.ListAccessor(page)
		if err != nil {
			return nil, told, err
		}
		if o.Continue = m.GetContinue(); o.Continue == "" {
			f.revision = m.GetResourceVersion()
			told.Reached = Number(f.revision)
			return present, told, nil
		}
	}
}

// isGone tells whether the server no longer remembers a revision.
func isGone(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }

// seemsAbsent tells whether an error means that the cluster has no such kind. An API server that has just started may know
// neither roles nor kinds, so that it has to say so for a while where that would take anything away.
func (f *follower[T]) seemsAbsent(ctx context.Context, err error) (revision uint64, is bool) {
	if err == nil || f.Absent == nil {
		return 0, false
	}
	if revision, is = f.Absent(ctx, err, f.inSync && len(f.known) == 0); !is {
		f.missing = time.Time{}
		return 0, false
	}
	if f.missing.IsZero() {
		f.missing = time.Now()
	}
	return revision, apierrors.IsNotFound(err) && len(f.known) == 0 || time.Since(f.missing) >= forbiddenFor
}

// none tells that there is nothing, since there is no such kind.
func (f *follower[T]) none(revision uint64) error {
	f.well()
	if f.inSync && len(f.known) == 0 {
		return nil
	}
	told := Told[T]{Changes: map[string]*T{}, Reached: revision, InSync: !f.inSync}
	for name := range f.known {
		told.Changes[name] = nil
	}
	f.known, f.inSync = map[string]string{}, true
	f.Log.Info("the cluster does not know this kind, hence there are none", "gone", len(told.Changes))
	return f.emit(told)
}

func (f *follower[T]) emit(t Told[T]) error {
	if err := f.Tell(t); err != nil {
		return tellError{err}
	}
	return nil
}

// well notes that the server answers.
func (f *follower[T]) well() {
	if f.troubled {
		f.troubled = false
		f.Log.Log(context.Background(), f.level(slog.LevelInfo), "following the Kubernetes API again")
		if f.Trouble != nil {
			f.Trouble(nil)
		}
	}
}

// Number reads a revision; 0 if it is none.
func Number(revision string) uint64 {
	n, _ := strconv.ParseUint(revision, 10, 64)
	return n
}

// watch tells changes until the watch ends, and why it did: nil if only its time was over. heard says that anything came.
func (f *follower[T]) watch(ctx context.Context) (heard bool, err error) {
	o := f.options()
	o.Watch, o.AllowWatchBookmarks, o.ResourceVersion = true, true, f.revision
	// Many clients of one server should not come back in step.
	seconds := int64(300 + rand.IntN(300))
	o.TimeoutSeconds = &seconds
	w, err := f.get(o).Watch(ctx)
	if err != nil {
		return false, err
	}
	defer w.Stop()
	f.well()
	for e := range w.ResultChan() {
		told, err := f.gather(e, w.ResultChan())
		if told.Reached != 0 {
			heard = true
			if err := f.emit(told); err != nil {
				return heard, err
			}
		}
		if err != nil {
			return heard, err
		}
	}
	return heard, nil
}

// maxTold bounds how many events are told at once.
const maxTold = 1000

// gather puts together an event and those that wait behind it. With an error it returns what came before that.
func (f *follower[T]) gather(e watch.Event, more <-chan watch.Event) (Told[T], error) {
	told := Told[T]{Changes: map[string]*T{}}
	for range maxTold {
		if err := f.take(e, &told); err != nil {
			return told, err
		}
		var ok bool
		select {
		case e, ok = <-more:
			if !ok {
				return told, nil
			}
		default:
			return told, nil
		}
	}
	return told, f.take(e, &told)
}

// take adds one event to what is told.
func (f *follower[T]) take(e watch.Event, told *Told[T]) error {
	if e.Type == watch.Error {
		return apierrors.FromObject(e.Object)
	}
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return fmt.Errorf("watch of %s: %w", f.Resource, err)
	}
	f.revision = m.GetResourceVersion()
	told.Reached = max(told.Reached, Number(f.revision))
	if e.Type == watch.Bookmark {
		return nil
	}
	told.Seen = told.Reached
	name, slim := f.Slim(e.Object)
	if e.Type == watch.Deleted {
		delete(f.known, name)
		slim = nil
	} else {
		f.known[name] = f.revision
	}
	told.Changes[name] = slim
	return nil
}
