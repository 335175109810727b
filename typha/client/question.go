package client

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// Method is a method of a node's daemons that an operator may call through typha.
type Method int

// The methods, with the messages that Request and the parts of the answer hold, serialised.
const (
	BirdPeers      Method = iota + 1 // bird.v1 PeersRequest, PeersResponse
	BirdShow                         // bird.v1 ShowRequest, ShowPart
	FelixDump                        // felix.v1 DumpRequest, DumpResponse
	FelixExplain                     // felix.v1 ExplainRequest, ExplainResponse
	FelixEndpoints                   // felix.v1 EndpointsRequest, EndpointsResponse
	BirdDrain                        // bird.v1 DrainRequest, DrainResponse
)

// Question is one call of a Method.
type Question struct {
	Method  Method
	Request []byte
}

// answer lets the handler answer a relayed question, and sends what it says.
func (s *session) answer(q *typhav1.QueryRelay) {
	defer s.asked.Done()
	ctx, cancel := context.WithTimeout(s.ctx, q.GetTimeout().AsDuration())
	defer cancel()
	err := s.h.OnQuery(ctx, Question{Method: Method(q.GetMethod()), Request: q.GetRequest()}, func(part []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return s.result(&typhav1.QueryResult{Id: q.GetId(), Response: part, More: true})
	})
	last := &typhav1.QueryResult{Id: q.GetId()}
	if err != nil {
		last.Code, last.Message = uint32(codeOf(err)), err.Error()
	}
	_ = s.result(last) // an error is the end of the stream: nobody is there to be told
}

func (s *session) result(r *typhav1.QueryResult) error {
	return s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_QueryResult{QueryResult: r}})
}

func codeOf(err error) codes.Code {
	var call *callError
	switch {
	case errors.As(err, &call):
		return call.code
	case status.Code(err) != codes.Unknown: // of the daemon that was asked
		return status.Code(err)
	case errors.Is(err, ErrUnserved):
		return codes.Unimplemented
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, ErrNotFound):
		return codes.NotFound
	default:
		return codes.Internal
	}
}
