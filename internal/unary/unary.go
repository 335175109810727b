// Package unary makes one unary gRPC call over a unix socket, for programs that live no longer than that call. The gRPC
// library is made for connections that live: to start it costs more than everything else that such a program does. This is
// net/http speaking HTTP/2 with prior knowledge, and of gRPC the few bytes around a message (grpc's PROTOCOL-HTTP2), so any
// gRPC server answers.
package unary

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

// Code is a status code of gRPC.
type Code uint32

// The codes that callers tell apart; all others are only printed.
const (
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	FailedPrecondition Code = 9
	Aborted            Code = 10
	Internal           Code = 13
	Unavailable        Code = 14
)

// Error is a call that failed: the server's own status, or Unavailable where no answer came.
type Error struct {
	Code       Code
	Message    string
	Unanswered bool // nobody listens, or the connection broke before the answer: the call may have been carried out
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// maxMessage bounds an answer, in bytes, as gRPC's own clients do by default.
const maxMessage = 4 << 20

// prefixLen is what goes before a message: whether it is compressed, and its length.
const prefixLen = 5

// Call calls a method ("/package.Service/Method") with an encoded message, and returns the encoded answer. A deadline of ctx
// is told to the server. Errors are of type *Error.
func Call(ctx context.Context, socket, method string, request []byte) ([]byte, error) {
	answer, err := call(ctx, socket, method, request)
	var failed *Error
	switch {
	case err == nil || errors.As(err, &failed):
		return answer, err
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), passed(ctx):
		return nil, &Error{Code: DeadlineExceeded, Message: "no answer in time"}
	}
	return nil, &Error{Code: Unavailable, Message: err.Error(), Unanswered: true}
}

// passed tells that the time is over, which the timer of ctx may not know yet.
func passed(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

func call(ctx context.Context, socket, method string, request []byte) ([]byte, error) {
	transport := &http.Transport{
		Protocols: new(http.Protocols), DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+method, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	if deadline, ok := ctx.Deadline(); ok {
		// Rounded up: a server that breaks off in time does so when the caller's time is over too.
		r.Header.Set("Grpc-Timeout", fmt.Sprintf("%dm", max(0, time.Until(deadline).Milliseconds())+1))
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	message, err := io.ReadAll(io.LimitReader(resp.Body, prefixLen+maxMessage+1))
	if err != nil {
		return nil, err
	}
	if len(message) > prefixLen+maxMessage {
		return nil, &Error{Code: Internal, Message: fmt.Sprintf("the answer is longer than %d bytes", maxMessage)}
	}
	if err := statusOf(resp); err != nil {
		return nil, err
	}
	if len(message) < prefixLen || message[0] != 0 || int(binary.BigEndian.Uint32(message[1:])) != len(message)-prefixLen {
		return nil, &Error{Code: Internal, Message: "the answer is not one whole message"}
	}
	return message[prefixLen:], nil
}

// statusOf is what the server says of a call: after the answer, or instead of one.
func statusOf(resp *http.Response) error {
	said := func(key string) string { return cmp.Or(resp.Trailer.Get(key), resp.Header.Get(key)) }
	code, err := strconv.ParseUint(said("Grpc-Status"), 10, 32)
	switch {
	case err != nil:
		return fmt.Errorf("an answer that is not gRPC's: %s", resp.Status)
	case code == 0:
		return nil
	}
	text, err := url.PathUnescape(said("Grpc-Message"))
	if err != nil {
		text = said("Grpc-Message")
	}
	return &Error{Code: Code(code), Message: cmp.Or(text, fmt.Sprintf("the server failed with code %d", code))}
}
