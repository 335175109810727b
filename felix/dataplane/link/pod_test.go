package link_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/link"
)

func TestReach(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left")
	require.NoError(t, os.WriteFile(left, nil, 0o600))
	require.NoError(t, link.Reach("/proc/self/ns/net"))
	for path, says := range map[string]string{
		"/run/netns/nowhere": "network namespace /run/netns/nowhere of the pod: no such file or directory",
		left:                 "what is there is no network namespace", // of one that is gone
		"/proc/self/ns/mnt":  "what is there is no network namespace",
		"":                   "no such file or directory",
	} {
		require.ErrorContains(t, link.Reach(path), says)
	}
}
