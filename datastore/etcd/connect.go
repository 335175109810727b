package etcd

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"

	"github.com/muslin-net/muslin/api"
)

// keepAlive is how often an idle connection is probed; a dead peer is noticed within one and a half of it.
const keepAlive = 10 * time.Second

// errNotConnected means that a request was not sent.
var errNotConnected = errors.New("no connection")

// connect returns the etcd client, made at first use. (Making it asks for a token if there is a user, and so can fail.)
func (c *Client) connect(ctx context.Context) (*clientv3.Client, error) {
	if conn := c.conn.Load(); conn != nil {
		return conn, nil
	}
	select {
	case c.dial <- struct{}{}:
		defer func() { <-c.dial }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if conn := c.conn.Load(); conn != nil {
		return conn, nil
	}
	if c.ctx.Err() != nil {
		return nil, errClosed
	}
	conn, err := clientv3.New(clientv3.Config{
		Context:              c.ctx,
		Endpoints:            c.eps,
		TLS:                  c.tls,
		Username:             c.cfg.Username,
		Password:             c.cfg.Password,
		DialTimeout:          c.cfg.DialTimeout,
		DialKeepAliveTime:    keepAlive,
		DialKeepAliveTimeout: keepAlive / 2,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			// By default the waits between attempts grow to two minutes, which is how long etcd would seem to be away
			// after it has come back.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: c.cfg.DialTimeout,
		})},
	})
	if err != nil {
		return nil, err
	}
	c.conn.Store(conn)
	return conn, nil
}

// connected returns the etcd client once it has a connection to some endpoint, or errNotConnected after the time limit
// of dialling. Without this a request to an etcd that is away would be repeated until its own, longer limit.
func (c *Client) connected(ctx context.Context) (*clientv3.Client, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	grpcConn := conn.ActiveConnection()
	if grpcConn.GetState() == connectivity.Ready {
		return conn, nil
	}
	dialing, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	for {
		state := grpcConn.GetState()
		switch state {
		case connectivity.Ready:
			return conn, nil
		case connectivity.Idle:
			grpcConn.Connect()
		}
		if !grpcConn.WaitForStateChange(dialing, state) {
			return nil, errNotConnected
		}
	}
}

// do runs one request with the time limit of requests, and explains its failure.
func (c *Client) do(ctx context.Context, op string, key api.Key, request func(context.Context, *clientv3.Client) error) error {
	if err := ctx.Err(); err != nil {
		return c.explain(ctx, op, key, err)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.OpTimeout)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	conn, err := c.connected(limited)
	if err == nil {
		err = request(limited, conn)
	}
	return c.explain(ctx, op, key, err)
}
