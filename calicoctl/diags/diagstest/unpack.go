// Package diagstest reads the archives that package diags writes.
package diagstest

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Unpack returns what an archive holds, by name. All of it lies in one directory, which names leave out, and is its owner's alone.
func Unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	require.NoError(t, err)
	out := map[string]string{}
	for r := tar.NewReader(unzipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		text, err := io.ReadAll(r)
		require.NoError(t, err)
		dir, name, _ := strings.Cut(h.Name, "/")
		require.Equal(t, strings.TrimSuffix(filepath.Base(path), ".tar.gz"), dir)
		require.Equal(t, int64(0o600), h.Mode)
		out[name] = string(text)
	}
}
