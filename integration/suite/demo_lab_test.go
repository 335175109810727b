//go:build lab

package suite

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

var notShown = regexp.MustCompile(`(?m)not shown here +not shown here$`)

// varying is what differs from run to run in a walk-through, and what is put in its place. A node's name decides about its
// block of addresses.
var varying = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?m)\b(192\.168\.\d+)\.\d+(/32|[^/\d]|$)`), "$1.N$2"},
	{regexp.MustCompile(`([\dN]):\d{5}\b`), "$1:PORT"},
	{regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`), "CLOCK"},
	{regexp.MustCompile(`\b[\d.]+( s|ns|µs|ms|s)\b`), "TIME"},
	{regexp.MustCompile(`rose by \d+`), "rose by N"},
	{regexp.MustCompile(`proto 4, ttl \d+`), "proto 4, ttl N"}, // as inside where the kernel has a device for it
	{regexp.MustCompile(` {2,}`), " "},                         // columns are as wide as what is in them
}

// ofAnyRun is a page with what varies taken out. A packet that was sent again is one.
func ofAnyRun(page []byte) string {
	for _, v := range varying {
		page = v.what.ReplaceAll(page, []byte(v.with))
	}
	return strings.Join(slices.Compact(strings.Split(string(page), "\n")), "\n")
}

// TestDemo: what make demo runs succeeds in time, as root and as an ordinary user, and leaves nothing. Root has it written
// down, and finds what is published.
func TestDemo(t *testing.T) {
	require.Zero(t, os.Geteuid(), "this test becomes an ordinary user, which only root can; run it as root")
	for name, user := range map[string]*syscall.Credential{"root": nil, "without any right": {Uid: 65534, Gid: 65534}} {
		t.Run(name, func(t *testing.T) {
			dir := publicCopy(t, bin(t), user)
			state := filepath.Join(dir, "user", "state")
			began := time.Now()
			page := filepath.Join(dir, "page.md")
			show := []string{"demo"}
			if user == nil {
				show = []string{"walkthrough", "--doc", page}
			}
			out, err := runLab(t, dir, user, nil, append([]string{"--name", "demo-test", "--state-dir", state}, show...)...)
			require.NoError(t, err, out)
			assert.Less(t, time.Since(began), 5*time.Minute)
			assert.Contains(t, out, "All cells shown are as expected")
			assert.Equal(t, 2*3, strings.Count(out, "| node-to-node mesh | up "), "three sessions, at the beginning and at the end:\n%s", out)
			shown := strings.Count(out, "  as expected\n")
			assert.Equal(t, len(lab.Rows()), shown+len(notShown.FindAllString(out, -1)), out)
			if user == nil {
				assert.Len(t, lab.Rows(), shown, out)
				isPublished(t, page)
			} else if shown < len(lab.Rows()) {
				assert.Contains(t, out, "2 of 6 rows are not shown here: IP-in-IP needs root on this kernel")
			}
			assert.Contains(t, out, "BGP backend process")
			assert.NoDirExists(t, state)
		})
	}
}

// isPublished: the page is docs/walkthrough.md, and README.md has its last table, but for the last column.
func isPublished(t *testing.T, page string) {
	t.Helper()
	const again = "make walkthrough writes docs/walkthrough.md anew; README.md quotes its last table"
	text := func(file string) string {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		return ofAnyRun(raw)
	}
	now := text(page)
	assert.Equal(t, now, text("../../docs/walkthrough.md"), again)
	_, table, found := strings.Cut(now, "## What was seen\n")
	require.True(t, found, now)
	for row := range strings.Lines(strings.TrimSpace(table)) {
		cells := strings.Split(strings.Trim(row, "|\n"), "|")
		assert.Contains(t, text("../../README.md"), "\n|"+strings.Join(cells[:len(cells)-1], "|")+"|\n", again)
	}
}

// TestDemoKeeps: with KEEP=1 the lab stays, can be looked at, and is removed by the command that the demo names.
func TestDemoKeeps(t *testing.T) {
	dir := publicCopy(t, bin(t), nil)
	lab := []string{"--name", "demo-kept", "--state-dir", filepath.Join(dir, "user", "state")}
	out, err := runLab(t, dir, nil, []string{"KEEP=1"}, append(lab, "demo")...)
	t.Cleanup(func() { _, _ = runLab(t, dir, nil, nil, append(lab, "down")...) })
	require.NoError(t, err, out)
	assert.Contains(t, out, "The lab stays up")
	assert.Contains(t, out, "--name demo-kept down")

	out, err = runLab(t, dir, nil, nil, append(lab, "exec", "pod-1", "--", "ip", "-br", "addr")...)
	require.NoError(t, err, out)
	assert.Contains(t, out, "192.168.")
	out, err = runLab(t, dir, nil, nil, append(lab, "probe", "pod-1", "pod-3")...)
	require.NoError(t, err, out)
	assert.Contains(t, out, " ipip | ")
	out, err = runLab(t, dir, nil, nil, append(lab, "down")...)
	require.NoError(t, err, out)
}

// publicCopy puts the binaries where every user may run them, with a directory that belongs to the user.
func publicCopy(t *testing.T, bin string, user *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.CopyFS(filepath.Join(dir, "bin"), os.DirFS(bin)))
	own := filepath.Join(dir, "user")
	require.NoError(t, os.Mkdir(own, 0o700))
	if user != nil {
		require.NoError(t, os.Chown(own, int(user.Uid), int(user.Gid)))
	}
	return dir
}

func runLab(t *testing.T, dir string, user *syscall.Credential, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(dir, "bin", "lab"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
