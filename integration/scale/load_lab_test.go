//go:build lab

package scale

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary be its own workers.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, WorkerArgument) {
		if err := Serve(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// buildTypha is the path of a typha of this tree.
func buildTypha(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "typha")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "../../typha")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// TestLoad has everything in small: an etcd, a typha, two workers with clients of each kind, changes of each kind, and all that is
// measured of it.
func TestLoad(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := newCluster(ctx, Options{Typha: buildTypha(t), Self: self, Log: t.Output()}, Shape{Nodes: 20, Endpoints: 200, Policies: 40, Sets: 6, Seed: 3})
	require.NoError(t, err)
	defer c.close()
	require.NoError(t, c.workers(2))
	specs := append(c.clients(6, Whole), c.clients(4, Felix)...)
	for i := range specs[6:] { // a file each
		specs[6+i].State += "-felix"
	}
	first, err := c.arrive(ctx, specs)
	require.NoError(t, err)
	require.Positive(t, first.took)
	require.Greater(t, first.bytes, 10*20*50.0, "each client is told of each node and its block")

	const during = 2 * time.Second
	s, err := c.storm(ctx, Rates{Relabel: 20, RelabelGateway: 2, Restart: 10, Policy: 5, Join: 1, Leave: 0.5}, nil, during)
	require.NoError(t, err)
	require.Equal(t, 2*(20+2+10+5+1)+1, s.Changes)
	require.Len(t, s.Stamps, s.Changes-1, "of a node that leaves nothing is told")
	require.GreaterOrEqual(t, s.Batches, 10, "each client was told something")
	// A gateway's change and a node that joins concern all clients; that is 6 writes and 10 clients. Some may come together.
	require.Greater(t, s.Delivered.Count(), 30)
	require.Positive(t, s.Desired.Count())
	require.LessOrEqual(t, s.Desired.Count(), s.Delivered.Count())
	require.Less(t, s.Delivered.Quantile(0.5), 10*during, "what clients are told is compared with the right writes")
	require.Positive(t, s.bytes)
	require.GreaterOrEqual(t, s.Quantile99(), s.Delivered.Quantile(0.5))

	told, err := c.barrier(ctx)
	require.NoError(t, err)
	require.Equal(t, 10, told.Count(), "each client has what was written last")

	require.NoError(t, c.crowd.leave(ctx))
	again, err := c.arrive(ctx, specs)
	require.NoError(t, err)
	require.Less(t, again.bytes, first.bytes/20, "who comes again is told the difference")

	require.NoError(t, c.crowd.leave(ctx))
	lean, err := c.arrive(ctx, c.clients(10, Lean))
	require.NoError(t, err)
	require.Greater(t, lean.bytes, first.bytes/2)
	require.NoError(t, c.crowd.leave(ctx))
	lean, err = c.arrive(ctx, c.clients(10, Lean))
	require.NoError(t, err)
	require.Less(t, lean.bytes, first.bytes/20)
	s, err = c.storm(ctx, Rates{RelabelGateway: 5}, nil, during)
	require.NoError(t, err)
	require.GreaterOrEqual(t, s.Delivered.Count(), 10, "each client tells when it was told")
	require.Less(t, s.Delivered.Quantile(0.5), 10*during)
}

// Quantile99 is what the benchmark prints.
func (s storm) Quantile99() time.Duration { return s.Delivered.Quantile(0.99) }
