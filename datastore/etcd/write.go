package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// target is one object's place: its key, its kind, and its path in etcd.
type target struct {
	key  api.Key
	kind api.Kind
	path string
}

func locate(op string, key api.Key) (target, error) {
	t := target{key: key}
	var ok bool
	if t.kind, ok = api.LookupKind(key.Kind); !ok {
		return t, &datastore.Error{Op: op, Key: key, Err: unknownKind(key.Kind)}
	}
	t.key.Kind = t.kind.Name
	var err error
	if t.path, err = pathOf(t.kind, t.key); err != nil {
		return t, &datastore.Error{Op: op, Key: key, Err: err}
	}
	return t, nil
}

// Get reads one object.
func (c *Client) Get(ctx context.Context, key api.Key) (api.Object, error) {
	t, err := locate(opGet, key)
	if err != nil {
		return nil, err
	}
	return c.get(ctx, opGet, t)
}

func (c *Client) get(ctx context.Context, op string, t target) (api.Object, error) {
	var o api.Object
	err := c.do(ctx, op, t.key, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err := conn.Get(ctx, t.path)
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return &datastore.Error{Op: op, Key: t.key, Reason: datastore.ErrNotFound}
		}
		o, err = decode(t.kind, t.key, resp.Kvs[0])
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Create stores a new object.
func (c *Client) Create(ctx context.Context, o api.Object) (api.Object, error) {
	t, err := locate(opCreate, api.KeyOf(o))
	if err != nil {
		return nil, err
	}
	o = o.DeepCopyObject().(api.Object)
	if o.GetUID() == "" {
		o.SetUID(types.UID(uuid.NewString()))
	}
	if created := o.GetCreationTimestamp(); created.IsZero() {
		o.SetCreationTimestamp(metav1.NewTime(time.Now().UTC().Truncate(time.Second)))
	}
	return c.put(ctx, opCreate, t, o, clientv3.Compare(clientv3.CreateRevision(t.path), "=", 0))
}

// Update replaces an object whose stored revision is o's.
func (c *Client) Update(ctx context.Context, o api.Object) (api.Object, error) {
	t, err := locate(opUpdate, api.KeyOf(o))
	if err != nil {
		return nil, err
	}
	revision, err := parseRevision(o.GetResourceVersion())
	if err != nil {
		return nil, &datastore.Error{Op: opUpdate, Key: t.key, Reason: datastore.ErrConflict, Err: err}
	}
	o = o.DeepCopyObject().(api.Object)
	if created := o.GetCreationTimestamp(); !isIPAM(t.kind.Name) && (o.GetUID() == "" || created.IsZero()) {
		// Who writes an object from a file does not know them. They never change, so they may be read apart.
		stored, err := c.get(ctx, opUpdate, t)
		if err != nil {
			return nil, err
		}
		o.SetUID(stored.GetUID())
		o.SetCreationTimestamp(stored.GetCreationTimestamp())
	}
	return c.put(ctx, opUpdate, t, o, clientv3.Compare(clientv3.ModRevision(t.path), "=", revision))
}

// put writes o, which it owns, if the condition holds, and returns what is stored then.
func (c *Client) put(ctx context.Context, op string, t target, o api.Object, condition clientv3.Cmp) (api.Object, error) {
	o.SetResourceVersion("")
	if isIPAM(t.kind.Name) {
		clearMeta(o)
	}
	value, err := encode(t.kind, o)
	if err != nil {
		return nil, &datastore.Error{Op: op, Key: t.key, Err: err}
	}
	err = c.do(ctx, op, t.key, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err := conn.Txn(ctx).If(condition).
			Then(clientv3.OpPut(t.path, string(value))).
			Else(clientv3.OpGet(t.path, clientv3.WithKeysOnly())).Commit()
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			return &datastore.Error{Op: op, Key: t.key, Reason: refusal(op, len(resp.Responses[0].GetResponseRange().Kvs) > 0)}
		}
		o, err = decode(t.kind, t.key, &mvccpb.KeyValue{Value: value, ModRevision: resp.Header.Revision})
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// refusal is why a conditional write was not done, given whether the object exists.
func refusal(op string, exists bool) error {
	switch {
	case op == opCreate:
		return datastore.ErrExists
	case exists:
		return datastore.ErrConflict
	default:
		return datastore.ErrNotFound
	}
}

// Delete removes an object and returns its last state.
func (c *Client) Delete(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	t, err := locate(opDelete, key)
	if err != nil {
		return nil, err
	}
	for {
		condition := clientv3.Compare(clientv3.CreateRevision(t.path), ">", 0)
		if pre.Revision != "" {
			revision, err := parseRevision(pre.Revision)
			if err != nil {
				return nil, &datastore.Error{Op: opDelete, Key: t.key, Reason: datastore.ErrConflict, Err: err}
			}
			condition = clientv3.Compare(clientv3.ModRevision(t.path), "=", revision)
		}
		if pre.UID != "" { // etcd cannot compare it, so it is read and then held by the revision
			stored, err := c.get(ctx, opDelete, t)
			if err != nil {
				return nil, err
			}
			if string(stored.GetUID()) != pre.UID {
				return nil, &datastore.Error{
					Op: opDelete, Key: t.key, Reason: datastore.ErrConflict,
					Err: fmt.Errorf("its uid is %s, not %s: it was deleted and made anew", stored.GetUID(), pre.UID),
				}
			}
			if pre.Revision == "" {
				revision, _ := parseRevision(stored.GetResourceVersion()) // as decoded, so it parses
				condition = clientv3.Compare(clientv3.ModRevision(t.path), "=", revision)
			}
		}
		o, err := c.remove(ctx, t, condition)
		if errors.Is(err, datastore.ErrConflict) && pre.Revision == "" {
			continue // changed between reading the uid and deleting: look again
		}
		return o, err
	}
}

func (c *Client) remove(ctx context.Context, t target, condition clientv3.Cmp) (api.Object, error) {
	var o api.Object
	err := c.do(ctx, opDelete, t.key, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err := conn.Txn(ctx).If(condition).
			Then(clientv3.OpDelete(t.path, clientv3.WithPrevKV())).
			Else(clientv3.OpGet(t.path, clientv3.WithKeysOnly())).Commit()
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			return &datastore.Error{Op: opDelete, Key: t.key, Reason: refusal(opDelete, len(resp.Responses[0].GetResponseRange().Kvs) > 0)}
		}
		o = c.lastState(t.kind, t.key, resp.Responses[0].GetResponseDeleteRange().PrevKvs)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// parseRevision reads a resourceVersion of this backend.
func parseRevision(s string) (int64, error) {
	if s == "" {
		return 0, errors.New("its resourceVersion is empty")
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("resourceVersion %q is none of etcd's", s)
	}
	return n, nil
}
