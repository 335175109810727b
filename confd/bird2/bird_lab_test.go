//go:build lab

package bird2_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/confd/bird2"
)

// TestBirdReadsGolden has Debian's BIRD parse every golden file, and what they become when the node is drained.
func TestBirdReadsGolden(t *testing.T) {
	bird, err := exec.LookPath("bird")
	if err != nil {
		bird = "/usr/sbin/bird"
	}
	_, err = os.Stat(bird)
	require.NoError(t, err, "bird2 is missing; integration/deps/install test installs it")
	paths, err := filepath.Glob("testdata/*.conf")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for name, c := range clusters(t) {
		for _, drain := range []bird2.Drain{bird2.Draining, bird2.Drained} {
			path := filepath.Join(t.TempDir(), name+"-"+drain.String()+".conf")
			require.NoError(t, os.WriteFile(path, bird2.Text(c, drain), 0o600))
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		out, err := exec.Command(bird, "-p", "-c", path).CombinedOutput()
		require.NoError(t, err, "%s: %s", path, out)
	}
}
