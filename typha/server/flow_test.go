package server_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

const mebi = 1 << 20

// large is a policy of about size bytes on the wire.
func large(name, mark string, size int) view.Policy {
	return view.Policy{ID: "np/" + name, Tier: mark, Ingress: []view.Rule{{Action: view.Allow, Annotations: map[string]string{"x": strings.Repeat("x", size)}}}}
}

// received is what came of batches. A goroutine reads them, so that nothing but the protocol holds typha up.
type received struct {
	mu    sync.Mutex
	batch uint64 // number of the last whole one
	bytes int
	tiers map[string]string // newest tier of each policy
	err   error
}

func (s rawStream) read() *received {
	got := &received{tiers: map[string]string{}}
	go func() {
		for {
			m, err := s.Recv()
			if err == nil {
				err = got.take(m.GetChunk())
			}
			if err != nil {
				got.mu.Lock()
				got.err = err
				got.mu.Unlock()
				return
			}
		}
	}()
	return got
}

func (got *received) take(c *typhav1.Chunk) error {
	got.mu.Lock()
	defer got.mu.Unlock()
	size := 0
	for _, b := range c.GetItems() {
		size += len(b)
		it, err := wire.Decode(b)
		if err != nil {
			return err
		}
		got.tiers[it.Key().ID] = it.Item.(view.Policy).Tier
	}
	if size > mebi {
		return fmt.Errorf("a chunk has %d bytes", size)
	}
	got.bytes += size
	if c.GetCheckpoint() != nil {
		got.batch = c.GetBatch()
	}
	return nil
}

// now is what has come until now.
func (got *received) now(t testing.TB) (batch uint64, bytes int, tiers map[string]string) {
	got.mu.Lock()
	defer got.mu.Unlock()
	require.NoError(t, got.err)
	return got.batch, got.bytes, maps.Clone(got.tiers)
}

// whole waits for a batch.
func (got *received) whole(t testing.TB, batch uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("batch %d", batch), func() bool {
		have, _, _ := got.now(t)
		return have >= batch
	})
}

func (s rawStream) ack(received, applied uint64) {
	s.say(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: &typhav1.Ack{Received: received, Applied: applied}}})
}

func TestClientThatDoesNotAcknowledgeIsNotDrowned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{})
	got := s.read()
	got.whole(t, 1)
	behind := func() bool { return metric(t, r, "typha_clients_behind") == 1 }
	revision := uint64(1)
	for !behind() { // each batch fills a part of the window
		batch, _, _ := got.now(t)
		revision++
		r.put("n1", revision, large("a", fmt.Sprint(revision), 700_000))
		eventually(t, "it is sent, or waits", func() bool { now, _, _ := got.now(t); return now > batch || behind() })
	}
	batch, bytes, _ := got.now(t)
	assert.LessOrEqual(t, bytes, 4*mebi)
	assert.Greater(t, bytes, 3*mebi)
	// While nothing is acknowledged nothing more is sent, whatever happens.
	for range 20 {
		revision++
		r.put("n1", revision, large("a", "newest", 700_000), policy("b", "newest"))
	}
	assert.InDelta(t, float64(batch), metric(t, r, "typha_batches_sent_total"), 0)
	// Then the newest of everything comes, not the history: what waited, and one batch for all the rest.
	s.ack(batch, 0)
	got.whole(t, batch+2)
	_, _, tiers := got.now(t)
	assert.Equal(t, map[string]string{"np/a": "newest", "np/b": "newest"}, tiers)
	assert.InDelta(t, float64(batch+2), metric(t, r, "typha_batches_sent_total"), 0)
	assert.False(t, behind())
}

func TestBatchLargerThanTheWindowGoesAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	var items []view.Item
	for i := range 12 {
		items = append(items, large(fmt.Sprint(i), "first", 900_000))
	}
	r.put("n1", 1, items...)
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{})
	got := s.read()
	got.whole(t, 1)
	_, bytes, _ := got.now(t)
	assert.Greater(t, bytes, 10*mebi)
	r.put("n1", 2, policy("small", "next"))
	eventually(t, "a batch waits", func() bool { return metric(t, r, "typha_clients_behind") == 1 })
	s.ack(1, 1)
	got.whole(t, 2)
	_, _, tiers := got.now(t)
	assert.Equal(t, "next", tiers["np/small"])
}

func TestRemovalsAreChunkedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	var items []view.Item
	var keys []view.Key
	for i := range 6000 {
		name := fmt.Sprint(i) + strings.Repeat("y", 400)
		items, keys = append(items, policy(name, "")), append(keys, policyKey(name))
	}
	r.put("n1", 1, items...)
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{})
	for s.chunk().GetCheckpoint() == nil {
	}
	s.ack(1, 1)
	r.drop("n1", 2, keys...)
	removed, chunks := 0, 0
	for {
		c := s.chunk()
		chunks++
		removed += len(c.GetRemoves())
		if c.GetCheckpoint() != nil {
			break
		}
	}
	assert.Equal(t, len(keys), removed)
	assert.Greater(t, chunks, 2)
}

func TestResend(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1, policy("a", "1"), policy("b", "1"))
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{})
	require.Len(t, s.chunk().GetItems(), 2)
	resend := func(keys ...view.Key) []string {
		s.say(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Resend{Resend: &typhav1.Resend{Keys: wire.EncodeKeys(keys)}}})
		got := &received{tiers: map[string]string{}}
		require.NoError(t, got.take(s.chunk()))
		return slices.Sorted(maps.Keys(got.tiers))
	}
	assert.Equal(t, []string{"np/a"}, resend(policyKey("a")))
	assert.Equal(t, []string{"np/a", "np/b"}, resend(), "the whole view")
}

// set is a set of the first n addresses of a network.
func setOf(n int) (view.IPSet, view.Version) {
	s := view.IPSet{ID: "s:1", Type: view.SetNet}
	version := view.EmptySet(view.SetNet)
	for i := range n {
		m := member(i)
		s.Members, version = append(s.Members, m), version.AddMember(m)
	}
	return s, version
}

func TestSetsTravelAsDifferences(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	scope := views.Scope{Node: "n1", View: views.NodeView}
	s10, v10 := setOf(10)
	first := views.NewSet(s10, v10, nil, nil, nil)
	r.commit(1, map[views.Scope]*views.Delta{scope: {Put: []*views.Entry{first}}})
	whole := w.follow("n1", []string{r.address})
	deltas := w.follow("n1", []string{r.address}, passDeltas)
	require.Equal(t, s10, whole.next().Updates[0])
	require.Equal(t, s10, deltas.next().Updates[0])
	s11, v11 := setOf(11)
	r.commit(2, map[views.Scope]*views.Delta{scope: {Put: []*views.Entry{views.NewSet(s11, v11, first, []view.Member{member(10)}, nil)}}})
	assert.Equal(t, s11, whole.next().Updates[0])
	assert.Equal(t, view.IPSetDelta{ID: "s:1", From: v10, To: v11, Added: []view.Member{member(10)}}, deltas.next().Updates[0])
}

func TestWrongDifferenceIsMadeGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	scope := views.Scope{Node: "n1", View: views.NodeView}
	s10, v10 := setOf(10)
	first := views.NewSet(s10, v10, nil, nil, nil)
	r.commit(1, map[views.Scope]*views.Delta{scope: {Put: []*views.Entry{first}}})
	f := w.follow("n1", []string{r.address})
	require.Equal(t, s10, f.next().Updates[0])
	s11, v11 := setOf(11)
	wrong := views.NewSet(s11, v11, first, []view.Member{member(99)}, nil) // not what makes the one of the other
	r.commit(2, map[views.Scope]*views.Delta{scope: {Put: []*views.Entry{wrong}}})
	b := f.next()
	require.Len(t, b.Updates, 1, "the batch is whole when it comes")
	assert.Equal(t, s11, b.Updates[0])
	assert.Equal(t, at(2)["etcd"], b.Checkpoint["etcd"])
	assert.InDelta(t, 1, metric(t, r, "typha_resends_total"), 0)
}
