package unary_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/internal/unary"
)

const method = "/test.Echo/Echo"

// serve runs a real server whose one method is answer.
func serve(t *testing.T, answer func(context.Context, []byte) ([]byte, error)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	g, err := rpc.NewBrief()
	require.NoError(t, err)
	g.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Echo",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.BytesValue
			if err := decode(&in); err != nil {
				return nil, err
			}
			out, err := answer(ctx, in.GetValue())
			return wrapperspb.Bytes(out), err
		},
	}}}, nil)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); require.NoError(t, <-done) })
	return socket
}

func call(ctx context.Context, t *testing.T, socket string, body []byte) ([]byte, error) {
	t.Helper()
	in, err := proto.Marshal(wrapperspb.Bytes(body))
	require.NoError(t, err)
	out, err := unary.Call(ctx, socket, method, in)
	if err != nil {
		return nil, err
	}
	var answer wrapperspb.BytesValue
	require.NoError(t, proto.Unmarshal(out, &answer))
	return answer.GetValue(), nil
}

func codeOf(t *testing.T, err error) unary.Code {
	t.Helper()
	var e *unary.Error
	require.ErrorAs(t, err, &e)
	return e.Code
}

func TestARealServerAnswers(t *testing.T) {
	socket := serve(t, func(_ context.Context, in []byte) ([]byte, error) { return in, nil })
	for _, size := range []int{0, 1, 16384, 65535, 65536, 1 << 20, 3 << 20} {
		body := bytes.Repeat([]byte{'x'}, size)
		got, err := call(t.Context(), t, socket, body)
		require.NoError(t, err, size)
		require.True(t, bytes.Equal(body, got), size)
	}
}

func TestTheServersStatusIsTold(t *testing.T) {
	words := "route 10.0.0.1/32: no such device; try \"again\" – 100 %\n" + strings.Repeat("long ", 5000)
	socket := serve(t, func(context.Context, []byte) ([]byte, error) {
		return nil, status.Error(codes.FailedPrecondition, words)
	})
	_, err := call(t.Context(), t, socket, nil)
	require.Equal(t, unary.FailedPrecondition, codeOf(t, err))
	require.EqualError(t, err, words)

	_, err = unary.Call(t.Context(), socket, "/test.Echo/Nothing", nil)
	require.Equal(t, unary.Code(codes.Unimplemented), codeOf(t, err))
}

func TestTheDeadlineIsTheServersToo(t *testing.T) {
	told := make(chan time.Time, 1)
	socket := serve(t, func(ctx context.Context, _ []byte) ([]byte, error) {
		at, _ := ctx.Deadline()
		told <- at
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for wait, reached := 100*time.Millisecond, false; !reached; wait *= 2 { // it may be over before the server hears of it
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		_, err := call(ctx, t, socket, nil)
		cancel()
		require.Equal(t, unary.DeadlineExceeded, codeOf(t, err))
		select {
		case at := <-told:
			require.False(t, at.IsZero())
			reached = true
		default:
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-told; cancel() }()
	_, err := call(ctx, t, socket, nil)
	require.Equal(t, unary.DeadlineExceeded, codeOf(t, err))
}

func TestNobodyAnswers(t *testing.T) {
	_, err := unary.Call(t.Context(), filepath.Join(t.TempDir(), "nobody"), method, nil)
	require.Equal(t, unary.Unavailable, codeOf(t, err))
	require.ErrorContains(t, err, "nobody: connect: no such file or directory")
}

// Whatever the other side sends, the call ends with an error; it neither hangs nor falls over.
func FuzzAnswers(f *testing.F) {
	header := []byte{0, 0, 0, 4, 0, 0, 0, 1, 2, 0}
	f.Add(header)
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 2, 0})       // too long
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 3, 2, 0})                   // of another call
	f.Add(append(header, 0x0a, 2, 8, 5))                          // a status
	f.Add(append(header, 0x12, 2, 'h', 'i'))                      // a message
	f.Add(append(header, 0x12, 9, 'h', 'i'))                      // cut short
	f.Add(append(header, 0x0a, 0xff, 0xff, 0xff))                 // a length without end
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0x13, 0x14, 1, 2}) // a group
	f.Fuzz(func(t *testing.T, answer []byte) {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		require.NoError(t, err)
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			if _, err := c.Write(answer); err == nil {
				_ = c.(*net.UnixConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err = unary.Call(ctx, socket, method, []byte("question"))
		var e *unary.Error
		require.True(t, err == nil || errors.As(err, &e), "%v", err)
		require.NoError(t, ctx.Err())
	})
}
