package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// listAttempts is how often a list starts anew when etcd compacts its revision while it is being read.
const listAttempts = 3

// List returns the objects of a kind as of one revision, ordered by namespace and name. Values that cannot be decoded
// are left out and logged, so that one damaged value does not take the others with it.
func (c *Client) List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error) {
	for attempt := 1; ; attempt++ {
		var items []api.Object
		l, err := c.Pages(ctx, kind, opts, func(page []api.Object) error {
			items = append(items, page...)
			return nil
		})
		if errors.Is(err, datastore.ErrCompacted) && attempt < listAttempts {
			continue
		}
		if err != nil {
			return datastore.List{}, err
		}
		// The order of paths is not that of names: ns-a/x comes before ns/x.
		slices.SortFunc(items, func(a, b api.Object) int {
			return cmp.Or(strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
		})
		l.Items = items
		return l, nil
	}
}

// Pages reads the objects that List does some at a time; see datastore.Pages. It is ErrCompacted when etcd compacts the revision
// meanwhile.
func (c *Client) Pages(ctx context.Context, kind string, opts datastore.ListOptions, take func([]api.Object) error) (datastore.List, error) {
	key := api.Key{Kind: kind, Namespace: opts.Namespace, Name: opts.NamePrefix + "*"}
	k, ok := api.LookupKind(kind)
	if !ok {
		return datastore.List{}, &datastore.Error{Op: opList, Key: key, Err: unknownKind(kind)}
	}
	// Some pages are fetched and decoded while the one before is taken, and no more.
	ahead := make(chan chan []api.Object, runtime.GOMAXPROCS(0)-1)
	var revision int64
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer close(ahead)
		revision, err = c.fetchPages(ctx, k, opts, key, func(kvs []*mvccpb.KeyValue) error {
			decoded := make(chan []api.Object, 1)
			select {
			case ahead <- decoded:
			case <-ctx.Done():
				return ctx.Err()
			}
			group.Go(func() error {
				decoded <- c.decodePage(k, kvs, opts)
				return nil
			})
			return nil
		})
		return err
	})
	group.Go(func() error {
		for decoded := range ahead {
			if err := take(<-decoded); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return datastore.List{}, err
	}
	return datastore.List{Revision: strconv.FormatInt(revision, 10)}, nil
}

// fetchPages gives take what is stored of a kind, page by page, all at the revision that it returns.
func (c *Client) fetchPages(ctx context.Context, kind api.Kind, opts datastore.ListOptions, key api.Key, take func([]*mvccpb.KeyValue) error) (revision int64, err error) {
	start, end := rangeOf(kind, opts.Namespace, opts.NamePrefix)
	for {
		var resp *clientv3.GetResponse
		if err := c.do(ctx, opList, key, func(ctx context.Context, conn *clientv3.Client) (err error) {
			resp, err = conn.Get(ctx, start, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(c.cfg.PageSize))
			if errors.Is(err, rpctypes.ErrCompacted) {
				err = &datastore.Error{Op: opList, Key: key, Reason: datastore.ErrCompacted, Err: errors.New("etcd compacts faster than the list is read; compact less often")}
			}
			return err
		}); err != nil {
			return 0, err
		}
		revision = cmp.Or(revision, resp.Header.Revision)
		if err := take(resp.Kvs); err != nil {
			return 0, err
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return revision, nil
		}
		start = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (c *Client) decodePage(kind api.Kind, kvs []*mvccpb.KeyValue, opts datastore.ListOptions) []api.Object {
	objects := make([]api.Object, 0, len(kvs))
	for _, kv := range kvs {
		key, ok := keyOf(kind, string(kv.Key))
		if !ok || !matches(key, opts) {
			continue
		}
		o, err := decode(kind, key, kv)
		if err != nil {
			c.undecodable(string(kv.Key), err)
			continue
		}
		objects = append(objects, o)
	}
	return objects
}

func matches(key api.Key, opts datastore.ListOptions) bool {
	return (opts.Namespace == "" || key.Namespace == opts.Namespace) && strings.HasPrefix(key.Name, opts.NamePrefix)
}

// undecodable logs a stored value that is treated as if it were not there.
func (c *Client) undecodable(path string, err error) {
	c.log.Error("a value in etcd cannot be decoded and is ignored; repair or delete it", "key", path, "error", err)
}

func unknownKind(kind string) error {
	return fmt.Errorf("kind %q is not known to this version", kind)
}
