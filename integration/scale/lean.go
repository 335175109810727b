package scale

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// lean is a client that keeps its first view without reading it, and of what changes later no more than it has to in order to take
// notes: what it takes of the machine is little beside what typha takes to serve it.
type lean struct {
	conn  *grpc.ClientConn
	node  string
	has   *view.Digests // nil: nothing
	point *typhav1.Checkpoint
	noted *notes

	frames []unread // what came; read by holds, when nothing is measured
}

// unread is a message as it came.
type unread []byte

// unreading is gRPC's codec without the reading: to take thousands of items apart is most of what a client does, and nothing of
// what typha does.
type unreading struct{ encoding.CodecV2 }

// Unmarshal takes a message as it is.
func (unreading) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*unread) = data.Materialize()
	return nil
}

// read reads a message.
func (u unread) read() (*typhav1.SyncResponse, error) {
	m := &typhav1.SyncResponse{}
	return m, proto.Unmarshal(u, m)
}

// goesOn tells whether a message is a chunk that is not a batch's last one: no more need be known of it.
func (u unread) goesOn() bool {
	const chunk, checkpoint = 2, 4 // fields of SyncResponse and of Chunk
	num, _, n := protowire.ConsumeTag(u)
	if n < 0 || num != chunk {
		return false
	}
	for body, _ := protowire.ConsumeBytes(u[n:]); len(body) > 0; body = body[n:] {
		if num, _, n = protowire.ConsumeField(body); n < 0 || num == checkpoint {
			return false
		}
	}
	return true
}

// newLean makes a client of a node that has what another had.
func newLean(address string, files rpc.Files, node string, before *lean) (*lean, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	tls, err := rpc.ClientTLS(files, host)
	if err != nil {
		return nil, err
	}
	l := &lean{node: node, noted: newNotes()}
	l.noted.blind = true
	if before != nil {
		l.has, l.point = before.holds()
	}
	l.conn, err = rpc.Dial(address, tls)
	return l, err
}

// holds reads what came. Sets come whole in a first view.
func (l *lean) holds() (*view.Digests, *typhav1.Checkpoint) {
	has := l.has
	if has == nil {
		has = &view.Digests{}
	}
	for _, u := range l.frames {
		m, err := u.read()
		if err != nil {
			continue // typha sends such as can be read, or a client would have it anew
		}
		for _, b := range m.GetChunk().GetItems() {
			if it, err := wire.Decode(b); err == nil && !it.More {
				has.Add(it.Key(), it.Version)
			}
		}
	}
	return has, l.point
}

func (l *lean) notes() *notes { return l.noted }

func (l *lean) run(ctx context.Context) error {
	defer l.conn.Close()
	for {
		err := l.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case status.Code(err) != codes.Unavailable:
			return err
		}
		slog.Warn("a client's stream ended; it comes again, and what was measured has that in it", "node", l.node, "error", err)
		if err := backoff.Pause(ctx, leanRetry); err != nil {
			return nil
		}
	}
}

// leanRetry is when a client whose connection broke comes again.
const leanRetry = 100 * time.Millisecond

// follow follows one stream to its end.
func (l *lean) follow(ctx context.Context) error {
	if !l.isWhole() {
		l.frames = nil
	}
	stream, err := l.conn.NewStream(ctx, &typhav1.SyncService_ServiceDesc.Streams[0], typhav1.SyncService_Sync_FullMethodName,
		grpc.ForceCodecV2(unreading{encoding.GetCodecV2(grpcproto.Name)}))
	if err != nil {
		return err
	}
	hello := &typhav1.Hello{Node: l.node, View: typhav1.View_VIEW_NODE, Checkpoint: l.point}
	if l.has != nil {
		hello.Digests = l.has.Bytes()
	}
	_ = stream.SendMsg(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: hello}}) // the stream's end says why
	for {
		var u unread
		err := stream.RecvMsg(&u)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("typha ended the stream")
		case err != nil:
			return err
		}
		if !l.isWhole() {
			l.frames = append(l.frames, u)
			if u.goesOn() {
				continue
			}
		}
		m, err := u.read()
		if err != nil {
			return err
		}
		if m.GetName() != nil { // what it had is not what typha has: it comes as one that has nothing
			l.has = nil
			return status.Error(codes.Unavailable, "what this client has is asked for part by part, and it has no names")
		}
		c := m.GetChunk()
		if c == nil {
			continue
		}
		if l.isWhole() { // what changes later is of no use to who comes again
			l.noted.take(read(c.GetItems()))
		}
		if c.GetCheckpoint() == nil {
			continue
		}
		l.point = c.GetCheckpoint()
		if c.GetInSync() {
			l.noted.inSync()
		}
		ack := &typhav1.Ack{Received: c.GetBatch(), Applied: c.GetBatch()}
		if err := stream.SendMsg(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: ack}}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

// read decodes items, for notes of them.
func read(items [][]byte) (b view.Batch) {
	for _, raw := range items {
		if it, err := wire.Decode(raw); err == nil && it.Item != nil {
			b.Updates = append(b.Updates, it.Item)
		}
	}
	return b
}

func (l *lean) isWhole() bool {
	select {
	case <-l.noted.synced.open:
		return true
	default:
		return false
	}
}
