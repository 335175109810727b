package server_test

import (
	"context"
	"errors"
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
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	whole, err := proto.Marshal(pod("web", "c1"))
	require.NoError(t, err)
	for _, c := range []struct {
		method string
		body   []byte
		code   codes.Code
	}{
		{felixv1.CniService_Add_FullMethodName, []byte("\xff\xff garbage"), codes.Internal},
		{felixv1.CniService_Add_FullMethodName, whole[:len(whole)-1], codes.Internal},
		{felixv1.CniService_Add_FullMethodName, make([]byte, 5<<20), codes.ResourceExhausted},
		{felixv1.CniService_Add_FullMethodName, nil, codes.InvalidArgument},
		{felixv1.CniService_Delete_FullMethodName, nil, codes.InvalidArgument},
		{"/muslin.felix.v1.CniService/Reboot", whole, codes.Unimplemented},
	} {
		err := rpctest.Call(ctx, conn, c.method, c.body)
		require.Equal(t, c.code, status.Code(err), "%v", err)
	}
	require.Empty(t, w.steps)
	_, err = felixv1.NewCniServiceClient(conn).Add(ctx, pod("web", "c1"))
	require.NoError(t, err)
}
