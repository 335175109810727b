// Package client talks to felix over its unix socket: it is what calicoctl and the node's probes use. The CNI plugins, which
// live for one call only, have package client/cni.
package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/client/cni"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// DefaultSocket is where felix listens for all but plugins unless told otherwise.
const DefaultSocket = "/var/run/calico/felix.sock"

// What a caller can do about an error; see package cni.
var (
	ErrTryAgain = cni.ErrTryAgain
	ErrInvalid  = cni.ErrInvalid
	ErrMismatch = cni.ErrMismatch
)

// Client is a connection to one felix.
type Client struct {
	conn *grpc.ClientConn
	live felixv1.StateServiceClient
	path string

	checks felixv1.CheckServiceClient
}

// Dial prepares a connection; it is made on first use.
func Dial(socket string) (*Client, error) {
	conn, err := rpc.DialUnix(socket)
	if err != nil {
		return nil, fmt.Errorf("felix socket %s: %w", socket, err)
	}
	return &Client{
		conn: conn, path: socket, live: felixv1.NewStateServiceClient(conn),
		checks: felixv1.NewCheckServiceClient(conn),
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// DumpEntry is one object of the kernel as felix wants it and as it is.
type DumpEntry struct {
	Section, Key, Desired, Actual, Error string
}

// Dump returns desired beside actual state; see StateService.Dump.
func (c *Client) Dump(ctx context.Context, sections []string, differencesOnly bool) ([]DumpEntry, error) {
	resp, err := c.live.Dump(ctx, &felixv1.DumpRequest{Sections: sections, DifferencesOnly: differencesOnly})
	if err != nil {
		return nil, c.explain(err)
	}
	return entriesOf(resp), nil
}

// explain turns a status into an error that says what to do.
func (c *Client) explain(err error) error {
	s, ok := status.FromError(err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return err
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%w: felix at %s: %s; is felix running on this node?", ErrTryAgain, c.path, s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: felix at %s did not answer in time", ErrTryAgain, c.path)
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %s", ErrInvalid, s.Message())
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %s", ErrMismatch, s.Message())
	}
	return errors.New(s.Message())
}

func addresses(in [][]byte) ([]netip.Addr, error) {
	out := make([]netip.Addr, len(in))
	for i, b := range in {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, fmt.Errorf("felix sent an address of %d bytes", len(b))
		}
		out[i] = a
	}
	return out, nil
}
