//go:build lab

package vm

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// TestTheSecondKernel boots once for all that one boot can show.
func TestTheSecondKernel(t *testing.T) {
	release, err := Release(t.Context(), os.Stderr)
	require.NoError(t, err)
	writable, hidden := t.TempDir(), t.TempDir()
	before := qemus(t)
	// The script goes on only when its first line has come out and been answered, so output is passed on as it comes.
	answers, answer := io.Pipe()
	var out, said bytes.Buffer
	asked := sync.OnceFunc(func() {
		go func() {
			_, _ = io.WriteString(answer, "go on\n")
			answer.Close()
		}()
	})
	start := time.Now()
	code, err := Run(t.Context(), Config{
		Env: []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "WORD=it's\nhere"}, Dir: hidden, Writable: []string{writable},
		Without: []string{"dummy"}, Modules: []string{"ip_vs"}, Cmdline: []string{"muslin.test=1"}, Stdin: answers,
		Stdout: io.MultiWriter(&out, writer(func(p []byte) (int, error) { asked(); return len(p), nil })), Stderr: &said,
	}, "sh", "-c", `uname -r
read line && echo "heard $line"
pwd; echo "$WORD"; echo "$1 $#"
cat /proc/sys/kernel/printk >/dev/stderr
grep -o 'muslin.test=1' /proc/cmdline
[ -d /sys/module/ip_vs ] && echo before
[ -d /sys/module/ipip ] || echo 'not yet'
ip link add name new0 type ipip local 192.0.2.1 remote 192.0.2.2 && [ -d /sys/module/ipip ] && echo loaded
ip link add name new1 type dummy 2>/dev/null || echo refused
echo kept >"$2/file"; echo lost >file; cat file
sleep 1000 &
exit 3`, "sh", "one word", writable)
	t.Logf("boot, script and end took %v", time.Since(start))
	require.NoError(t, err)
	assert.Equal(t, 3, code)
	assert.Equal(t, []string{
		release, "heard go on", hidden, "it's", "here", "one word 2", "muslin.test=1", "before", "not yet", "loaded", "refused", "lost",
	}, strings.Split(strings.TrimSpace(out.String()), "\n"))
	assert.Regexp(t, `(?s)^\d+\s.*the guest's kernel said:\n.* Module dummy is blacklisted`, said.String())
	host, err := exec.Command("uname", "-r").Output()
	require.NoError(t, err)
	assert.NotEqual(t, strings.TrimSpace(string(host)), release)
	assert.False(t, Inside())

	kept, err := os.ReadFile(filepath.Join(writable, "file"))
	require.NoError(t, err)
	assert.Equal(t, "kept\n", string(kept))
	left, err := os.ReadDir(hidden)
	require.NoError(t, err)
	assert.Empty(t, left, "written only in the guest")
	assert.Equal(t, before, qemus(t))
}

// TestEndsOfAGuest has a guest for each way to end; they run at once.
func TestEndsOfAGuest(t *testing.T) {
	_, err := Release(t.Context(), os.Stderr)
	require.NoError(t, err)
	before, cache := qemus(t), cached(t)
	var g errgroup.Group
	g.SetLimit(2)
	for name, check := range map[string]func(ctx context.Context) bool{
		"a signal ends the command": func(ctx context.Context) bool {
			code, err := Run(ctx, Config{Memory: 512}, "sh", "-c", "kill -9 $$")
			return assert.NoError(t, err) && assert.Equal(t, 137, code)
		},
		"a panic shows the console": func(ctx context.Context) bool {
			var out bytes.Buffer
			code, err := Run(ctx, Config{Memory: 512, Stdout: &out}, "sh", "-c", "echo before; sleep 0.2; echo c >/proc/sysrq-trigger")
			return assert.ErrorContains(t, err, "Kernel panic - not syncing: sysrq triggered crash") && assert.Equal(t, -1, code) &&
				assert.Equal(t, "before\n", out.String())
		},
		"a missing module is an error": func(ctx context.Context) bool {
			_, err := Run(ctx, Config{Memory: 512, Modules: []string{"nosuch"}}, "true")
			return assert.ErrorContains(t, err, "module nosuch cannot be loaded")
		},
		"time over": func(ctx context.Context) bool {
			_, err := Run(ctx, Config{Memory: 512, Timeout: 2 * time.Second}, "sleep", "1000")
			return assert.ErrorIs(t, err, context.DeadlineExceeded) && assert.ErrorContains(t, err, "did not end within 2s")
		},
		"interrupted": func(ctx context.Context) bool {
			ctx, cancel := context.WithCancel(ctx)
			_, err := Run(ctx, Config{Memory: 512, Stdout: writer(func(p []byte) (int, error) { cancel(); return len(p), nil })},
				"sh", "-c", "echo up; sleep 1000")
			return assert.ErrorIs(t, err, context.Canceled)
		},
	} {
		g.Go(func() error {
			if !check(t.Context()) {
				t.Errorf("in: %s", name)
			}
			return nil
		})
	}
	_ = g.Wait()
	assert.Equal(t, before, qemus(t), "qemu processes")
	assert.Equal(t, cache, cached(t), "files of the cache")
}

// TestASuite runs tests of this very package in the guest.
func TestASuite(t *testing.T) {
	Config{Memory: 1024}.Test(t, ".", "-test.run=^(TestASuite|TestArchive|TestAnyWordIsOneWordOfTheShell)$")
}

// TestKilledParentTakesTheGuestAlong kills, with a signal nobody can catch, a process that runs a guest.
func TestKilledParentTakesTheGuestAlong(t *testing.T) {
	if os.Getenv("MUSLIN_VM_CHILD") != "" {
		_, _ = Run(t.Context(), Config{Memory: 512, Stdout: os.Stdout}, "sleep", "1000")
		return
	}
	before := qemus(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledParentTakesTheGuestAlong$")
	cmd.Env = append(os.Environ(), "MUSLIN_VM_CHILD=1")
	require.NoError(t, cmd.Start())
	assert.Eventually(t, func() bool { return len(qemus(t)) > len(before) }, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	assert.Eventually(t, func() bool { return assert.ObjectsAreEqual(before, qemus(t)) }, 10*time.Second, 20*time.Millisecond)
}

// qemus are the process ids of this package's guests: those whose first files are in memory.
func qemus(t *testing.T) (pids []string) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, f := range found {
		cmdline, _ := os.ReadFile(f) // a process may have ended
		if bytes.Contains(cmdline, []byte("qemu-system")) && bytes.Contains(cmdline, []byte(mark)) && own(filepath.Dir(f)) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// own tells whether a guest carries this test's environment: other guests may run on this machine.
func own(process string) bool {
	env, _ := os.ReadFile(filepath.Join(process, "environ"))
	return bytes.Contains(env, []byte("MUSLIN_VM_TEST="+token+"\x00"))
}

func cached(t *testing.T) (names []string) {
	t.Helper()
	dir, err := cacheDir()
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// token marks the guests of this run of the tests.
var token = time.Now().Format(time.RFC3339Nano)

func TestMain(m *testing.M) {
	if inherited := os.Getenv("MUSLIN_VM_TEST"); inherited != "" {
		token = inherited
	}
	os.Setenv("MUSLIN_VM_TEST", token)
	os.Exit(m.Run())
}
