package client_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/csi/client"
)

var web = client.Pod{UID: "6f2a", Name: "web-0", Namespace: "shop", ServiceAccount: "seller"}

func home(t *testing.T) client.Home {
	t.Helper()
	h := client.HomeAt(t.TempDir())
	require.NoError(t, h.Prepare())
	return h
}

func TestARecordComesBackAndGoes(t *testing.T) {
	h := home(t)
	require.NoError(t, h.Save("csi-1", web))
	found, err := h.Load("csi-1")
	require.NoError(t, err)
	require.Equal(t, web, found)
	require.NoError(t, os.WriteFile(filepath.Join(h.Records, ".csi-2"), nil, 0o600), "a record that was being written")
	require.NoError(t, os.WriteFile(filepath.Join(h.Records, "notes.txt"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(h.Records, "d.json"), 0o700))
	volumes, err := h.Volumes()
	require.NoError(t, err)
	require.Equal(t, []string{"csi-1"}, volumes)
	for range 2 {
		require.NoError(t, h.Forget("csi-1"))
	}
	require.NoError(t, h.Forget("csi-2"))
	require.NoFileExists(t, filepath.Join(h.Records, ".csi-2"))
	_, err = h.Load("csi-1")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// The form is Calico's: records of its driver are read, and its felix could read ours.
func TestTheFormOfARecordIsCalicos(t *testing.T) {
	h := home(t)
	require.NoError(t, h.Save("v", web))
	body, err := os.ReadFile(filepath.Join(h.Records, "v.json"))
	require.NoError(t, err)
	require.JSONEq(t, `{"UID":"6f2a","Workload":"web-0","Namespace":"shop","ServiceAccount":"seller"}`, string(body))
}

func TestRecordsThatCannotBe(t *testing.T) {
	h := home(t)
	for body, want := range map[string]string{
		"":   "unexpected end",
		"[]": "cannot unmarshal",
		"{}": `"" is not the name of a pod`,
		`{"UID":"1","Workload":"../x","Namespace":"shop"}`: `"../x" is not the name of a pod`,
		`{"UID":"1","Workload":"x","Namespace":"a/b"}`:     `"a/b" is not the namespace of a pod`,
		`{"UID":"","Workload":"x","Namespace":"a"}`:        `"" is not the uid of a pod`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(h.Records, "v.json"), []byte(body), 0o600))
		_, err := h.Load("v")
		require.ErrorContains(t, err, want, body)
		require.ErrorContains(t, err, "v.json", body)
	}
}

func TestIDs(t *testing.T) {
	for id, want := range map[string]string{
		"csi-0123456789abcdef": "", "a b": "", "a..b": "", strings.Repeat("x", 128): "",
		"": "is missing", ".": "begin with a dot", "..": "begin with a dot", "../etc": "begin with a dot", "a/b": "a slash", "/": "a slash",
		"a\x00b": "cannot be", ".hidden": "begin with a dot", strings.Repeat("x", 129): "129 bytes",
	} {
		err := client.CheckID(id)
		if want == "" {
			require.NoError(t, err, id)
			continue
		}
		require.ErrorContains(t, err, want, id)
	}
}

// Watch sees what comes and goes, and goes on when the directory itself is removed and made anew.
func TestWatch(t *testing.T) {
	h := client.HomeAt(filepath.Join(t.TempDir(), "later"))
	ctx, cancel := context.WithCancel(t.Context())
	calls, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- h.Watch(ctx, func() {
			select {
			case calls <- struct{}{}:
			default:
			}
		})
	}()
	see := func(want ...string) {
		t.Helper()
		for {
			select {
			case <-calls:
			case <-time.After(time.Minute):
				t.Fatalf("%v are not seen", want)
			case err := <-done:
				t.Fatalf("watch ended: %v", err)
			}
			if found, err := h.Volumes(); err == nil && strings.Join(found, " ") == strings.Join(want, " ") {
				return
			}
		}
	}
	see()
	require.NoError(t, h.Save("a", web))
	see("a")
	require.NoError(t, h.Save("b", web))
	see("a", "b")
	require.NoError(t, h.Forget("a"))
	see("b")
	require.NoError(t, os.Rename(h.Records, filepath.Join(t.TempDir(), "away")))
	see()
	require.NoError(t, h.Save("c", web))
	see("c")
	cancel()
	require.NoError(t, <-done)
}
