package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/store"
)

type record struct{ A string }

func TestSaveLoadDelete(t *testing.T) {
	dir, err := store.Open[record](filepath.Join(t.TempDir(), "deep", "dir"))
	require.NoError(t, err)
	require.NoError(t, dir.Save("one", record{"1"}))
	require.NoError(t, dir.Save("one", record{"uno"}))
	require.NoError(t, dir.Save("two.x", record{"2"}))
	all, err := dir.Load()
	require.NoError(t, err)
	require.Equal(t, map[string]record{"one": {"uno"}, "two.x": {"2"}}, all)
	require.NoError(t, dir.Delete("one"))
	require.NoError(t, dir.Delete("one"), "deleting what is gone is no error")
	all, err = dir.Load()
	require.NoError(t, err)
	require.Len(t, all, 1)
}

// A crash while writing leaves a .new file, a torn disk leaves half a record: the rest must load all the same.
func TestLoadSetsDamagedRecordsAside(t *testing.T) {
	path := t.TempDir()
	dir, err := store.Open[record](path)
	require.NoError(t, err)
	require.NoError(t, dir.Save("good", record{"g"}))
	require.NoError(t, os.WriteFile(filepath.Join(path, "torn.json"), []byte(`{"A": "x`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(path, "half.json.new"), []byte(`{`), 0o600))
	all, err := dir.Load()
	require.ErrorContains(t, err, "torn.json is damaged")
	require.Equal(t, map[string]record{"good": {"g"}}, all)
	all, err = dir.Load()
	require.NoError(t, err, "the damaged record is reported once")
	require.Len(t, all, 1)
	require.FileExists(t, filepath.Join(path, "torn.damaged"))
}
