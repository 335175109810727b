//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// apart tells a test binary that it sees its own mounts and named namespaces only.
const apart = "MUSLIN_LAB_APART"

// Suites of other packages run beside, mount and name namespaces too: what is found to be left behind here must be of labs made here.
func init() {
	if os.Getenv(apart) != "" || os.Geteuid() != 0 {
		return
	}
	const names = "/run/netns"
	err := unix.Unshare(unix.CLONE_NEWNS) // of this thread, which becomes the next process's only one
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = os.MkdirAll(names, 0o755)
	}
	if err == nil {
		err = unix.Mount("names", names, "tmpfs", 0, "")
	}
	if err == nil {
		err = unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), apart+"=1"))
	}
	fmt.Fprintln(os.Stderr, "a view of the machine without others' mounts:", err)
	os.Exit(1)
}

// bare is the demo's fabric with machines that run nothing.
func bare(t *testing.T) Topology {
	t.Helper()
	topo, err := DemoTopology()
	require.NoError(t, err)
	topo.Pods, topo.Pools = nil, nil
	for i := range topo.Nodes {
		topo.Nodes[i].Processes = []string{}
	}
	return topo
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// shortDir is a temporary directory with a path short enough for sockets, open to all.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// up brings a lab up that is removed at the end of the test.
func up(t *testing.T, o Options) *Lab {
	t.Helper()
	if o.StateDir == "" {
		o.StateDir = filepath.Join(shortDir(t), "state")
	}
	o.Attached = true
	l, err := Up(testContext(t), o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if _, err := os.Stat(l.dir); err == nil {
			assert.NoError(t, l.Down(context.Background()))
		}
	})
	return l
}

// world is what a lab might leave behind on the machine.
type world struct {
	Links, Mounts, Named, Dirs, Processes []string
}

// look takes stock of the machine; processes are those that have to do with the state directory.
func look(t *testing.T, stateDir string) world {
	t.Helper()
	var w world
	links, err := netlink.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		w.Links = append(w.Links, l.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	w.Mounts = strings.Split(string(mounts), "\n")
	for _, dir := range []string{"/run/netns", "/run/calico", "/var/lib/calico", "/var/lib/cni", "/etc/cni", "/opt/cni", "/etc/calico", "/var/log/calico", stateDir} {
		entries, err := os.ReadDir(dir)
		if err == nil {
			w.Dirs = append(w.Dirs, dir)
		}
		for _, e := range entries {
			w.Named = append(w.Named, filepath.Join(dir, e.Name()))
		}
	}
	pids, err := processIDs()
	require.NoError(t, err)
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if belongsTo(pid, stateDir) || strings.Contains(string(cmdline), stateDir) {
			w.Processes = append(w.Processes, fmt.Sprintf("%d %q", pid, cmdline))
		}
	}
	slices.Sort(w.Links)
	return w
}

// standIns makes a directory with a program for each name, which says its arguments and then does what the script says.
func standIns(t *testing.T, script string, names ...string) string {
	t.Helper()
	dir := shortDir(t)
	for _, n := range names {
		text := "#!/bin/sh\necho " + n + " started with \"$@\"\n" + script + "\n"
		require.NoError(t, os.WriteFile(filepath.Join(dir, n), []byte(text), 0o755))
	}
	return dir
}

// hostPID finds a lab's own process by its hidden argument.
func hostPID(t *testing.T, hidden, stateDir string) int {
	t.Helper()
	pids, err := processIDs()
	require.NoError(t, err)
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasSuffix(string(cmdline), "\x00"+hidden+"\x00"+stateDir+"\x00") {
			return pid
		}
	}
	require.Failf(t, "not running", "%s of %s", hidden, stateDir)
	return 0
}

// waitGone returns when a process that is not our child has ended.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	h, ok := openProcess(pid, func() bool { return true })
	if !ok {
		return
	}
	defer h.close()
	require.NoError(t, h.wait(endTimeout))
}
