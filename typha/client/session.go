package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// havePart is how many entries of an answer to what is held go into one request; an entry takes some 100 bytes, a request must
// stay below 1 MiB.
const havePart = 4096

// session is one stream.
type session struct {
	client *Client
	conn   *grpc.ClientConn
	stream typhav1.SyncService_SyncClient
	asm    *assembler
	h      Handler
	ctx    context.Context // of the stream
	cancel context.CancelFunc
	asked  sync.WaitGroup // running OnQuery calls

	inSync   bool   // used by run only, as are the next three
	pods     bool   // typha follows the pods of Kubernetes
	welcomed bool   // the hello was answered
	batch    uint64 // the last whole batch

	mu   sync.Mutex // guards sending and all below
	ack  typhav1.Ack
	said uint64 // the batch that typha was last told to be received
}

// openSession opens a stream and says hello.
func openSession(ctx context.Context, c *Client, conn *grpc.ClientConn, a *assembler, h Handler) (*session, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := typhav1.NewSyncServiceClient(conn).Sync(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &session{client: c, conn: conn, stream: stream, asm: a, h: h, ctx: ctx, cancel: cancel}
	if err := c.hello(s); err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

func (s *session) hello() error {
	return s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: &typhav1.Hello{
		Node: s.client.cfg.Node, View: typhav1.View(s.client.cfg.View), Software: s.client.software,
		Checkpoint: wire.EncodeCheckpoint(s.asm.point), Digests: s.asm.digests().Bytes(),
	}}})
}

// name tells typha what is held in the parts of which digests differ.
func (s *session) name(parts []byte) error {
	if s.welcomed {
		return errors.New("it asked what is held after it had said what it builds on")
	}
	named := &typhav1.Named{}
	for k, v := range s.asm.have(parts) {
		if len(named.Have) == havePart {
			named.More = true
			if err := s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Named{Named: named}}); err != nil {
				return err
			}
			named = &typhav1.Named{}
		}
		named.Have = append(named.Have, &typhav1.Have{Key: wire.EncodeKey(k), Version: v[:]})
	}
	return s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Named{Named: named}})
}

// send sends one request. The stream's own end, with its reason, is for run to find.
func (s *session) send(m *typhav1.SyncRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendLocked(m)
}

func (s *session) sendLocked(m *typhav1.SyncRequest) error {
	if err := s.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// run follows the stream to its end.
func (s *session) run(r Replica) error {
	defer s.asked.Wait()
	defer s.cancel()
	for {
		m, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("it ended the stream")
		}
		if err != nil {
			return err
		}
		if err := s.take(m, r); err != nil {
			return err
		}
	}
}

func (s *session) take(m *typhav1.SyncResponse, r Replica) error {
	switch m := m.GetResponse().(type) {
	case *typhav1.SyncResponse_Welcome:
		s.client.log.Info("following typha", "address", r.Address, "software", m.Welcome.GetSoftware(), "resumed", m.Welcome.GetResumed())
		s.welcomed = true
		s.pods = slices.Contains(m.Welcome.GetCapabilities(), wire.CapabilityPods)
		s.client.setStatus(Status{Address: r.Address, Pods: s.pods})
		if !m.Welcome.GetResumed() {
			s.asm.startOver()
		}
	case *typhav1.SyncResponse_Name:
		return s.name(m.Name.GetParts())
	case *typhav1.SyncResponse_Chunk:
		return s.chunk(m.Chunk, r)
	case *typhav1.SyncResponse_Query:
		s.asked.Add(1)
		go s.answer(m.Query)
	case *typhav1.SyncResponse_Replicas:
		list := decodeReplicas(m.Replicas)
		s.client.replicas.learn(list)
		if m.Replicas.GetMove() && s.client.replicas.other(r) {
			s.client.replicas.move(list)
			return errMove
		}
	}
	return nil // what this version does not know does not concern it
}

func (s *session) chunk(m *typhav1.Chunk, r Replica) error {
	// Parts of two batches must not be taken for one: what the first brought would be half of it.
	if due := s.batch + 1; !s.welcomed || m.GetBatch() != due {
		return fmt.Errorf("it sent a part of batch %d where a part of batch %d was due (hello answered: %v)", m.GetBatch(), due, s.welcomed)
	}
	for _, b := range m.GetItems() {
		s.asm.put(b)
	}
	for _, k := range wire.DecodeKeys(m.GetRemoves()) {
		s.asm.remove(k)
	}
	if keys := s.asm.takeResend(); len(keys) > 0 {
		s.client.log.Warn("a change of a set does not fit what is here, asking for the whole set", "sets", keys)
		err := s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Resend{Resend: &typhav1.Resend{Keys: wire.EncodeKeys(keys)}}})
		if err != nil {
			return err
		}
	}
	if m.GetCheckpoint() == nil {
		return nil
	}
	s.batch++
	s.mu.Lock()
	s.ack.Received = m.GetBatch() // a handler that applies at once says so in one with this
	s.mu.Unlock()
	step, whole := s.asm.checkpoint(wire.DecodeCheckpoint(m.GetCheckpoint()), m.GetInSync())
	if whole {
		for _, f := range step.failures {
			s.client.log.Error("typha sent an item that cannot be read", "reason", f.Reason)
		}
		s.client.hand(step, s, m.GetBatch(), s.h)
		if step.inSync && !s.inSync {
			s.inSync = true
			s.client.setStatus(Status{Address: r.Address, InSync: true, Pods: s.pods})
		}
	}
	return s.received(m.GetBatch(), step.skipped, step.failures)
}

// received acknowledges a batch, whether it was handed over or is still being gathered.
func (s *session) received(batch, skipped uint64, failures []Failure) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.said == batch && skipped == 0 && len(failures) == 0 {
		return nil // typha knows
	}
	s.ack.Skipped += skipped
	return s.sendAck(failures)
}

// applied acknowledges a batch as programmed. An error is the end of the stream, which run sees too.
func (s *session) applied(batch uint64, failures []Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ack.Applied = max(s.ack.Applied, batch)
	_ = s.sendAck(failures)
}

func (s *session) sendAck(failures []Failure) error {
	s.said = s.ack.Received
	m := &typhav1.Ack{Received: s.ack.Received, Applied: s.ack.Applied, Skipped: s.ack.Skipped}
	for _, f := range failures {
		m.Failures = append(m.Failures, &typhav1.Failure{Key: encodeFailedKey(f.Key), Reason: f.Reason})
	}
	return s.sendLocked(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: m}})
}

func encodeFailedKey(k view.Key) *typhav1.ItemKey {
	if k == (view.Key{}) {
		return nil // an item of which not even the key could be read
	}
	return wire.EncodeKey(k)
}
