//go:build k8s

package cluster

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestNothingIsLeft: a cluster with running pods, whose first process is killed, leaves what the next command removes, and this
// machine as it was.
func TestNothingIsLeft(t *testing.T) {
	const name = "test-left"
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	settings := []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/keys/root_maxkeys"}
	machine := func() (all []string) {
		for _, s := range settings {
			text, err := os.ReadFile("/proc/sys/" + s)
			require.NoError(t, err)
			all = append(all, s+" "+string(text))
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		require.NoError(t, err)
		return append(all, string(mounts))
	}
	before := machine()
	bin, err := filepath.Abs("../../../bin")
	require.NoError(t, err)
	c, err := Up(ctx, Options{Name: name, Workers: 1, BinDir: bin, Attached: true, Log: func(line string) { t.Log(line) }})
	require.NoError(t, err)
	t.Cleanup(func() {
		if _, err := os.Stat(stateDir(name)); err == nil {
			assert.NoError(t, Down(context.Background(), name))
		}
	})
	require.NoError(t, c.UseBridge(ctx))
	require.NoError(t, c.AwaitNodes(ctx))
	_, err = c.Kubectl(ctx, "", "run", "it", "--image", WorkloadImage)
	require.NoError(t, err)
	_, err = c.Kubectl(ctx, "", "wait", "pod/it", "--for=condition=Ready", "--timeout=3m")
	require.NoError(t, err)
	assert.Equal(t, before, machine(), "while it is up")
	first, err := c.FirstProcess()
	require.NoError(t, err)
	mine, err := filepath.Glob(filepath.Join(cgroupMount, "*", cgroupBase, cgroupID(name, first)))
	require.NoError(t, err)
	require.NotEmpty(t, mine)

	require.NoError(t, syscall.Kill(first, syscall.SIGKILL))
	require.NoError(t, Down(ctx, name))
	for _, dir := range append(mine, stateDir(name)) {
		assert.NoDirExists(t, dir)
	}
	assert.Equal(t, before, machine(), "afterwards")
	_, err = Open(name)
	var problem *lab.Problem
	assert.ErrorAs(t, err, &problem)
}
