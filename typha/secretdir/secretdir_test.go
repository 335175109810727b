package secretdir

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/typha/compute"
)

func write(t *testing.T, dir, name, value string) {
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path+".new", []byte(value), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// TestRun has values come late, change and go, among others that are never there.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		dir := filepath.Join(t.TempDir(), "secrets") // is not there yet
		d := New(dir, slog.New(slog.NewTextHandler(&logged, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		var mu sync.Mutex
		var told []string
		go func() {
			ended <- d.Run(ctx, func(ref compute.SecretRef, value []byte) error {
				text := "missing"
				if value != nil {
					text = string(value)
				}
				mu.Lock()
				defer mu.Unlock()
				told = append(told, ref.Name+"/"+ref.Key+"="+text)
				return nil
			})
		}()
		expect := func(what string, lines ...string) {
			t.Helper()
			time.Sleep(interval + time.Millisecond)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, lines, told, what)
			told = nil
		}
		ref := func(name, key string) compute.SecretRef { return compute.SecretRef{Name: name, Key: key} }
		expect("nothing is wanted")
		d.Want([]compute.SecretRef{ref("bgp", "rack1"), ref("bgp", "rack2")})
		expect("there is no directory", "bgp/rack1=missing", "bgp/rack2=missing")
		expect("no news")
		write(t, dir, "bgp/rack1", "top-secret\n")
		expect("a late arrival", "bgp/rack1=top-secret")
		write(t, dir, "bgp/rack1", "other")
		write(t, dir, "bgp/rack2", "")
		expect("a change; an empty file is no password", "bgp/rack1=other", "bgp/rack2=missing")
		d.Want([]compute.SecretRef{ref("bgp", "rack2")})
		write(t, dir, "bgp/rack1", "not wanted")
		expect("not wanted")
		d.Want([]compute.SecretRef{ref("bgp", "rack1")})
		expect("wanted again", "bgp/rack1=not wanted")
		d.Want(nil)
		d.Want([]compute.SecretRef{ref("bgp", "rack1")})
		expect("wanted again, before anybody saw that it was not", "bgp/rack1=not wanted")
		require.NoError(t, os.Remove(filepath.Join(dir, "bgp/rack1")))
		expect("gone", "bgp/rack1=missing")

		// What Kubernetes mounts: links inside the directory of the secret.
		write(t, dir, "bgp/..2026/rack1", "linked")
		require.NoError(t, os.Symlink("..2026", filepath.Join(dir, "bgp/..data")))
		require.NoError(t, os.Symlink("..data/rack1", filepath.Join(dir, "bgp/rack1")))
		expect("linked", "bgp/rack1=linked")

		// What leads out of the directory, or is no file.
		write(t, dir, "../outside", "stolen")
		require.NoError(t, os.Symlink("../../outside", filepath.Join(dir, "bgp/out")))
		write(t, dir, "bgp/large", strings.Repeat("x", maxSize+1))
		d.Want([]compute.SecretRef{ref("..", "outside"), ref(".", "bgp"), ref("bgp", "../../outside"), ref("bgp", "out"), ref("bgp", "..2026"), ref("bgp", "large")})
		expect("no way out", "../outside=missing", "./bgp=missing", "bgp/../../outside=missing", "bgp/out=missing", "bgp/..2026=missing", "bgp/large=missing")
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		for _, value := range []string{"top-secret", "linked", "stolen"} {
			require.NotContains(t, logged.String(), value)
		}
	})
}
