//go:build lab

package watch_test

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/node/watch"
)

func TestTheKernelTellsOfAddressesAndInterfaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace and needs root: run it as root, or under unshare -Urnm")
	}
	runtime.LockOSThread() // never given back: the thread's namespace is the test's
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	ns, err := netns.Get()
	require.NoError(t, err)
	defer func() { _ = ns.Close() }()
	ip := func(args ...string) {
		t.Helper()
		out, err := exec.Command("ip", args...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	ip("link", "add", "eth0", "type", "bridge")
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 1000), make(chan error, 1)
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			ended <- err
			return
		}
		ended <- watch.Addresses(ctx, func() {
			select {
			case <-started:
			default:
				close(started)
			}
			told <- struct{}{}
		})
	}()
	<-started
	<-told
	for _, change := range [][]string{
		{"addr", "add", "10.0.0.1/24", "dev", "eth0"},
		{"-6", "addr", "add", "fd00::1/64", "dev", "eth0"},
		{"addr", "del", "10.0.0.1/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"link", "del", "eth0"},
	} {
		ip(change...)
		select {
		case <-told:
		case <-time.After(time.Minute):
			require.Fail(t, "nothing was told", "%v", change)
		}
		for len(told) > 0 {
			<-told
		}
	}
	cancel()
	require.NoError(t, <-ended)
}
