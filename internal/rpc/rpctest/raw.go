// Package rpctest sends to servers of gRPC what no client would: bytes in the place of messages.
package rpctest

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// raw sends bytes as they are, and leaves answers unread.
type raw struct{}

// Name is that of the codec that servers take it for.
func (raw) Name() string { return "proto" }

// Marshal takes a *[]byte.
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

// Unmarshal does nothing.
func (raw) Unmarshal(mem.BufferSlice, any) error { return nil }

// Call makes a call with bytes for its request.
func Call(ctx context.Context, conn *grpc.ClientConn, method string, request []byte) error {
	return conn.Invoke(ctx, method, &request, &[]byte{}, grpc.ForceCodecV2(raw{}))
}

// Stream opens a stream, sends bytes for its messages, and returns how the server ends it; nil if it has nothing against them.
func Stream(ctx context.Context, conn *grpc.ClientConn, method string, messages ...[]byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodecV2(raw{}))
	if err != nil {
		return err
	}
	for _, m := range messages {
		_ = s.SendMsg(&m) // the stream's end says why
	}
	_ = s.CloseSend()
	for {
		if err := s.RecvMsg(&[]byte{}); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
