package client

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
)

// What a call can fail with. Test with errors.Is; the text is typha's own and says what to do.
var (
	ErrUnavailable = errors.New("typha cannot be reached")
	ErrDenied      = errors.New("typha does not allow this")
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrExhausted   = errors.New("no address is left")
	ErrStale       = errors.New("out of date") // an epoch or a checkpoint that typha does not take
	ErrInvalid     = errors.New("not a valid request")
	ErrUnserved    = errors.New("not served") // the other side has no such method
	ErrTimeout     = errors.New("no answer in time")
)

// callError is a gRPC status in plain words.
type callError struct {
	code codes.Code
	text string
}

func (e *callError) Error() string { return e.text }

// Is lets errors.Is find the sentinel that the status stands for.
func (e *callError) Is(target error) bool {
	switch e.code {
	case codes.Unavailable:
		return target == ErrUnavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		return target == ErrDenied
	case codes.NotFound:
		return target == ErrNotFound
	case codes.AlreadyExists:
		return target == ErrExists
	case codes.ResourceExhausted:
		return target == ErrExhausted
	case codes.FailedPrecondition:
		return target == ErrStale
	case codes.InvalidArgument:
		return target == ErrInvalid
	case codes.Unimplemented:
		return target == ErrUnserved
	case codes.DeadlineExceeded:
		return target == ErrTimeout || target == context.DeadlineExceeded
	case codes.Canceled:
		return target == context.Canceled
	}
	return false
}
