package probe

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type state struct{ live, ready bool }

func (s state) State() (bool, bool, []string) { return s.live, s.ready, []string{"datastore: away"} }

func TestProbe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "status.json")
	ask := func(flag string) (int, string) {
		var out bytes.Buffer
		code := Check([]string{flag, "-f", file}, &out)
		return code, out.String()
	}
	code, said := ask("-r")
	require.Equal(t, 1, code)
	require.Contains(t, said, "no status")

	require.NoError(t, write(file, state{live: true}))
	code, _ = ask("-l")
	require.Zero(t, code)
	code, said = ask("-r")
	require.Equal(t, 1, code)
	require.Equal(t, "kube-controllers is not ready: datastore: away\n", said)
	require.NoError(t, write(file, state{true, true}))
	code, said = ask("-r")
	require.Zero(t, code)
	require.Equal(t, "Ready\n", said)

	old := time.Now().Add(-2 * stale)
	require.NoError(t, os.Chtimes(file, old, old))
	code, said = ask("-l")
	require.Equal(t, 1, code)
	require.Contains(t, said, "hangs")
	var out bytes.Buffer
	require.Equal(t, 2, Check(nil, &out))
	require.Equal(t, 2, Check([]string{"-x"}, &out))
}

func TestAsked(t *testing.T) {
	for _, args := range [][]string{{"/usr/bin/check-status", "-l"}, {"/kube-controllers", "check-status", "-l"}} {
		rest, is := Asked(args)
		require.True(t, is)
		require.Equal(t, []string{"-l"}, rest)
	}
	_, is := Asked([]string{"kube-controllers", "--lease", "3s"})
	require.False(t, is)
}

func TestTheFileEndsWithTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "status.json")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Write(ctx, file, state{true, true}, slog.New(slog.DiscardHandler)) }()
	require.Eventually(t, func() bool { _, err := os.Stat(file); return err == nil }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoFileExists(t, file)

	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Write(ctx, "/nonexistent/status.json", state{}, slog.New(slog.DiscardHandler)), context.Canceled)
}
