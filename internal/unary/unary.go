// Package unary makes one unary call over a unix socket, for programs that live no longer than that call. The gRPC library and
// HTTP/2 are made for connections that live: to start them costs more than everything else that such a program does. This is the
// part of ttrpc that one call needs (containerd's "gRPC for low-memory environments"): gRPC's services, messages and codes behind a
// header of ten bytes. Its other end is rpc.Brief, by the real library.
package unary

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Code is a status code of gRPC.
type Code uint32

// The codes that callers tell apart; all others are only printed.
const (
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
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

// maxMessage bounds what is sent and received, in bytes, as the server does.
const maxMessage = 4 << 20

// What a header consists of: the length of what follows, the number of the call, what it is, and flags.
const (
	headerLen = 10
	callAt    = 4
	kindAt    = 8

	theCall  = 1
	request  = 1
	response = 2
)

// Call calls a method ("/package.Service/Method") with an encoded message, and returns the encoded answer. A deadline of ctx
// is told to the server. Errors are of type *Error.
func Call(ctx context.Context, socket, method string, message []byte) ([]byte, error) {
	answer, err := call(ctx, socket, method, message)
	var failed *Error
	switch {
	case err == nil || errors.As(err, &failed):
		return answer, err
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &Error{Code: DeadlineExceeded, Message: "no answer in time"}
	}
	return nil, &Error{Code: Unavailable, Message: err.Error(), Unanswered: true}
}

func call(ctx context.Context, socket, method string, message []byte) ([]byte, error) {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	frame := make([]byte, headerLen, headerLen+len(message)+len(method)+32)
	frame = AppendBytes(AppendBytes(frame, 1, []byte(service)), 2, []byte(name))
	frame = AppendBytes(frame, 3, message)
	deadline, bounded := ctx.Deadline()
	if bounded {
		frame = AppendNumber(frame, 4, uint64(max(1, time.Until(deadline))))
	}
	if len(frame) > headerLen+maxMessage {
		return nil, &Error{Code: Internal, Message: fmt.Sprintf("the call is longer than %d bytes", maxMessage)}
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-headerLen))
	binary.BigEndian.PutUint32(frame[callAt:], theCall)
	frame[kindAt] = request

	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if bounded {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(frame); err != nil {
		return nil, err
	}
	answer, err := read(conn)
	if err != nil {
		return nil, err
	}
	return open(answer)
}

// read reads the body of the one answer.
func read(from io.Reader) ([]byte, error) {
	var header [headerLen]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	length := binary.BigEndian.Uint32(header[:])
	switch {
	case binary.BigEndian.Uint32(header[callAt:]) != theCall || header[kindAt] != response:
		return nil, errors.New("an answer that is not ttrpc's to this call")
	case length > maxMessage:
		return nil, &Error{Code: Internal, Message: fmt.Sprintf("the answer is longer than %d bytes", maxMessage)}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(from, body); err != nil {
		return nil, fmt.Errorf("half an answer: %w", err)
	}
	return body, nil
}

// open takes the message out of an answer, or the server's status.
func open(answer []byte) (message []byte, err error) {
	var failed Error
	err = Each(answer, func(field int, _ uint64, value []byte) error {
		switch field {
		case 1:
			return Each(value, func(field int, n uint64, value []byte) error {
				switch field {
				case 1:
					failed.Code = Code(n)
				case 2:
					failed.Message = string(value)
				}
				return nil
			})
		case 2:
			message = value
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if failed.Code != 0 {
		failed.Message = cmp.Or(failed.Message, fmt.Sprintf("the server failed with code %d", failed.Code))
		return nil, &failed
	}
	return message, nil
}
