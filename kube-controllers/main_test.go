package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/loopback"
)

// start runs kube-controllers until ctx ends, and returns the exit code.
func start(ctx context.Context, out io.Writer, args ...string) int {
	var cfg settings
	return daemon.Run("kube-controllers", "", &cfg, func(signals context.Context, d *daemon.Daemon) error {
		signals, cancel := context.WithCancel(signals)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return run(signals, d, cfg)
	}, args, out)
}

func TestMistakesAreOneLine(t *testing.T) {
	for want, args := range map[string][]string{
		"setting lease: give whole seconds": {"--lease", "2500ms", "--datastore", "etcdv3", "--datastore-endpoints", "http://127.0.0.1:1"},
		"\"floppy\"":                        {"--datastore", "floppy"},
	} {
		var out bytes.Buffer
		require.Equal(t, 1, start(t.Context(), &out, append(args, "--log-level", "error")...), want)
		require.Contains(t, out.String(), want)
		require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
	}
}

// says tells whether a page of a process has a text.
func says(address, path, want string) func() bool {
	return func() bool {
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(body), want)
	}
}

// TestOneOfTwoLeads runs two processes: both are ready, one leads, and the other does when the first ends.
func TestOneOfTwoLeads(t *testing.T) {
	store, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	type process struct {
		stop    context.CancelFunc
		code    chan int
		address string
	}
	launch := func() process {
		p := process{address: loopback.Address(), code: make(chan int, 1)}
		var ctx context.Context
		ctx, p.stop = context.WithCancel(t.Context())
		go func() {
			p.code <- start(ctx, t.Output(), "--datastore", "etcdv3", "--datastore-endpoints", store.Endpoint(), "--health", p.address, "--lease", "15s", "--log-level", "warn")
		}()
		t.Cleanup(p.stop)
		return p
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, time.Minute, 20*time.Millisecond, what)
	}
	first := launch()
	soon("the first one leads", says(first.address, "/metrics", "kube_controllers_leader 1"))
	second := launch()
	soon("the second one is ready", says(second.address, "/readiness", "datastore: ready"))
	require.True(t, says(second.address, "/metrics", "kube_controllers_leader 0")())
	first.stop()
	require.Zero(t, <-first.code)
	soon("the second one leads", says(second.address, "/metrics", "kube_controllers_leader 1"))
	second.stop()
	require.Zero(t, <-second.code)
}
