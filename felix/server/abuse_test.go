package server_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/internal/rpc/rpctest"
	"github.com/muslin-net/muslin/internal/unary"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Names become files and interfaces: what is none is refused, and nothing happens.
func TestNamesThatAreNoneAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*felixv1.AddRequest){
		"a container above the directory": func(r *felixv1.AddRequest) { r.Attachment.ContainerId, r.Args = "/../../x", nil },
		"a container with a line's end":   func(r *felixv1.AddRequest) { r.Attachment.ContainerId = "c1\nc2" },
		"a container of a megabyte":       func(r *felixv1.AddRequest) { r.Attachment.ContainerId = strings.Repeat("c", 1<<20) },
		"no container":                    func(r *felixv1.AddRequest) { r.Attachment.ContainerId = "" },
		"a network with a slash":          func(r *felixv1.AddRequest) { r.Attachment.Network = "net/other" },
		"an interface above":              func(r *felixv1.AddRequest) { r.Attachment.Interface = ".." },
		"an interface of 16 characters":   func(r *felixv1.AddRequest) { r.Attachment.Interface = "eth0123456789abc" },
		"an interface with a slash":       func(r *felixv1.AddRequest) { r.Attachment.Interface = "eth0/1" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			req := pod("web", "c1")
			spoil(req)
			_, err := w.server().Add(t.Context(), req)
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
			require.Less(t, len(err.Error()), 1024)
			_, err = w.server().Delete(t.Context(), del(req))
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
			require.Empty(t, w.steps)
		})
	}
}

// refuses has a socket, which must be root's, called with what is no request. It returns one that is.
func refuses(t *testing.T, path string, call func(method string, body []byte) codes.Code) (whole []byte) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	whole, err = proto.Marshal(pod("web", "c1"))
	require.NoError(t, err)
	for _, c := range []struct {
		method string
		body   []byte
		code   codes.Code
	}{
		{felixv1.CniService_Add_FullMethodName, []byte("\xff\xff garbage"), codes.Internal},
		{felixv1.CniService_Add_FullMethodName, whole[:len(whole)-1], codes.Internal},
		{felixv1.CniService_Add_FullMethodName, nil, codes.InvalidArgument},
		{felixv1.CniService_Delete_FullMethodName, nil, codes.InvalidArgument},
		{"/muslin.felix.v1.CniService/Reboot", whole, codes.Unimplemented},
	} {
		require.Equal(t, c.code, call(c.method, c.body), c.method)
	}
	return whole
}

// The socket is root's; what is too large, or no request, is refused there, and the next call is answered.
func TestTheSocketRefusesGarbage(t *testing.T) {
	w := newWorld()
	s := w.server()
	ctx, cancel := context.WithCancel(t.Context())
	path, done := filepath.Join(t.TempDir(), "felix.sock"), make(chan error, 1)
	go func() { done <- s.Run(ctx, path) }()
	defer func() {
		cancel()
		require.True(t, func() bool { err := <-done; return err == nil || errors.Is(err, grpc.ErrServerStopped) }())
	}()
	conn, err := rpc.DialUnix(path)
	require.NoError(t, err)
	defer conn.Close()
	require.Eventually(t, func() bool {
		_, err := felixv1.NewCniServiceClient(conn).Status(ctx, &felixv1.StatusRequest{})
		return err == nil
	}, 20*time.Second, 5*time.Millisecond)
	call := func(method string, body []byte) codes.Code { return status.Code(rpctest.Call(ctx, conn, method, body)) }
	refuses(t, path, call)
	require.Equal(t, codes.ResourceExhausted, call(felixv1.CniService_Add_FullMethodName, make([]byte, 5<<20)))
	require.Empty(t, w.steps)
	_, err = felixv1.NewCniServiceClient(conn).Add(ctx, pod("web", "c1"))
	require.NoError(t, err)
}

// So does the socket of plugins: whatever comes there, nothing is done, and the next call is answered.
func TestThePluginsSocketRefusesGarbage(t *testing.T) {
	w := newWorld()
	s := w.server()
	ctx, cancel := context.WithCancel(t.Context())
	path, done := filepath.Join(t.TempDir(), "cni.sock"), make(chan error, 1)
	go func() { done <- s.RunPlugins(ctx, path) }()
	defer func() {
		cancel()
		require.NoError(t, <-done)
	}()
	call := func(method string, body []byte) codes.Code {
		_, err := unary.Call(ctx, path, method, body)
		var failed *unary.Error
		require.True(t, err == nil || errors.As(err, &failed), "%v", err)
		if err == nil {
			return codes.OK
		}
		return codes.Code(failed.Code)
	}
	require.Eventually(t, func() bool { return call(felixv1.CniService_Status_FullMethodName, nil) == codes.OK }, 20*time.Second, 5*time.Millisecond)
	whole := refuses(t, path, call)
	require.Equal(t, codes.Unimplemented, call(felixv1.StateService_Dump_FullMethodName, nil), "it is not for plugins")
	for _, raw := range []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x00\x00\x00\x02\x00\x00\x00\x01\x01\x00\xff\xff", "\x00\x00\x00\x00\x00\x00\x00\x02\x03\x07", "\x00\x00\x00\x01\x00\x00\x00\x03\x03\x00\x07", "\x00"} {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		_, err = c.Write([]byte(raw))
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	require.Empty(t, w.steps)
	require.Equal(t, codes.OK, call(felixv1.CniService_Add_FullMethodName, whole))
}
