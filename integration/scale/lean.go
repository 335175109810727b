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
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// lean is a client that keeps what it gets without reading it: what it takes of the machine is little beside what typha takes to
// serve it.
type lean struct {
	conn  *grpc.ClientConn
	node  string
	have  []*typhav1.Have
	point *typhav1.Checkpoint
	noted *notes

	frames [][]byte // what came; read by have, when nothing is measured
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
	if before != nil {
		l.have, l.point = before.holds()
	}
	l.conn, err = rpc.Dial(address, tls)
	return l, err
}

// holds reads what came. Sets come whole in a first view.
func (l *lean) holds() ([]*typhav1.Have, *typhav1.Checkpoint) {
	have := l.have
	for _, b := range l.frames {
		if it, err := wire.Decode(b); err == nil && !it.More {
			have = append(have, &typhav1.Have{Key: wire.EncodeKey(it.Key()), Version: it.Version[:]})
		}
	}
	return have, l.point
}

func (l *lean) notes() *notes { return l.noted }

// havePart is how many items are named in one part of a hello.
const havePart = 4096

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
		if err := sleep(ctx, leanRetry); err != nil {
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
	stream, err := typhav1.NewSyncServiceClient(l.conn).Sync(ctx)
	if err != nil {
		return err
	}
	for rest := l.have; ; {
		n := min(len(rest), havePart)
		hello := &typhav1.Hello{Node: l.node, View: typhav1.View_VIEW_NODE, Checkpoint: l.point, Have: rest[:n], More: len(rest) > n}
		if err := stream.Send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: hello}}); err != nil {
			break // the stream's end says why
		}
		if rest = rest[n:]; !hello.GetMore() {
			break
		}
	}
	for {
		m, err := stream.Recv()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("typha ended the stream")
		case err != nil:
			return err
		}
		c := m.GetChunk()
		if c == nil {
			continue
		}
		if !l.isWhole() { // what changes later is of no use to who comes again
			l.frames = append(l.frames, c.GetItems()...)
		}
		if c.GetCheckpoint() == nil {
			continue
		}
		l.point = c.GetCheckpoint()
		if c.GetInSync() {
			l.noted.inSync()
		}
		ack := &typhav1.Ack{Received: c.GetBatch(), Applied: c.GetBatch()}
		if err := stream.Send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: ack}}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

func (l *lean) isWhole() bool {
	select {
	case <-l.noted.synced.open:
		return true
	default:
		return false
	}
}
