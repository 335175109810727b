//go:build k8s

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestWhoIsStillEndingIsWaitedFor: the first process of a cluster has ended, and another is still in its cgroup.
func TestWhoIsStillEndingIsWaitedFor(t *testing.T) {
	last := exec.Command("sleep", "600")
	require.NoError(t, last.Start())
	end := func() {
		require.NoError(t, last.Process.Kill())
		_ = last.Wait()
	}
	all, err := hierarchies()
	require.NoError(t, err)
	dir := filepath.Join(all[0], cgroupBase, cgroupID("test-ending", last.Process.Pid), "worker-1")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, last.Process.Pid), 0))

	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	assert.ErrorIs(t, reap(short), unix.EBUSY)
	reaped := make(chan error)
	go func() { reaped <- reap(context.Background()) }()
	end()
	assert.NoError(t, <-reaped)
	assert.NoDirExists(t, dir)
}
