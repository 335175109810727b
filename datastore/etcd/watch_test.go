package etcd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/etcd"
)

// TestAnotherPast gives a running watch a datastore that is not the one it began with. Its revisions mean nothing there,
// so it must end as if history were gone, rather than wait for revisions that will be other changes.
func TestAnotherPast(t *testing.T) {
	t.Parallel()
	for i, test := range []struct {
		name    string
		restore func(t *testing.T, dir, backup string)
		want    string
	}{
		{"set back to a backup", func(t *testing.T, dir, backup string) {
			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.CopyFS(dir, os.DirFS(backup)))
		}, "set back"},
		{"lost its disk", func(t *testing.T, dir, _ string) { require.NoError(t, os.RemoveAll(dir)) }, "another etcd cluster"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			cfg := embedded.Config{Dir: dir, Listen: fmt.Sprintf("127.0.2.%d:0", i+1), Logger: quiet()} // nobody else's, also while it is down
			s, err := embedded.Start(t.Context(), cfg)
			require.NoError(t, err)
			cfg.Listen = strings.TrimPrefix(s.Endpoint(), "http://")
			c := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}, BookmarkEvery: 50 * time.Millisecond, Logger: quiet()})
			_, err = c.Create(t.Context(), pool("kept"))
			require.NoError(t, err)
			require.NoError(t, s.Close())
			backup := filepath.Join(t.TempDir(), "backup")
			require.NoError(t, os.CopyFS(backup, os.DirFS(dir)))

			s, err = embedded.Start(t.Context(), cfg)
			require.NoError(t, err)
			w, err := c.Watch(t.Context(), "IPPool", datastore.WatchOptions{})
			require.NoError(t, err)
			defer w.Stop()
			for _, name := range []string{"lost-1", "lost-2", "lost-3"} {
				_, err = c.Create(t.Context(), pool(name))
				require.NoError(t, err)
				require.Equal(t, name, (<-w.Events()).Key.Name)
			}
			require.NoError(t, s.Close())
			test.restore(t, dir, backup)
			s, err = embedded.Start(t.Context(), cfg)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			for e := range w.Events() {
				require.Equal(t, datastore.Bookmark, e.Type, "%v", e.Key)
			}
			require.ErrorIs(t, w.Err(), datastore.ErrCompacted)
			require.ErrorContains(t, w.Err(), test.want)
			_, err = c.List(t.Context(), "IPPool", datastore.ListOptions{})
			require.NoError(t, err)
			_, err = c.Get(t.Context(), api.Key{Kind: "IPPool", Name: "lost-3"})
			require.ErrorIs(t, err, datastore.ErrNotFound)
		})
	}
}

// TestFutureRevision asks for changes after a revision that does not exist yet.
func TestFutureRevision(t *testing.T) {
	t.Parallel()
	s, _ := server(t, embedded.Config{Logger: quiet()})
	c := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}})
	w, err := c.Watch(t.Context(), "IPPool", datastore.WatchOptions{Revision: "1000000"})
	require.NoError(t, err)
	for range w.Events() {
	}
	require.ErrorIs(t, w.Err(), datastore.ErrCompacted)
}

// TestSuspendedWatch leaves watches unread for so long that each is closed and opened again many times. Nothing may be
// lost or repeated by that.
func TestSuspendedWatch(t *testing.T) {
	t.Parallel()
	s, _ := server(t, embedded.Config{Logger: quiet()})
	c := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}})
	c.SetSlowAfter(time.Millisecond)
	w, err := c.Watch(t.Context(), "IPPool", datastore.WatchOptions{})
	require.NoError(t, err)
	defer w.Stop()
	const n = 600
	for i := range n {
		_, err := c.Create(t.Context(), pool(fmt.Sprint("pool-", i)))
		require.NoError(t, err)
	}
	for i := range n {
		e := <-w.Events()
		require.Equal(t, datastore.Added, e.Type)
		require.Equal(t, fmt.Sprint("pool-", i), e.Key.Name)
	}
}

// TestPrompt: an idle watch is told how far it is complete as soon as somebody asks.
func TestPrompt(t *testing.T) {
	t.Parallel()
	s, _ := server(t, embedded.Config{Logger: quiet()})
	c := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}, BookmarkEvery: time.Hour})
	prompted(t, c)
}

// prompted requires that Prompt moves an idle watch on to what happened to other kinds, and that it goes on from there.
func prompted(t *testing.T, c *etcd.Client) {
	t.Helper()
	_, err := c.Create(t.Context(), pool("there"))
	require.NoError(t, err)
	w, err := c.Watch(t.Context(), "IPPool", datastore.WatchOptions{})
	require.NoError(t, err)
	defer w.Stop()
	other, err := c.Create(t.Context(), &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	require.NoError(t, err)
	reached := func(e datastore.Event) uint64 {
		n, err := strconv.ParseUint(e.Revision, 10, 64)
		require.NoError(t, err)
		return n
	}
	want, err := strconv.ParseUint(other.GetResourceVersion(), 10, 64)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		c.Prompt()
		select {
		case e := <-w.Events():
			require.Equal(t, datastore.Bookmark, e.Type)
			return reached(e) >= want
		case <-t.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
		return false
	}, time.Minute, time.Millisecond)
	_, err = c.Delete(t.Context(), api.Key{Kind: "IPPool", Name: "there"}, datastore.Precondition{})
	require.NoError(t, err)
	for e := range w.Events() {
		if e.Type != datastore.Bookmark {
			require.Equal(t, datastore.Deleted, e.Type)
			require.Greater(t, reached(e), want)
			return
		}
	}
}
