//go:build lab

package suite

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

var notShown = regexp.MustCompile(`(?m)not shown here +not shown here$`)

// TestDemo: what make demo runs succeeds in time, as root and as an ordinary user, and leaves nothing.
func TestDemo(t *testing.T) {
	require.Zero(t, os.Geteuid(), "this test becomes an ordinary user, which only root can; run it as root")
	for name, user := range map[string]*syscall.Credential{"root": nil, "without any right": {Uid: 65534, Gid: 65534}} {
		t.Run(name, func(t *testing.T) {
			dir := publicCopy(t, bin(t), user)
			state := filepath.Join(dir, "user", "state")
			began := time.Now()
			out, err := runLab(t, dir, user, nil, "--name", "demo-test", "--state-dir", state, "demo")
			require.NoError(t, err, out)
			assert.Less(t, time.Since(began), 5*time.Minute)
			assert.Contains(t, out, "All cells shown are as expected")
			assert.Equal(t, 2*3, strings.Count(out, "| node-to-node mesh | up "), "three sessions, at the beginning and at the end:\n%s", out)
			shown := strings.Count(out, "  as expected\n")
			assert.Equal(t, len(lab.Rows()), shown+len(notShown.FindAllString(out, -1)), out)
			if user == nil {
				assert.Len(t, lab.Rows(), shown, out)
			} else if shown < len(lab.Rows()) {
				assert.Contains(t, out, "2 of 6 rows are not shown here: IP-in-IP needs root on this kernel")
			}
			assert.Contains(t, out, "BGP backend process")
			assert.NoDirExists(t, state)
		})
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
