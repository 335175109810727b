package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/loopback"
)

type config struct {
	Name    string        `flag:"name" env:"TEST_NAME" default:"from-default" usage:"a name"`
	Count   int           `flag:"count" default:"3"`
	Wait    time.Duration `flag:"wait" env:"TEST_WAIT"`
	Hosts   []string      `flag:"hosts"`
	Enabled bool          `flag:"enabled"`
}

// run starts a daemon whose work is to return what do returns, and gives its exit code and stderr.
func run(t *testing.T, cfg *config, do func(*daemon.Daemon) error, args ...string) (int, string) {
	t.Helper()
	var stderr bytes.Buffer
	code := daemon.Run("testd", "is tested", cfg, func(_ context.Context, d *daemon.Daemon) error { return do(d) }, args, &stderr)
	return code, stderr.String()
}

func nothing(*daemon.Daemon) error { return nil }

func TestSettingsCountByFlagEnvironmentFileDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "testd.yaml")
	require.NoError(t, os.WriteFile(file, []byte("name: from-file\ncount: 7\nhosts: [a, b]\nenabled: true\n"), 0o600))

	var cfg config
	code, _ := run(t, &cfg, nothing)
	require.Equal(t, 0, code)
	require.Equal(t, config{Name: "from-default", Count: 3}, cfg)

	cfg = config{}
	code, out := run(t, &cfg, nothing, "--config", file)
	require.Equal(t, 0, code, out)
	require.Equal(t, config{Name: "from-file", Count: 7, Hosts: []string{"a", "b"}, Enabled: true}, cfg)

	t.Setenv("TEST_NAME", "from-env")
	cfg = config{}
	run(t, &cfg, nothing, "--config", file)
	require.Equal(t, "from-env", cfg.Name)

	cfg = config{}
	run(t, &cfg, nothing, "--config", file, "--name", "from-flag")
	require.Equal(t, "from-flag", cfg.Name)
}

func TestMistakesAreOneLineThatNamesThem(t *testing.T) {
	file := filepath.Join(t.TempDir(), "testd.yaml")
	require.NoError(t, os.WriteFile(file, []byte("colour: red\n"), 0o600))
	t.Setenv("TEST_WAIT", "soon")
	for _, c := range []struct {
		want string
		args []string
	}{
		{"there is no setting \"colour\"", []string{"--config", file, "--wait", "1s"}},
		{"environment variable TEST_WAIT", nil},
		{"unknown flag: --colour", []string{"--colour", "red"}},
		{"no such file", []string{"--config", "/nonexistent"}},
		{"\"loud\" is not a level", []string{"--log-level", "loud", "--wait", "1s"}},
		{"cannot listen on 192.0.2.1:1", []string{"--health", "192.0.2.1:1", "--wait", "1s"}},
	} {
		code, out := run(t, &config{}, nothing, c.args...)
		require.Equal(t, 1, code, c.want)
		require.Contains(t, out, c.want)
		require.Equal(t, 1, bytes.Count([]byte(out), []byte("\n")), "one line:\n%s", out)
	}
}

func TestAnErrorOfTheWorkIsTheExitCode(t *testing.T) {
	code, out := run(t, &config{}, func(*daemon.Daemon) error { return errors.New("the bridge is out") })
	require.Equal(t, 1, code)
	require.Contains(t, out, "testd: the bridge is out")
}

func TestHealthIsServed(t *testing.T) {
	address := loopback.Address()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + address + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	code, out := run(t, &config{}, func(d *daemon.Daemon) error {
		status, body := get("/readiness")
		require.Equal(t, http.StatusServiceUnavailable, status, "nobody has said that it is")
		require.Equal(t, "starting\n", body)
		status, _ = get("/liveness")
		require.Equal(t, http.StatusOK, status)
		part := d.Health.Add("kernel", 0)
		status, body = get("/readiness")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Equal(t, "kernel: not ready: starting\n", body)
		status, _ = get("/liveness")
		require.Equal(t, http.StatusOK, status)
		part.Ready()
		status, body = get("/readiness")
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "kernel: ready\n", body)
		status, body = get("/metrics")
		require.Equal(t, http.StatusOK, status)
		require.Contains(t, body, "go_goroutines")
		return nil
	}, "--health", address)
	require.Equal(t, 0, code, out)
}
