//go:build lab

package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/loopback"
)

// TestEnrolment has a node come into a cluster of a real typha by a token alone, found by the variables of the service, and has
// what can be wrong with it said.
func TestEnrolment(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "typha")
	out, err := exec.Command("go", "build", "-o", binary, "../typha").CombinedOutput()
	require.NoError(t, err, "%s", out)
	ca, err := pki.NewCA("test", time.Now())
	require.NoError(t, err)
	serve, enroll := loopback.Address(), loopback.Address()
	host, port, err := net.SplitHostPort(serve)
	require.NoError(t, err)
	_, enrollPort, err := net.SplitHostPort(enroll)
	require.NoError(t, err)
	require.NoError(t, ca.Write(dir))
	pair, err := ca.Issue(pki.Typha(), time.Now())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "typha.d"), 0o700))
	require.NoError(t, pair.Write(filepath.Join(dir, "typha.d")))

	tokens := filepath.Join(dir, "tokens")
	token := func(node string) string {
		out, err := exec.Command(binary, "--tokens", tokens, "--new-token", node).Output()
		require.NoError(t, err)
		path := filepath.Join(dir, "token-"+node)
		require.NoError(t, os.WriteFile(path, out, 0o600))
		return path
	}
	files := func(node string) []string {
		at := filepath.Join(dir, "pki", node)
		return []string{"-node", node, "-lib-dir", filepath.Join(dir, "lib", node), "-ca", filepath.Join(at, "ca.crt"), "-cert", filepath.Join(at, "tls.crt"), "-key", filepath.Join(at, "tls.key")}
	}
	t.Setenv("KUBECONFIG", "")
	t.Setenv("CALICO_TYPHA_SERVICE_HOST", host)
	t.Setenv("CALICO_TYPHA_SERVICE_PORT_CALICO_TYPHA", port)
	t.Setenv("CALICO_TYPHA_SERVICE_PORT_ENROLL", enrollPort)
	t.Setenv("IP", "10.0.0.1/24")
	start := func(ctx context.Context, node string, more ...string) error {
		cfg, err := parse(append(append(files(node), "-startup"), more...), os.LookupEnv)
		require.NoError(t, err)
		return run(ctx, cfg)
	}
	trust := []string{"-enroll-ca", filepath.Join(dir, "ca.crt")}
	with := func(token string) []string { return append(trust, "-enroll-join-token", token) }

	// The node starts first: it waits for typha.
	good := token("n1")
	started := make(chan error, 1)
	go func() { started <- start(t.Context(), "n1", with(good)...) }()
	log, err := os.Create(filepath.Join(dir, "typha.log"))
	require.NoError(t, err)
	defer log.Close()
	typha := exec.Command(binary, "--listen", serve, "--enroll-listen", enroll, "--tokens", tokens, "--ca", filepath.Join(dir, "ca.crt"),
		"--ca-key", filepath.Join(dir, "ca.key"), "--cert", filepath.Join(dir, "typha.d/tls.crt"), "--key", filepath.Join(dir, "typha.d/tls.key"),
		"--datastore", "embedded", "--datastore-dir", filepath.Join(dir, "data"))
	typha.Stdout, typha.Stderr = log, log
	require.NoError(t, typha.Start())
	defer func() {
		_ = typha.Process.Kill()
		_ = typha.Wait()
		if t.Failed() {
			body, _ := os.ReadFile(log.Name())
			t.Logf("typha:\n%s", body[max(0, len(body)-4000):])
		}
	}()
	require.NoError(t, <-started)
	name, err := os.ReadFile(filepath.Join(dir, "lib/n1/nodename"))
	require.NoError(t, err)
	require.Equal(t, "n1", string(name))
	for _, file := range []string{"tls.crt", "tls.key"} {
		info, err := os.Stat(filepath.Join(dir, "pki/n1", file))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	require.NoError(t, start(t.Context(), "n1", with(good)...), "again: the certificate is good, and the token, which is used up, not needed")
	require.NoError(t, start(t.Context(), "n1"), "nor is any")

	// What is wrong is said.
	require.ErrorContains(t, start(t.Context(), "n2", with(good)...), "used already")
	require.ErrorContains(t, start(t.Context(), "n2", with(token("n3"))...), `another node than "n2"`)
	require.ErrorContains(t, start(t.Context(), "n2", "-enroll-token", filepath.Join(dir, "nowhere")), "nor a token to get one with")
	other, err := pki.NewCA("other", time.Now())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other.crt"), other.CertPEM(), 0o600))
	for _, c := range []struct {
		says, service string
		args          []string
	}{
		{"the token was not shown: " + filepath.Join(dir, "other.crt") + " must hold the CA that signed typha's certificate", enrollPort, []string{"-enroll-ca", filepath.Join(dir, "other.crt"), "-enroll-join-token", token("n4")}},
		{"connection refused", "1", with(token("n4"))},
	} {
		t.Setenv("CALICO_TYPHA_SERVICE_PORT_ENROLL", c.service)
		for wait := 3 * time.Second; ; wait *= 2 { // it goes on trying, and may not have got round to it
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			err = start(ctx, "n4", c.args...)
			cancel()
			if wait > time.Minute || err != nil && strings.Contains(err.Error(), c.says) {
				break
			}
		}
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), "\n")
	}
}
