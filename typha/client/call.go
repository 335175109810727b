package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// call makes one call at the first replica that can be reached, the stream's own first. What a replica answers counts,
// also if it is an error; only where none can be reached is the next one asked.
func (c *Client) call(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	return c.callUntil(ctx, func(codes.Code) bool { return false }, do)
}

// callUntil is call that goes on to the next replica also after an answer for which further says so.
func (c *Client) callUntil(ctx context.Context, further func(codes.Code) bool, do func(context.Context, *grpc.ClientConn) error) error {
	var answer error
	var tried []string
	for _, r := range c.replicas.candidates() {
		conn, err := c.replicas.conn(r)
		if err != nil {
			return err
		}
		conn.ResetConnectBackoff()
		err = do(ctx, conn)
		if err == nil {
			return nil
		}
		code := status.Code(err)
		switch {
		case further(code):
			answer = plain(err)
		case code != codes.Unavailable || ctx.Err() != nil:
			return plain(err)
		default:
			tried = append(tried, fmt.Sprintf("%s: %s", r.Address, status.Convert(err).Message()))
		}
	}
	if answer != nil {
		return answer
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, strings.Join(tried, "; "))
}

func (c *Client) endpoints(ctx context.Context, do func(context.Context, typhav1.EndpointsServiceClient) error) error {
	return c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		return do(ctx, typhav1.NewEndpointsServiceClient(conn))
	})
}

func (c *Client) ipam(ctx context.Context, do func(context.Context, typhav1.IpamServiceClient) error) error {
	return c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		return do(ctx, typhav1.NewIpamServiceClient(conn))
	})
}

func (c *Client) nodes(ctx context.Context, do func(context.Context, typhav1.NodesServiceClient) error) error {
	return c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		return do(ctx, typhav1.NewNodesServiceClient(conn))
	})
}

func (c *Client) query(ctx context.Context, do func(context.Context, typhav1.QueryServiceClient) error) error {
	return c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		return do(ctx, typhav1.NewQueryServiceClient(conn))
	})
}

// drain gives each message of a stream to take.
func drain[M any](stream grpc.ServerStreamingClient[M], take func(*M) error) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := take(m); err != nil {
			return err
		}
	}
}
