package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

// defaultTimeout and longestTimeout bound how long an operator's question waits for its node.
const (
	defaultTimeout = 5 * time.Second
	longestTimeout = time.Minute
)

// answerParts is how many parts of an answer wait for a slow operator; more are refused rather than kept.
const answerParts = 64

// maxOutbox is how many messages wait for a client that does not read.
const maxOutbox = 64

// question is one that is on its way to a node and back.
type question struct {
	parts chan *typhav1.QueryResult // closed by nobody; the last part has More unset
	gone  chan struct{}             // closed when the node's session ends
	lost  bool                      // a part did not fit; guarded by the session's mu
}

// methods is the allow-list: what an operator may call on a node, and whose stream leads to the daemon that answers.
// confd sits beside bird, so it answers for it.
var methods = map[typhav1.QueryMethod]views.ViewKind{
	typhav1.QueryMethod_QUERY_METHOD_BIRD_PEERS:      views.BGPView,
	typhav1.QueryMethod_QUERY_METHOD_BIRD_SHOW:       views.BGPView,
	typhav1.QueryMethod_QUERY_METHOD_BIRD_DRAIN:      views.BGPView,
	typhav1.QueryMethod_QUERY_METHOD_FELIX_DUMP:      views.NodeView,
	typhav1.QueryMethod_QUERY_METHOD_FELIX_EXPLAIN:   views.NodeView,
	typhav1.QueryMethod_QUERY_METHOD_FELIX_ENDPOINTS: views.NodeView,
}

// relay asks a node and gives each part of the answer to take.
func (s *Server) relay(ctx context.Context, m *typhav1.QueryRequest, take func([]byte) error) error {
	kind, allowed := methods[m.GetMethod()]
	if !allowed {
		return status.Errorf(codes.InvalidArgument, "method %d is not one that is relayed to nodes", m.GetMethod())
	}
	timeout := defaultTimeout
	if m.GetTimeout() != nil {
		if m.GetTimeout().CheckValid() != nil || m.GetTimeout().AsDuration() < 0 {
			return status.Errorf(codes.InvalidArgument, "timeout %v is no time to wait; give 0 to %v", m.GetTimeout(), longestTimeout)
		}
		timeout = min(m.GetTimeout().AsDuration(), longestTimeout)
	}
	c := s.sessions.newest(views.Scope{Node: m.GetNode(), View: kind})
	if c == nil {
		return status.Errorf(codes.NotFound, "node %q is not connected to this typha (no %s stream); "+
			"check that its daemons run and that the name is spelled as in `calicoctl get nodes`", m.GetNode(), kind)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id, q := c.ask(&typhav1.QueryRelay{Method: m.GetMethod(), Request: m.GetRequest(), Timeout: durationpb.New(timeout)})
	defer c.forget(id)
	for {
		select {
		case r := <-q.parts:
			if done, err := takePart(r, take); done || err != nil {
				return err
			}
		case <-q.gone:
			return status.Errorf(codes.Unavailable, "node %q was disconnected before it answered, or reads nothing of what it is told; ask again", m.GetNode())
		case <-ctx.Done():
			return status.Errorf(codes.DeadlineExceeded, "node %q did not answer within %v", m.GetNode(), timeout)
		}
		if c.lost(q) {
			return status.Errorf(codes.ResourceExhausted, "the answer of node %q came faster than it was read; ask for less", m.GetNode())
		}
	}
}

// takePart passes one part on; done after the last.
func takePart(r *typhav1.QueryResult, take func([]byte) error) (done bool, err error) {
	if code := codes.Code(r.GetCode()); code != codes.OK {
		if code > codes.Unauthenticated {
			code = codes.Unknown // nodes must not make up codes
		}
		return true, status.Error(code, r.GetMessage())
	}
	if len(r.GetResponse()) > 0 || r.GetMore() {
		if err := take(r.GetResponse()); err != nil {
			return true, err
		}
	}
	return !r.GetMore(), nil
}

// ask sends a question down the stream.
func (s *session) ask(m *typhav1.QueryRelay) (uint64, *question) {
	q := &question{parts: make(chan *typhav1.QueryResult, answerParts), gone: make(chan struct{})}
	s.mu.Lock()
	s.lastID++
	m.Id = s.lastID
	if s.questions == nil || len(s.outbox) >= maxOutbox {
		s.mu.Unlock()
		close(q.gone) // the session ended, or its client reads nothing
		return m.GetId(), q
	}
	s.questions[m.Id] = q
	s.mu.Unlock()
	s.say(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Query{Query: m}})
	return m.GetId(), q
}

func (s *session) forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.questions, id)
}

func (s *session) lost(q *question) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return q.lost && len(q.parts) == 0
}

// answer takes a part of an answer. It never waits for the asker: the stream has other things to carry.
func (s *session) answer(r *typhav1.QueryResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.questions[r.GetId()]
	if q == nil || q.lost {
		return // nobody waits any more
	}
	select {
	case q.parts <- r:
	default:
		q.lost = true
	}
}

// failQuestions tells all who wait that the node is gone.
func (s *session) failQuestions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.questions {
		close(q.gone)
	}
	s.questions = nil
}
