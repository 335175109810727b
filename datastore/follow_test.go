package datastore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// script is a datastore.Reader that answers List and Watch from a list of steps, one for each call.
type script struct {
	steps []step
	calls []string // what was asked
}

// step is the answer to one call: a failure, or the listing or the events of a watch that ends with err.
type step struct {
	items    []api.Object
	pages    [][]api.Object // before the items, of a datastore that reads some at a time
	revision string
	events   []datastore.Event
	err      error
}

func (s *script) next(call string) step {
	s.calls = append(s.calls, call)
	if len(s.steps) == 0 {
		return step{err: errors.New("the script is over")}
	}
	next := s.steps[0]
	s.steps = s.steps[1:]
	return next
}

func (s *script) Get(context.Context, api.Key) (api.Object, error) { return nil, datastore.ErrNotFound }

func (s *script) List(context.Context, string, datastore.ListOptions) (datastore.List, error) {
	a := s.next("list")
	return datastore.List{Items: a.items, Revision: a.revision}, a.err
}

// paged is a script whose listings come page by page.
type paged struct{ *script }

func (s paged) Pages(_ context.Context, _ string, _ datastore.ListOptions, take func([]api.Object) error) (datastore.List, error) {
	a := s.next("list")
	for _, page := range append(a.pages, a.items) {
		if err := take(page); err != nil {
			return datastore.List{}, err
		}
	}
	return datastore.List{Revision: a.revision}, a.err
}

func (s *script) Watch(_ context.Context, _ string, opts datastore.WatchOptions) (datastore.Watcher, error) {
	a := s.next("watch " + opts.Revision)
	if a.err != nil && a.events == nil {
		return nil, a.err
	}
	w := &scripted{events: make(chan datastore.Event, len(a.events)), err: a.err}
	for _, e := range a.events {
		w.events <- e
	}
	close(w.events)
	return w, nil
}

type scripted struct {
	events chan datastore.Event
	err    error
}

func (w *scripted) Events() <-chan datastore.Event { return w.events }
func (w *scripted) Err() error                     { return w.err }
func (w *scripted) Stop()                          {}

func at(name, revision string) api.Object {
	p := pool(name, "10.0.0.0/16")
	p.SetResourceVersion(revision)
	return p
}

func event(typ datastore.EventType, name, revision string) datastore.Event {
	if typ == datastore.Bookmark {
		return datastore.Event{Type: typ, Revision: revision}
	}
	return datastore.Event{Type: typ, Key: api.Key{Kind: "IPPool", Name: name}, Object: at(name, revision), Revision: revision}
}

func text(d datastore.Delta[*api.IPPool]) string {
	s := "to " + d.Revision
	if d.InSync {
		s += " in sync"
	}
	for _, c := range d.Changes {
		s += fmt.Sprintf(", %c %s", " +~-"[c.Type], c.Key.Name)
		if c.Object.Name != c.Key.Name {
			s += " without its object"
		}
	}
	return s
}

// TestFollowScript plays troubles of a datastore and compares what the consumer is told, line by line.
func TestFollowScript(t *testing.T) {
	const added, modified, deleted, bookmark = datastore.Added, datastore.Modified, datastore.Deleted, datastore.Bookmark
	down := errors.New("down")
	compacted := &datastore.Error{Op: "watch", Reason: datastore.ErrCompacted}
	for _, test := range []struct {
		name  string
		steps []step
		told  []string
		calls []string
	}{
		{
			name: "list, then changes",
			steps: []step{
				{items: []api.Object{at("a", "1"), at("b", "2")}, revision: "5"},
				{events: []datastore.Event{event(modified, "a", "6"), event(deleted, "b", "7"), event(added, "c", "8")}, err: down},
				{events: []datastore.Event{event(bookmark, "", "12")}, err: down},
			},
			told:  []string{"to 5 in sync, + a, + b", "to 8, ~ a, - b, + c", "to 12"},
			calls: []string{"list", "watch 5", "watch 8", "watch 12"},
		},
		{
			name: "nothing there is in sync too",
			steps: []step{
				{revision: "1"},
			},
			told:  []string{"to 1 in sync"},
			calls: []string{"list", "watch 1"},
		},
		{
			name: "a datastore that comes up late",
			steps: []step{
				{err: down},
				{err: down},
				{err: down},
				{items: []api.Object{at("a", "1")}, revision: "5"},
				{err: down},
				{err: down},
				{events: []datastore.Event{event(modified, "a", "6")}, err: nil},
			},
			told:  []string{"to 5 in sync, + a", "to 6, ~ a"},
			calls: []string{"list", "list", "list", "list", "watch 5", "watch 5", "watch 5", "watch 6"},
		},
		{
			name: "compaction tells the difference, and in sync only once",
			steps: []step{
				{items: []api.Object{at("a", "1"), at("b", "2"), at("c", "3"), at("d", "3")}, revision: "5"},
				{events: []datastore.Event{event(modified, "d", "6")}, err: compacted},
				{items: []api.Object{at("a", "1"), at("c", "9"), at("d", "6"), at("e", "10")}, revision: "20"},
				{err: compacted},
				{err: down},
				{revision: "30"},
			},
			told:  []string{"to 5 in sync, + a, + b, + c, + d", "to 6, ~ d", "to 20, ~ c, + e, - b", "to 30, - a, - c, - d, - e"},
			calls: []string{"list", "watch 5", "list", "watch 20", "list", "list", "watch 30"},
		},
		{
			name: "events are judged by what the consumer has",
			steps: []step{
				{items: []api.Object{at("a", "1")}, revision: "5"},
				{events: []datastore.Event{
					event(deleted, "never", "6"), event(modified, "new", "7"), event(added, "a", "8"), event(modified, "a", "8"),
					{Type: deleted, Key: api.Key{Kind: "IPPool", Name: "new"}, Revision: "9"},
				}, err: down},
			},
			told:  []string{"to 5 in sync, + a", "to 9, + new, ~ a, - new"},
			calls: []string{"list", "watch 5", "watch 9"},
		},
		{
			name: "pages are told as they come, until all is there",
			steps: []step{
				{pages: [][]api.Object{{at("a", "1"), at("b", "2")}}, items: []api.Object{at("c", "3")}, revision: "5"},
				{err: compacted},
				{pages: [][]api.Object{{at("a", "7")}, {at("b", "2")}}, items: []api.Object{at("d", "8")}, revision: "9"},
			},
			told:  []string{"to , + a, + b", "to 5 in sync, + c", "to 9, ~ a, + d, - c"},
			calls: []string{"list", "watch 5", "list", "watch 9"},
		},
		{
			name: "a listing that breaks off is not what there is",
			steps: []step{
				{pages: [][]api.Object{{at("a", "1"), at("b", "2")}}, err: compacted},
				{pages: [][]api.Object{{at("b", "2")}, {at("a", "6")}}, err: down},
				{pages: [][]api.Object{{at("a", "6")}}, items: []api.Object{at("c", "7")}, revision: "9"},
				{err: compacted},
				{pages: [][]api.Object{{at("d", "10")}}, err: down},
				{items: []api.Object{at("a", "6"), at("c", "7")}, revision: "12"},
			},
			told:  []string{"to , + a, + b", "to , ~ a", "to 9 in sync, + c, - b", "to 12"},
			calls: []string{"list", "list", "list", "watch 9", "list", "list", "watch 12"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: test.steps}
				var reader datastore.Reader = s
				if slices.ContainsFunc(test.steps, func(s step) bool { return s.pages != nil }) {
					reader = paged{s}
				}
				var told []string
				ctx, cancel := context.WithCancel(t.Context())
				err := datastore.Follow(ctx, reader, "IPPool", datastore.FollowOptions{Parts: true, Logger: slog.New(slog.DiscardHandler), Trouble: func(err error) {
					if len(s.steps) == 0 && err != nil && err.Error() == "the script is over" {
						cancel()
					}
				}}, func(d datastore.Delta[*api.IPPool]) error {
					told = append(told, text(sorted(d)))
					return nil
				})
				require.ErrorIs(t, err, context.Canceled)
				require.Equal(t, test.told, told)
				require.Equal(t, test.calls, s.calls)
			})
		})
	}
}

// sorted puts the deletions of a relist, whose order is open, in the order of their names.
func sorted(d datastore.Delta[*api.IPPool]) datastore.Delta[*api.IPPool] {
	for i := range d.Changes {
		for j := range i {
			a, b := d.Changes[j], d.Changes[i]
			if a.Type == datastore.Deleted && b.Type == a.Type && a.Key.Name > b.Key.Name {
				d.Changes[i], d.Changes[j] = a, b
			}
		}
	}
	return d
}

func TestFollowBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{} // fails always
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		troubles := 0
		opts := datastore.FollowOptions{Logger: slog.New(slog.DiscardHandler), Trouble: func(err error) {
			require.Error(t, err)
			troubles++
		}}
		err := datastore.Follow(ctx, s, "IPPool", opts, func(datastore.Delta[api.Object]) error { return nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, len(s.calls), troubles)
		require.Greater(t, troubles, 8, "it tries soon at first")
		require.Less(t, troubles, 25, "and seldom later")
	})
}

func TestFollowTellsTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{steps: []step{{err: errors.New("down")}, {revision: "1"}, {err: errors.New("down")}, {events: []datastore.Event{event(datastore.Bookmark, "", "2")}}}}
		ctx, cancel := context.WithCancel(t.Context())
		var seen []string
		_ = datastore.Follow(ctx, s, "IPPool", datastore.FollowOptions{Logger: slog.New(slog.DiscardHandler), Trouble: func(err error) {
			if seen = append(seen, fmt.Sprint(err)); len(seen) == 5 {
				cancel()
			}
		}}, func(datastore.Delta[api.Object]) error { return nil })
		require.Equal(t, []string{"down", "<nil>", "down", "<nil>", "the script is over"}, seen)
	})
}

func TestFollowEnds(t *testing.T) {
	noop := func(datastore.Delta[*api.IPPool]) error { return nil }
	err := datastore.Follow(t.Context(), &script{}, "Nonsense", datastore.FollowOptions{}, noop)
	require.ErrorContains(t, err, "Nonsense")
	err = datastore.Follow(t.Context(), &script{}, "Tier", datastore.FollowOptions{}, noop)
	require.ErrorContains(t, err, "*api.Tier")

	broken := errors.New("consumer is broken")
	s := &script{steps: []step{{revision: "1"}}}
	err = datastore.Follow(t.Context(), s, "IPPool", datastore.FollowOptions{}, func(datastore.Delta[*api.IPPool]) error { return broken })
	require.Equal(t, broken, err)
}
