package rpc

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// A peer that is gone without a word is noticed after pingEvery + pingTimeout.
const (
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
	handshake   = 10 * time.Second
)

// How much may be on its way that the receiver has not read. Sizes that are given are not guessed: gRPC would guess by a ping for
// what comes, and for messages as small and as many as ours that is more frames than messages. A server takes requests, a client
// views of some hundred kilobytes.
const (
	serverWindow = 256 << 10
	clientWindow = 1 << 20
)

// serverRead is what a server reads at a time where there is no TLS, which reads ahead by itself: it takes whole records.
const serverRead = 4 << 10

// NewServer returns a gRPC server with our keepalive. A nil config serves without TLS, for unix sockets.
func NewServer(config *tls.Config, opts ...grpc.ServerOption) *grpc.Server {
	creds, read := insecure.NewCredentials(), serverRead
	if config != nil {
		creds, read = credentials.NewTLS(config), 0
	}
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(creds),
		grpc.ConnectionTimeout(handshake),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.InitialWindowSize(serverWindow), grpc.InitialConnWindowSize(serverWindow),
		grpc.ReadBufferSize(read),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2, PermitWithoutStream: true}),
	}, opts...)...)
}

// Dial prepares a connection over TLS; it is made when first used, and again whenever it breaks.
func Dial(address string, config *tls.Config, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	options := append(dialOptions(credentials.NewTLS(config)), grpc.WithContextDialer(dialFollowing))
	return grpc.NewClient("passthrough:///"+address, append(options, opts...)...)
}

// DialUnix prepares a connection over a unix socket.
func DialUnix(path string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+path, append(dialOptions(insecure.NewCredentials()), opts...)...)
}

func dialOptions(creds credentials.TransportCredentials) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithInitialWindowSize(clientWindow), grpc.WithInitialConnWindowSize(clientWindow),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 5 * time.Second},
			MinConnectTimeout: handshake,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
	}
}

// ListenUnix opens a socket that only root (its owner) may use. A socket left behind by a process that is gone is
// replaced; one that answers is an error.
func ListenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another process serves it; stop that one first", path)
	}
	// Bound under another name and renamed when its mode is right: at no moment may others connect.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // its name is no longer ours to remove: a successor may have the path
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}
