package client

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// deaf is a stream on which nobody listens; what it brings the test gives to the session.
type deaf struct {
	grpc.ClientStream
	sent []*typhav1.SyncRequest
}

func (d *deaf) Send(m *typhav1.SyncRequest) error { d.sent = append(d.sent, m); return nil }

func (d *deaf) Recv() (*typhav1.SyncResponse, error) {
	return nil, errors.New("the test gives the messages")
}

// applier keeps the view that batches make.
type applier struct {
	view    map[view.Key]view.Item
	batches int
}

func (a *applier) OnBatch(b Batch) {
	a.batches++
	for _, it := range b.Updates {
		a.view[it.Key()] = it
	}
	for _, k := range b.Removes {
		delete(a.view, k)
	}
}

func (a *applier) OnQuery(context.Context, Question, func([]byte) error) error { return ErrUnserved }

// listening is a session that is given bytes for frames.
type listening struct {
	*session
	applier *applier
}

func newListening(t testing.TB) *listening {
	c := &Client{cfg: Config{Node: "n", View: NodeView}, log: slog.New(slog.DiscardHandler), replicas: newReplicas(Config{Addresses: []string{"127.0.0.1:1"}}), ledger: newLedger()}
	ctx, cancel := context.WithCancel(context.Background())
	l := &listening{applier: &applier{view: map[view.Key]view.Item{}}}
	l.session = &session{client: c, stream: &deaf{}, asm: newAssembler(), h: l.applier, ctx: ctx, cancel: cancel}
	t.Cleanup(func() { cancel(); l.asked.Wait() })
	return l
}

// frame takes one message, as run does.
func (l *listening) frame(b []byte) error {
	m := &typhav1.SyncResponse{}
	if err := proto.Unmarshal(b, m); err != nil {
		return err
	}
	return l.take(m, Replica{Address: "127.0.0.1:1"})
}

func welcome(resumed bool) *typhav1.SyncResponse {
	return &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Welcome{Welcome: &typhav1.Welcome{Resumed: resumed}}}
}

// chunkOf is a part of a batch; point 0 is none.
func chunkOf(t testing.TB, batch uint64, point uint64, items ...view.Item) *typhav1.SyncResponse {
	c := &typhav1.Chunk{Batch: batch, InSync: point > 0}
	for _, it := range items {
		version := view.VersionOf(it)
		if d, ok := it.(view.IPSetDelta); ok {
			version = d.To
		}
		c.Items = append(c.Items, bytesOf(t, it, version)...)
	}
	if point > 0 {
		c.Checkpoint = wire.EncodeCheckpoint(view.Checkpoint{"etcd": point})
	}
	return &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Chunk{Chunk: c}}
}

// recorded are messages one after the other, each after its length.
func recorded(t testing.TB, messages ...*typhav1.SyncResponse) []byte {
	var out []byte
	for _, m := range messages {
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		out = append(binary.AppendUvarint(out, uint64(len(b))), b...)
	}
	return out
}

func TestPartsOfTwoBatchesAreNotTakenForOne(t *testing.T) {
	for name, c := range map[string]struct {
		frames  []*typhav1.SyncResponse
		refused int // which frame, from 1
	}{
		"the rest of a batch is missing": {[]*typhav1.SyncResponse{welcome(false), chunkOf(t, 1, 0, policy("a", "half")), chunkOf(t, 2, 9, policy("b", ""))}, 3},
		"a batch comes twice":            {[]*typhav1.SyncResponse{welcome(false), chunkOf(t, 1, 9, policy("a", "")), chunkOf(t, 1, 9, policy("a", "old"))}, 3},
		"a batch is left out":            {[]*typhav1.SyncResponse{welcome(false), chunkOf(t, 1, 9, policy("a", "")), chunkOf(t, 3, 10, policy("a", "new"))}, 3},
		"a batch without number":         {[]*typhav1.SyncResponse{welcome(false), chunkOf(t, 0, 9, policy("a", ""))}, 2},
		"the hello was not answered":     {[]*typhav1.SyncResponse{chunkOf(t, 1, 9, policy("a", ""))}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newListening(t)
			for i, m := range c.frames {
				b, err := proto.Marshal(m)
				require.NoError(t, err)
				before := l.applier.batches
				err = l.frame(b)
				if i+1 < c.refused {
					require.NoError(t, err)
					continue
				}
				require.ErrorContains(t, err, "was due")
				require.Equal(t, before, l.applier.batches, "nothing of it is handed over")
			}
			require.NotContains(t, l.applier.view, key("b"))
		})
	}
}

// FuzzFrames takes bytes for what a typha sends. None may panic; what does not parse, or is out of order, ends the stream; and at
// each moment what was handed over is what whole batches made, whatever had begun when the stream ended.
func FuzzFrames(f *testing.F) {
	f.Add(recorded(f, welcome(false), chunkOf(f, 1, 5, policy("a", "1"), set(1, 2)), chunkOf(f, 2, 6, delta(set(1, 2), set(2, 3)))))
	f.Add(recorded(f, welcome(false), chunkOf(f, 1, 0, policy("a", "1")), chunkOf(f, 1, 5, policy("b", "1")), chunkOf(f, 2, 0, policy("a", "half"))))
	f.Add(recorded(f, welcome(true), chunkOf(f, 1, 5), welcome(false), chunkOf(f, 2, 6, view.Node{Name: "n"})))
	f.Add(recorded(f, welcome(false), chunkOf(f, 1, 5, set(1)), chunkOf(f, 2, 6, delta(set(8), set(9))), chunkOf(f, 3, 7, set(9))))
	removes := &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Chunk{Chunk: &typhav1.Chunk{
		Batch: 2, Removes: wire.EncodeKeys([]view.Key{key("a")}), Items: [][]byte{{0xff}}, Checkpoint: wire.EncodeCheckpoint(at),
	}}}
	f.Add(recorded(f, welcome(false), chunkOf(f, 1, 5, policy("a", "1")), removes))
	f.Add(recorded(f, &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Query{Query: &typhav1.QueryRelay{Id: 1, Method: 9}}},
		&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: &typhav1.Replicas{Move: true, Replicas: []*typhav1.Replica{{Address: "x"}}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := newListening(t)
		for len(b) > 0 {
			size, n := binary.Uvarint(b)
			if n <= 0 || size > uint64(len(b)-n) {
				return
			}
			frame := b[n : n+int(size)]
			b = b[n+int(size):]
			before := l.applier.batches
			err := l.frame(frame)
			handed := map[view.Key]view.Item{}
			for k, e := range l.asm.items {
				handed[k] = itemOf(t, e)
			}
			require.Equal(t, handed, l.applier.view, "what is held is what was handed over")
			if err != nil {
				require.Equal(t, before, l.applier.batches, "a frame that is refused hands nothing over")
				have := holds(l.asm)
				l.asm.reset()
				require.Equal(t, have, holds(l.asm), "the next stream resumes from what was handed over")
				return
			}
			if l.applier.batches > before {
				var m typhav1.SyncResponse
				require.NoError(t, proto.Unmarshal(frame, &m))
				require.NotNil(t, m.GetChunk().GetCheckpoint(), "only a checkpoint ends a batch")
			}
		}
	})
}
