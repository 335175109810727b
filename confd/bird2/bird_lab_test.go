//go:build lab

package bird2_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBirdReadsGolden has Debian's BIRD parse every golden file.
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
	for _, path := range paths {
		out, err := exec.Command(bird, "-p", "-c", path).CombinedOutput()
		require.NoError(t, err, "%s: %s", path, out)
	}
}
