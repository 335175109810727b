package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/api"
)

const opCompact = "compact"

// Head is etcd's newest revision, that of all keys.
func (c *Client) Head(ctx context.Context) (revision int64, err error) {
	err = c.do(ctx, opCompact, api.Key{}, func(ctx context.Context, conn *clientv3.Client) error {
		got, err := conn.Get(ctx, ipamConfigPath, clientv3.WithCountOnly())
		if err == nil {
			revision = got.Header.Revision
		}
		return err
	})
	return revision, err
}

// Compact has etcd forget revisions before this one, of all keys. That it has done so already is no error.
func (c *Client) Compact(ctx context.Context, revision int64) error {
	return c.do(ctx, opCompact, api.Key{}, func(ctx context.Context, conn *clientv3.Client) error {
		_, err := conn.Compact(ctx, revision)
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil
		}
		return err
	})
}
