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
	key := api.Key{Kind: kind, Namespace: opts.Namespace, Name: opts.NamePrefix + "*"}
	k, ok := api.LookupKind(kind)
	if !ok {
		return datastore.List{}, &datastore.Error{Op: opList, Key: key, Err: unknownKind(kind)}
	}
	for attempt := 1; ; attempt++ {
		l, err := c.list(ctx, k, opts, key)
		if errors.Is(err, datastore.ErrCompacted) && attempt < listAttempts {
			continue
		}
		return l, err
	}
}

func (c *Client) list(ctx context.Context, kind api.Kind, opts datastore.ListOptions, key api.Key) (datastore.List, error) {
	var revision int64
	var pages []*[]api.Object
	var decoders errgroup.Group // pages are decoded while the next ones are fetched
	decoders.SetLimit(runtime.GOMAXPROCS(0))

	start, end := rangeOf(kind, opts.Namespace, opts.NamePrefix)
	for more := true; more; {
		var resp *clientv3.GetResponse
		err := c.do(ctx, opList, key, func(ctx context.Context, conn *clientv3.Client) (err error) {
			resp, err = conn.Get(ctx, start, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(c.cfg.PageSize))
			if errors.Is(err, rpctypes.ErrCompacted) {
				err = &datastore.Error{Op: opList, Key: key, Reason: datastore.ErrCompacted, Err: errors.New("etcd compacts faster than the list is read; compact less often")}
			}
			return err
		})
		if err != nil {
			_ = decoders.Wait() // decoders return no errors
			return datastore.List{}, err
		}
		revision = cmp.Or(revision, resp.Header.Revision)
		page := new([]api.Object)
		pages = append(pages, page)
		decoders.Go(func() error {
			*page = c.decodePage(kind, resp.Kvs, opts)
			return nil
		})
		if more = resp.More && len(resp.Kvs) > 0; more {
			start = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
	_ = decoders.Wait()

	l := datastore.List{Revision: strconv.FormatInt(revision, 10)}
	for _, p := range pages {
		l.Items = append(l.Items, *p...)
	}
	// The order of paths is not that of names: ns-a/x comes before ns/x.
	slices.SortFunc(l.Items, func(a, b api.Object) int {
		return cmp.Or(strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
	})
	return l, nil
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
