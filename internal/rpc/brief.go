package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
)

// Brief serves the unary methods of gRPC services by ttrpc, for programs that live as long as one call (internal/unary): a
// connection of gRPC costs both ends more than such a call.
type Brief struct{ server *ttrpc.Server }

// NewBrief returns a server without services.
func NewBrief() (*Brief, error) {
	s, err := ttrpc.NewServer()
	return &Brief{s}, err
}

// RegisterService implements grpc.ServiceRegistrar.
func (b *Brief) RegisterService(desc *grpc.ServiceDesc, impl any) {
	methods := map[string]ttrpc.Method{}
	for _, m := range desc.Methods {
		methods[m.MethodName] = func(ctx context.Context, decode func(any) error) (any, error) {
			return m.Handler(impl, ctx, decode, nil)
		}
	}
	b.server.RegisterService(desc.ServiceName, &ttrpc.ServiceDesc{Methods: methods})
}

// Serve serves until Stop, and closes the listener.
func (b *Brief) Serve(l net.Listener) error {
	err := b.server.Serve(context.Background(), l)
	if errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", l.Addr(), err)
}

// Stop ends all calls and connections.
func (b *Brief) Stop() { _ = b.server.Close() }
