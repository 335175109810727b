//go:build lab

// Package labtest gives tests of drivers network namespaces of their own.
package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with a path, as the CNI would give it.
type Namespace struct {
	Path string
	fd   int
}

// Enter puts the calling test, which must not run in parallel to others in its goroutine, into a fresh network namespace
// with loopback up. The thread is never given back, so that no other test meets the namespace.
func Enter(t testing.TB) *Namespace {
	t.Helper()
	ns := New(t)
	ns.Set(t)
	return ns
}

// New makes a namespace and leaves the caller where it is.
func New(t testing.TB) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root: run it with -exec 'unshare -nm' as root, or under unshare -Urnm")
	}
	path := filepath.Join(t.TempDir(), "netns")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		made <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}()
	}()
	require.NoError(t, <-made)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = unix.Close(fd)
		_ = unix.Unmount(path, unix.MNT_DETACH)
	})
	ns := &Namespace{Path: path, fd: fd}
	ns.Run(t, "ip link set lo up")
	return ns
}

// Set moves the calling goroutine, for good, into the namespace.
func (n *Namespace) Set(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // not unlocked, for the same reason
	require.NoError(t, unix.Setns(n.fd, unix.CLONE_NEWNET))
}

// Do runs f in the namespace on a thread of its own; an error ends the test.
func (n *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	require.NoError(t, n.In(f))
}

// In runs f in the namespace on a thread of its own and returns its error.
func (n *Namespace) In(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Run runs a shell command in the namespace and returns what it prints; failure ends the test.
func (n *Namespace) Run(t testing.TB, command string) string {
	t.Helper()
	out, err := n.Try(command)
	require.NoError(t, err, "%s\n%s", command, out)
	return out
}

// AwaitLinks waits until the namespace's links that are up work, and their IPv6 addresses are the node's own: the kernel activates a
// link some time after it is up, and drops what is sent by it before, and makes the local route of an IPv6 address, also of one that
// needs no detection of duplicates, in a work queue (addrconf_dad_work). A busy machine puts off both.
func (n *Namespace) AwaitLinks(t testing.TB) {
	t.Helper()
	// What has no carrier is not activated.
	const idle = `
		ip -o link show up | grep LOWER_UP | grep ' qdisc noop ' || true
		ip -6 -o addr show up scope global | while read -r _ link _ address _; do
			! ip -o link show "$link" | grep -q LOWER_UP || [ -n "$(ip -6 route show table local "${address%/*}")" ] || echo "$address is not local"
		done`
	var out string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if out = n.Run(t, idle); out == "" {
			return
		}
	}
	require.Fail(t, "links do not work", out)
}

// Try runs a shell command in the namespace.
func (n *Namespace) Try(command string) (string, error) {
	var out []byte
	err := n.In(func() error {
		var err error
		out, err = exec.Command("sh", "-ec", command).CombinedOutput()
		return err
	})
	return string(out), err
}
