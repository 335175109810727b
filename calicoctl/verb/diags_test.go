package verb

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/calicoctl/diags/diagstest"
	"github.com/muslin-net/muslin/internal/loopback"
)

// unpack reads the archive that a command says it has made.
func unpack(t *testing.T, said string) map[string]string {
	t.Helper()
	match := regexp.MustCompile(`Diags saved to (\S+)`).FindStringSubmatch(said)
	require.NotNil(t, match, said)
	return diagstest.Unpack(t, match[1])
}

// serveMetrics is a daemon's health port.
func serveMetrics(t *testing.T, program string) string {
	t.Helper()
	l, err := net.Listen("tcp", loopback.Address())
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "build_info{program=\""+program+"\",version=\"v9.8.7\"} 1\nother 3\n")
	})
	mux.HandleFunc("/readiness", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "view: ready\n") })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return l.Addr().String()
}

// The secrets that are in a node's reach, and must not be in its archive.
const (
	peerPassword = "hunter2-of-the-peer"
	logPassword  = "hunter2-in-a-log"
)

// A node with a real bird, whose peer has a password; its felix runs, typha is not known, and there is a log that somebody else
// wrote a secret into.
func TestNodeDiags(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	config := speakerConfig(netip.MustParseAddr("127.0.86.1"), netip.MustParseAddr("127.0.86.2"), true)
	config.Peers[1].Password = peerPassword
	node := startNode(t, config, "192.168.1.0/26")
	logs, pods, lib := t.TempDir(), t.TempDir(), t.TempDir()
	container := filepath.Join(pods, "kube-system_calico-node-x7_uid", "felix")
	for dir, file := range map[string]string{filepath.Join(logs, "cni"): "cni.log", container: "0.log"} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte("level=info msg=\"something happened\" password="+logPassword+"\n"), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(lib, "tls.key"), []byte(logPassword), 0o600))

	nobody := loopback.Address()
	var out, errs strings.Builder
	require.Eventually(t, func() bool {
		out.Reset()
		return Run(t.Context(), "v1.2.3", append([]string{"bgp", "routes"}, node...), strings.NewReader(""), &out, &errs) == 0 && strings.Contains(out.String(), "192.168.1.0/26")
	}, time.Minute, 50*time.Millisecond)
	out.Reset()
	code := Run(t.Context(), "v1.2.3", append([]string{
		"node", "diags", "--log-dir", logs, "--pod-log-dir", pods, "--lib-dir", lib, "--typha", nobody, "--credentials", lib,
		"--felix-health", serveMetrics(t, "felix"), "--bird-health", nobody, "--bird-metrics", serveMetrics(t, "bird"),
		"--typha-health", nobody, "--typha-metrics", nobody, "--kube-controllers-health", nobody, "--kube-controllers-metrics", nobody,
	}, node...), strings.NewReader(""), &out, &errs)
	require.Equal(t, 0, code, "%s\n%s", out.String(), errs.String())

	got := unpack(t, out.String())
	for name, want := range map[string]string{
		"versions.txt":      "calicoctl v1.2.3 ",
		"host/host.txt":     "processors ",
		"host/memory.txt":   "MemTotal",
		"bird/status.yaml":  "name: Node_x",
		"bird/peers.txt":    "Node_x",
		"bird/routes.txt":   "192.168.1.0/26",
		"felix/health.txt":  "view: ready",
		"felix/metrics.txt": "other 3",
		"bird/metrics.txt":  "other 3",
		"logs/cni/cni.log":  "something happened",
		"logs/pods/kube-system_calico-node-x7_uid/felix/0.log": "something happened",
		"config/files.txt": "tls.key",
	} {
		require.Contains(t, got[name], want, name)
	}
	require.Contains(t, got["versions.txt"], `felix build_info{program="felix",version="v9.8.7"} 1`)
	require.Contains(t, got["versions.txt"], "typha does not say")
	for name, text := range got {
		require.NotContains(t, text, peerPassword, name)
		require.NotContains(t, text, logPassword, name)
	}
	index := got["index.txt"]
	for _, missing := range []string{"felix/endpoints.yaml", // of which the felix here knows nothing
		"typha/views.txt", "typha/metrics.txt", "kube-controllers/health.txt"} {
		require.NotContains(t, got, missing)
		require.Regexp(t, `(?m)^none .* `+regexp.QuoteMeta(missing)+`  \(.+\)$`, index)
		require.Regexp(t, `(?m)^whole .* bird/status.yaml$`, index)
	}
	for _, line := range []string{"Collecting diagnostics\n", "Using temp dir: ", "Dumping routes (IPv4)\n", "Dumping log " + filepath.Join(logs, "cni/cni.log"), "missing or not whole"} {
		require.Contains(t, out.String(), line)
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "calico*", "*"))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing but the archive stays")
}

// A machine on which nothing of ours runs gives an archive all the same.
func TestNodeDiagsOfNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	socket := filepath.Join(t.TempDir(), "nobody.sock")
	args := []string{"node", "diags", "--log-dir", socket, "--pod-log-dir", socket, "--lib-dir", socket, "--felix-socket", socket, "--bird-socket", socket}
	for _, daemon := range daemons {
		args = append(args, "--"+daemon.name+"-health", loopback.Address(), "--"+daemon.name+"-metrics", loopback.Address())
	}
	var out, errs strings.Builder
	require.Equal(t, 0, Run(t.Context(), "v1.2.3", args, strings.NewReader(""), &out, &errs), errs.String())
	index := unpack(t, out.String())["index.txt"]
	require.Regexp(t, `(?m)^none .* bird/routes.txt  \(BGP routes: bird does not run: .*no such file or directory\)$`, index)
	require.Regexp(t, `(?m)^none .* felix/kernel.txt  \(.*is felix running on this node\?\)$`, index)
	require.Regexp(t, `(?m)^none .* logs/none.txt  \(logs: lstat `+regexp.QuoteMeta(socket)+`: no such file or directory\)$`, index)
	require.Regexp(t, `(?m)^whole .* host/host.txt$`, index)

	// Without a place for it there is none, and that is said.
	t.Setenv("TMPDIR", socket)
	errs.Reset()
	require.Equal(t, 1, Run(t.Context(), "v1.2.3", args, strings.NewReader(""), &out, &errs))
	require.Contains(t, errs.String(), "set TMPDIR to one with room")
}
