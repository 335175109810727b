// Package conformance decides whether something is a datastore backend: one suite, run by the tests of every backend.
//
// It owns what every backend must do the same (the contract of package datastore, made into tests), and refuses what is
// a backend's own: layouts, settings and error causes are tested where they live. Revisions are compared as numbers,
// since all backends here have such.
package conformance

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// Subject is one empty datastore under test, and what can be done to it from outside. A nil function means that it
// cannot; the tests that need it are then left out, and Run says so.
type Subject struct {
	Client datastore.Client
	// Restart stops the server the hard way and starts it again with the same data. The client stays.
	Restart func(t *testing.T)
	// Compact makes the server forget all history up to now.
	Compact func(t *testing.T)
	// Bookmarks is how long an idle watch may take to be told the revision; 0 if it may take forever.
	Bookmarks time.Duration
	// DrawsIdentity says that the server draws uid and creationTimestamp of a new object itself, whatever it was given.
	DrawsIdentity bool
	// Forgets says that a server that was restarted remembers no history: watches may then end with ErrCompacted.
	Forgets bool
}

// Run runs the suite. open is called once for each test and returns an empty datastore; it registers its own clean-up.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"Lifecycle", testLifecycle},
		{"Identity", testIdentity},
		{"Errors", testErrors},
		{"Preconditions", testPreconditions},
		{"CompareAndSwapRace", testCompareAndSwapRace},
		{"CreateRace", testCreateRace},
		{"DeleteRace", testDeleteRace},
		{"ListOrderAndScope", testListOrderAndScope},
		{"ListOfAddressManagement", testListIPAM},
		{"ListIsASnapshot", testListSnapshot},
		{"WatchTypes", testWatchTypes},
		{"WatchScope", testWatchScope},
		{"WatchFromNow", testWatchFromNow},
		{"WatchResume", testWatchResume},
		{"WatchUnderWriters", testWatchUnderWriters},
		{"WatchSlowConsumer", testWatchSlowConsumer},
		{"WatchEnds", testWatchEnds},
		{"WatchBookmarks", testWatchBookmarks},
		{"WatchCompaction", testWatchCompaction},
		{"WatchRestart", testWatchRestart},
		{"FollowRestartAndCompaction", testFollow},
		{"Ready", testReady},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// The kinds the suite writes: one of each scope, without required fields.
const (
	clusterKind    = "GlobalNetworkSet"
	namespacedKind = "NetworkSet"
	counter        = "count" // annotation
)

// patience bounds every wait. It is long, since it is only met by failures.
const patience = time.Minute

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func key(name string) api.Key { return api.Key{Kind: clusterKind, Name: name} }

func object(name string) *api.GlobalNetworkSet {
	o := &api.GlobalNetworkSet{}
	o.SetName(name)
	o.Spec.Nets = []string{"192.0.2.0/24"}
	return o
}

func namespaced(namespace, name string) *api.NetworkSet {
	o := &api.NetworkSet{}
	o.SetNamespace(namespace)
	o.SetName(name)
	o.Spec.Nets = []string{"192.0.2.0/24"}
	return o
}

func create(t *testing.T, c datastore.Client, o api.Object) api.Object {
	t.Helper()
	out, err := c.Create(deadline(t), o)
	require.NoError(t, err)
	return out
}

// count reads the counter of an object; 0 without one.
func count(o api.Object) int {
	n, _ := strconv.Atoi(o.GetAnnotations()[counter])
	return n
}

func setCount(o api.Object, n int) { o.SetAnnotations(map[string]string{counter: strconv.Itoa(n)}) }

// bump writes an object with its counter set to n, whatever its revision.
func bump(ctx context.Context, c datastore.Client, k api.Key, n int) error {
	o, err := c.Get(ctx, k)
	if err != nil {
		return err
	}
	setCount(o, n)
	_, err = c.Update(ctx, o)
	return err
}

func number(t *testing.T, revision string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(revision, 10, 64)
	require.NoError(t, err, "revision %q", revision)
	return n
}

func names(objects []api.Object) []string {
	out := []string{}
	for _, o := range objects {
		name := o.GetName()
		if o.GetNamespace() != "" {
			name = o.GetNamespace() + "/" + name
		}
		out = append(out, name)
	}
	return out
}

func testReady(t *testing.T, s Subject) {
	require.NoError(t, s.Client.Ready(deadline(t)))
}
