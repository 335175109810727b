package diags_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/calicoctl/diags"
	"github.com/muslin-net/muslin/calicoctl/diags/diagstest"
	"github.com/muslin-net/muslin/internal/loopback"
)

func says(text string, err error) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, _ = io.WriteString(w, text)
		return err
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	archive := filepath.Join(dir, "diags-1.tar.gz")
	var progress strings.Builder
	items := []diags.Item{
		{Name: "a/whole.txt", Title: "whole", Collect: says("one\ntoken: hunter2\n", nil)},
		{Name: "a/none.txt", Title: "none", Collect: says("", errors.New("no\nway, password=hunter2"))},
		{Name: "a/part.txt", Title: "part", Collect: says("some\n", errors.New("broke off"))},
		{Name: "a/long.txt", Title: "long", Collect: func(_ context.Context, w io.Writer) error {
			for {
				if _, err := io.WriteString(w, "0123456789\n"); err != nil {
					return fmt.Errorf("writing: %w", err)
				}
			}
		}},
		{Name: "a/hangs.txt", Title: "hangs", Collect: func(ctx context.Context, w io.Writer) error {
			_, _ = io.WriteString(w, "begun\n")
			<-ctx.Done()
			return ctx.Err()
		}},
	}
	outcomes, err := diags.Collect(t.Context(), items, diags.Options{
		Archive: archive, Scratch: t.TempDir(), Progress: &progress, Parallel: 3, Timeout: 50 * time.Millisecond, Limit: 1000,
	})
	require.NoError(t, err)
	require.Len(t, outcomes, len(items))

	got := diagstest.Unpack(t, archive)
	require.Equal(t, "one\ntoken: <removed>\n", got["a/whole.txt"])
	require.NotContains(t, got, "a/none.txt")
	require.Equal(t, "some\n", got["a/part.txt"])
	require.Len(t, got["a/long.txt"], 1000)
	require.Equal(t, "begun\n", got["a/hangs.txt"])
	index := got[diags.Index]
	require.Equal(t, 5, strings.Count(index, "\n"), index)
	require.Regexp(t, `(?m)^whole +21 bytes +\d+ ms  a/whole.txt$`, index)
	require.Contains(t, index, "a/none.txt  (none: no; way, password=<removed>)")
	require.Regexp(t, `(?m)^part .*a/part.txt  \(part: broke off\)$`, index)
	require.Contains(t, index, "(long: longer than 1000 bytes; the rest is left out)")
	require.Contains(t, index, "(hangs: no end after 50ms)")
	for _, line := range []string{"Dumping whole\n", "Dumping none\n", "  none: no; way, password=<removed>\n", "  hangs: no end after 50ms\n"} {
		require.Contains(t, progress.String(), line)
	}
	info, err := os.Stat(archive)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}

// Who interrupts it has no archive, and no half of one.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	archive := filepath.Join(t.TempDir(), "diags-1.tar.gz")
	_, err := diags.Collect(ctx, []diags.Item{{Name: "a", Title: "a", Collect: func(ctx context.Context, _ io.Writer) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}}, {Name: "b", Title: "b", Collect: says("b", nil)}}, diags.Options{Archive: archive, Scratch: t.TempDir()})
	require.ErrorIs(t, err, context.Canceled)
	require.NoFileExists(t, archive)
}

func text(t *testing.T, from func(context.Context, io.Writer) error) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := from(t.Context(), &out)
	return out.String(), err
}

func TestSources(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "one.conf"), []byte("1\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "log"), []byte("first\nsecond\nthird\n"), 0o600))

	got, err := text(t, diags.Program("echo", "hello"))
	require.NoError(t, err)
	require.Equal(t, "hello\n", got)
	_, err = text(t, diags.Program("no-such-program"))
	require.EqualError(t, err, "program no-such-program is not installed here")
	got, err = text(t, diags.Program("sh", "-c", "echo some; echo why >&2; exit 3"))
	require.EqualError(t, err, "sh: exit status 3 why")
	require.Equal(t, "some\n", got)

	got, err = text(t, diags.Files(filepath.Join(dir, "*.conf"), filepath.Join(dir, "*.missing")))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "one.conf")+": 1\n", got)
	_, err = text(t, diags.Files(filepath.Join(dir, "*.missing")))
	require.ErrorContains(t, err, "there is no "+dir)

	got, err = text(t, diags.Tail(filepath.Join(dir, "log"), 6))
	require.NoError(t, err)
	require.Equal(t, "(13 bytes before this are left out)\nthird\n", got)
	_, err = text(t, diags.Tail(filepath.Join(dir, "gone"), 6))
	require.ErrorIs(t, err, os.ErrNotExist)

	got, err = text(t, diags.Names(dir, filepath.Join(dir, "gone")))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Contains(t, got, filepath.Join(dir, "one.conf"))
	require.NotContains(t, got, "first")
}

func TestURL(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", loopback.Address())
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") })
	mux.HandleFunc("/readiness", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "typha: not in sync\n")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	at := "http://" + l.Addr().String()

	got, err := text(t, diags.URL(at+"/nothing", at+"/metrics"))
	require.NoError(t, err)
	require.Equal(t, "up 1\n", got)
	got, err = text(t, diags.URL(at+"/readiness"))
	require.NoError(t, err)
	require.Equal(t, "503 Service Unavailable\ntypha: not in sync\n", got)
	_, err = text(t, diags.URL(at+"/nothing"))
	require.ErrorContains(t, err, "404 Not Found")
}
