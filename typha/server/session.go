package server

import (
	"errors"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

// window is how many bytes may be under way to a client that has not acknowledged them. A single batch larger than that
// goes alone: its checkpoint is at its end, so it cannot wait in the middle.
const window = 4 << 20

const (
	// maxFailures is how many of a client's failures are kept, and shown to operators.
	maxFailures = 100
	// maxResend is how many items a client may ask for again before it is sent its whole view.
	maxResend = 4096
)

// session is one stream. One goroutine sends (run), one receives (listen); they meet in the fields under mu.
type session struct {
	server *Server
	scope  views.Scope
	stream typhav1.SyncService_SyncServer
	sub    *views.Subscription
	behind bool          // used by run only
	leave  func()        // called when the first batch has gone
	stir   chan struct{} // has room for one: something below changed

	mu        sync.Mutex // guards all below
	outbox    []*typhav1.SyncResponse
	dirty     bool              // the view has something to take
	taking    bool              // it is being taken
	routes    map[string]uint64 // pools with routes that were sent and not applied, and the batch
	nodes     uint64            // the last batch with addresses of nodes
	resend    []view.Key
	startOver bool // the client asked for the whole view
	flight    []flight
	unacked   int         // bytes in flight
	cramped   bool        // what there is to send waits for an acknowledgement
	said      typhav1.Ack // the highest numbers that the client has acknowledged, applied before received too
	status    typhav1.ClientStatus
	questions map[uint64]*question
	lastID    uint64
	ended     error // why listen ended
}

// flight is a batch that the client has not acknowledged.
type flight struct {
	batch uint64
	bytes int
}

func newSession(server *Server, stream typhav1.SyncService_SyncServer, hello greeting) *session {
	return &session{
		server: server, scope: hello.scope, stream: stream, stir: make(chan struct{}, 1), dirty: true, leave: func() {},
		questions: map[uint64]*question{}, routes: map[string]uint64{},
		status: typhav1.ClientStatus{
			Node: hello.scope.Node, View: hello.scope.View.String(), Software: hello.software,
		},
	}
}

// run sends until the stream ends; nil after an orderly end by the client. The listener needs no waiting for: it ends
// when run's caller returns, which ends the stream, and until then does nothing but take notes.
func (s *session) run() error {
	defer s.failQuestions()
	defer s.setBehind(false)
	go s.listen()
	if err := s.send(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (s *session) send() error {
	for {
		for _, m := range s.takeOutbox() {
			if err := s.stream.Send(m); err != nil {
				return err
			}
		}
		more, err := s.sendBatch()
		if err != nil {
			return err
		}
		if more {
			continue
		}
		select {
		case <-s.stream.Context().Done():
			return s.end(s.stream.Context().Err())
		case <-s.stir:
			if err := s.end(nil); err != nil {
				return err
			}
		}
	}
}

// end returns why the listener ended, or other if it has not.
func (s *session) end(other error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return s.ended
	}
	return other
}

// wake is called by the store when there is something to take.
func (s *session) wake() {
	s.mu.Lock()
	s.dirty = true
	s.mu.Unlock()
	s.poke()
}

// say puts a message before the next batch.
func (s *session) say(m *typhav1.SyncResponse) {
	s.mu.Lock()
	s.outbox = append(s.outbox, m)
	s.mu.Unlock()
	s.poke()
}

func (s *session) poke() {
	select {
	case s.stir <- struct{}{}:
	default:
	}
}

func (s *session) takeOutbox() []*typhav1.SyncResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.outbox
	s.outbox = nil
	return out
}

// listen takes what the client sends until the stream ends.
func (s *session) listen() {
	for {
		m, err := s.stream.Recv()
		if err == nil {
			err = s.take(m)
		}
		if err != nil {
			s.mu.Lock()
			s.ended = err
			s.mu.Unlock()
			s.poke()
			return
		}
	}
}

// take takes a message. What it does not know is of a later version, and does not concern it.
func (s *session) take(m *typhav1.SyncRequest) error {
	switch r := m.GetRequest().(type) {
	case *typhav1.SyncRequest_Hello:
		return status.Error(codes.InvalidArgument, "a stream has one hello; open another stream")
	case *typhav1.SyncRequest_Named:
		return status.Error(codes.InvalidArgument, "nobody has asked what the client has")
	case *typhav1.SyncRequest_Ack:
		return s.acknowledge(r.Ack)
	case *typhav1.SyncRequest_Resend:
		s.askAgain(r.Resend)
	case *typhav1.SyncRequest_QueryResult:
		s.answer(r.QueryResult)
	}
	return nil
}

// believe refuses acks of batches that were never sent, and such as go back. A batch may be applied before it is acknowledged as
// received: the client's threads are not in step. The caller holds mu.
func (s *session) believe(m *typhav1.Ack) error {
	switch {
	case m.GetReceived() > s.status.GetSent() || m.GetApplied() > s.status.GetSent():
		return status.Errorf(codes.InvalidArgument, "batches %d (received) and %d (applied) are acknowledged, and the last that was sent on this stream is %d",
			m.GetReceived(), m.GetApplied(), s.status.GetSent())
	case m.GetReceived() < s.said.GetReceived() || m.GetApplied() < s.said.GetApplied():
		return status.Errorf(codes.InvalidArgument, "batches %d (received) and %d (applied) are acknowledged after %d and %d; both numbers only grow",
			m.GetReceived(), m.GetApplied(), s.said.GetReceived(), s.said.GetApplied())
	}
	s.said.Received, s.said.Applied = m.GetReceived(), m.GetApplied()
	return nil
}

// acknowledge takes an ack and makes room.
func (s *session) acknowledge(m *typhav1.Ack) error {
	s.mu.Lock()
	if err := s.believe(m); err != nil {
		s.mu.Unlock()
		return err
	}
	if received := min(m.GetReceived(), s.status.Sent); received > s.status.Received {
		s.status.Received = received
		for len(s.flight) > 0 && s.flight[0].batch <= received {
			s.unacked -= s.flight[0].bytes
			s.flight = s.flight[1:]
		}
	}
	first := false
	if applied := min(m.GetApplied(), s.status.Received); applied > s.status.Applied {
		first = s.status.Applied == 0
		s.status.Applied = applied
		s.status.Failures = nil // of earlier batches
	}
	s.settled()
	told := len(s.status.GetFailures()) > 0 // a client that says the same with each ack is logged once
	for _, f := range m.GetFailures() {
		if len(s.status.GetFailures()) < maxFailures {
			s.status.Failures = append(s.status.Failures, shortened(failureText(f), longestText))
		}
	}
	cramped := s.cramped
	s.mu.Unlock()
	if first {
		s.firstApplied()
	}
	s.server.applied.look()
	if n := len(m.GetFailures()); n > 0 {
		s.server.metrics.failures.Add(float64(n))
		if !told {
			s.server.log.Warn("client could not program items", "view", s.scope, "items", n, "first", shortened(failureText(m.GetFailures()[0]), longestText))
		}
	}
	if cramped { // else there is nothing to do for it
		s.poke()
	}
	return nil
}

func failureText(f *typhav1.Failure) string {
	if f.GetKey() == nil {
		return f.GetReason()
	}
	return f.GetKey().GetId() + ": " + f.GetReason()
}

func (s *session) askAgain(m *typhav1.Resend) {
	keys := wire.DecodeKeys(m.GetKeys())
	s.server.metrics.resends.Add(float64(len(m.GetKeys())))
	s.mu.Lock()
	if len(m.GetKeys()) == 0 || len(s.resend)+len(keys) > maxResend {
		s.startOver = true // which is no more to send, and less to remember
	}
	if s.resend = append(s.resend, keys...); s.startOver {
		s.resend = nil
	}
	s.dirty = true
	s.mu.Unlock()
	s.poke()
}

// snapshot is the session as operators see it.
func (s *session) snapshot() *typhav1.ClientStatus {
	items, pending := s.sub.Status() // without mu, which the store's wakes want
	s.mu.Lock()
	defer s.mu.Unlock()
	return &typhav1.ClientStatus{
		Node: s.status.Node, View: s.status.View, Items: uint64(items), Dirty: uint64(pending),
		Sent: s.status.Sent, Received: s.status.Received, Applied: s.status.Applied,
		Failures: slices.Clone(s.status.Failures), Software: s.status.Software,
	}
}
