package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/wire"
)

func sample(items ...view.Item) savedView {
	v := savedView{
		node: "n1", view: NodeView, items: map[view.Key]*entry{}, puts: map[view.Key]put{}, point: view.Checkpoint{"etcd": 7}, inSync: true,
		replicas: []Replica{{Address: "10.0.0.1:5473", ServerName: "typha"}},
	}
	for _, it := range items {
		e := &entry{version: view.VersionOf(it)}
		if set, ok := it.(view.IPSet); ok {
			e.set = &set
		} else if parts, err := wire.Encode(it, e.version); err == nil {
			e.raw = parts[0]
		}
		v.items[it.Key()], v.puts[it.Key()] = e, put{e, it}
	}
	return v
}

func TestSavedViewComesBack(t *testing.T) {
	many := view.IPSet{ID: "s:many", Type: view.SetNet}
	for i := range 20_000 { // several parts, several chunks
		m := member(i)
		many.Members = append(many.Members, view.Member{Prefix: m.Prefix, Port: uint16(i)})
	}
	v := sample(policy("a", "1"), set(1, 2), many, view.Secret{Name: "a/b/c", Value: []byte("x")})
	b, err := v.encode()
	require.NoError(t, err)
	got, err := decodeSaved(b, "n1", NodeView)
	require.NoError(t, err)
	assert.Equal(t, v.point, got.point)
	assert.Equal(t, v.replicas, got.replicas)
	require.Len(t, got.items, len(v.items))
	for k, e := range v.items {
		assert.Equal(t, itemOf(t, e), itemOf(t, got.items[k]))
		assert.Equal(t, itemOf(t, e), got.puts[k].item)
		assert.Equal(t, e.version, got.items[k].version)
	}
	again, err := got.encode()
	require.NoError(t, err)
	assert.True(t, bytes.Equal(b, again), "equal views are equal files")
}

func TestEmptyViewComesBack(t *testing.T) {
	b, err := sample().encode()
	require.NoError(t, err)
	got, err := decodeSaved(b, "n1", NodeView)
	require.NoError(t, err)
	assert.Empty(t, got.items)
	assert.True(t, got.inSync)
}

func TestDamagedFileIsRefused(t *testing.T) {
	b, err := sample(policy("a", "1"), policy("b", "1")).encode()
	require.NoError(t, err)
	for cut := range len(b) {
		_, err := decodeSaved(b[:cut], "n1", NodeView)
		require.Error(t, err, "cut at %d", cut)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x20
		_, err := decodeSaved(bad, "n1", NodeView)
		require.Error(t, err, "flipped at %d", i)
	}
	_, err = decodeSaved(b, "n2", NodeView)
	require.ErrorContains(t, err, `not the NODE view of node n2`)
	_, err = decodeSaved(b, "n1", BGPView)
	require.ErrorContains(t, err, `not the BGP view`)
}

// TestWhatIsNotUnderstoodIsKept saves an item with a field of a later version: the version it claims stays true, since
// the software that knows the field finds it in the file.
func TestWhatIsNotUnderstoodIsKept(t *testing.T) {
	parts, err := wire.Encode(policy("a", "1"), view.Version{1, 2, 3})
	require.NoError(t, err)
	later := protowire.AppendBytes(protowire.AppendTag(parts[0], 99, protowire.BytesType), []byte("later"))
	a := newAssembler()
	a.startOver()
	a.put(later)
	_, whole := a.checkpoint(at, true)
	require.True(t, whole)
	v := sample()
	v.items = a.items
	b, err := v.encode()
	require.NoError(t, err)
	assert.True(t, bytes.Contains(b, later))
	got, err := decodeSaved(b, "n1", NodeView)
	require.NoError(t, err)
	assert.Equal(t, put{&entry{version: view.Version{1, 2, 3}, raw: later}, policy("a", "1")}, got.puts[key("a")])
}

func newTestSaver(path string) *saver {
	return newSaver(path, time.Millisecond, slog.New(slog.DiscardHandler))
}

func TestFileIsItsOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "felix", "view")
	s := newTestSaver(path)
	require.NoError(t, s.save(sample(policy("a", "1"))))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	dir, err := os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), dir.Mode().Perm())
}

func TestViewThatNeverWasWholeIsNotSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "view")
	v := sample(policy("a", "1"))
	v.inSync = false
	require.NoError(t, newTestSaver(path).save(v))
	assert.NoFileExists(t, path)
}

func TestLastChangeIsSavedAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "view")
	s := newSaver(path, time.Hour, slog.New(slog.DiscardHandler))
	s.changed()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.run(ctx, func() savedView { return sample(policy("a", "1")) }, func(savedView) {}))
	assert.FileExists(t, path)
}

func TestSomeChangesAreSavedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "view")
	s := newSaver(path, time.Hour, slog.New(slog.DiscardHandler))
	var saved atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- s.run(ctx, func() savedView { saved.Add(1); return sample(policy("a", "1")) }, func(savedView) {})
	}()
	s.changed()
	require.Eventually(t, func() bool { return saved.Load() == 1 }, time.Minute, time.Millisecond, "the first does not wait")
	s.changed()
	s.hasten()
	require.Eventually(t, func() bool { return saved.Load() == 2 }, time.Minute, time.Millisecond, "no hour later")
	cancel()
	require.NoError(t, <-done)
}

func TestNoFileIsNoError(t *testing.T) {
	v, err := newTestSaver(filepath.Join(t.TempDir(), "view")).load("n1", NodeView)
	require.NoError(t, err)
	assert.Nil(t, v)
}

// saveForever names the environment variable that makes this test binary the process that is killed.
const saveForever = "MUSLIN_TEST_SAVE_FOREVER"

func TestMain(m *testing.M) {
	if path := os.Getenv(saveForever); path != "" {
		s := newTestSaver(path)
		for i := 0; ; i++ {
			if err := s.save(sample(policy("a", strings.Repeat("x", 1<<16)), policy("b", string(rune('a'+i%26))))); err != nil {
				os.Exit(3)
			}
		}
	}
	os.Exit(m.Run())
}

func TestSavedViewSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "view")
	left := 0
	for round := range 12 {
		writer := exec.Command(os.Args[0])
		writer.Env = append(os.Environ(), saveForever+"="+path)
		require.NoError(t, writer.Start())
		for { // let it write at least once in each round
			before, err := os.Stat(path)
			if err == nil && (round == 0 || time.Since(before.ModTime()) < 50*time.Millisecond) {
				break
			}
		}
		require.NoError(t, writer.Process.Kill())
		_ = writer.Wait() // it was killed, and says so
		unfinished, err := filepath.Glob(path + ".new-*")
		require.NoError(t, err)
		left += len(unfinished)
		v, err := newTestSaver(path).load("n1", NodeView)
		require.NoError(t, err)
		require.Len(t, v.items, 2)
		unfinished, err = filepath.Glob(path + ".new-*")
		require.NoError(t, err)
		assert.Empty(t, unfinished, "what was left is swept")
	}
	t.Logf("%d of 12 were killed in the middle of a write", left)
}

// A process that is killed after it has programmed what it has not saved leaves a view that is older. The next one does not
// program that over what is newer.
func TestAnOlderViewIsNotHandedOver(t *testing.T) {
	dir := t.TempDir()
	path, unsaved := filepath.Join(dir, "view"), filepath.Join(dir, "run", "unsaved")
	start := func() *Client {
		cfg := Config{Node: "n1", View: NodeView, UnsavedPath: unsaved, Addresses: []string{"127.0.0.1:1"}}
		return &Client{cfg: cfg, log: slog.New(slog.DiscardHandler), replicas: newReplicas(cfg), saver: newTestSaver(path), ledger: newLedger()}
	}
	restored := func() (items []view.Item) {
		start().restore(newAssembler(), onBatch(func(b Batch) {
			require.True(t, b.Saved)
			items = append(items, b.Updates...)
		}))
		return items
	}
	save := func(c *Client) {
		v := c.applied()
		require.NoError(t, c.saver.save(v))
		c.saved(v)
	}
	c := start()
	program := func(items ...view.Item) (applied func()) {
		c.hand(step{puts: sample(items...).puts, point: sample().point, inSync: true}, &session{}, 1, onBatch(func(b Batch) {
			assert.FileExists(t, unsaved, "before anything is programmed")
			applied = func() { b.Applied() }
		}))
		return applied
	}

	first := program(policy("a", "1"))
	require.Empty(t, restored(), "there is none")
	first()
	save(c)
	require.Len(t, restored(), 1)
	second := program(policy("b", "1"))
	require.Empty(t, restored())
	third := program(policy("c", "1"))
	second()
	save(c)
	require.Empty(t, restored(), "the third is programmed, perhaps")
	third()
	save(c)
	require.Len(t, restored(), 3)
}

type batches struct {
	Handler
	on func(Batch)
}

func (b batches) OnBatch(batch Batch) { b.on(batch) }

func onBatch(on func(Batch)) Handler { return batches{on: on} }

// FuzzSavedView feeds damaged files with a right checksum: reading never panics, and what it accepts can be written.
func FuzzSavedView(f *testing.F) {
	for _, v := range []savedView{sample(), sample(policy("a", "1"), set(1, 2, 3), view.Secret{Name: "s"})} {
		b, err := v.encode()
		require.NoError(f, err)
		f.Add(b[:len(b)-sha256.Size])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		v, err := decodeSaved(append(bytes.Clone(body), sum[:]...), "n1", NodeView)
		if err != nil {
			return
		}
		_, err = v.encode()
		require.NoError(t, err)
	})
}
