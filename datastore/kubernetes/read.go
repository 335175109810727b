package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// listAttempts is how often a list starts anew when the server forgets its revision while it is being read. The last attempt
// asks for everything at once, which cannot be forgotten.
const listAttempts = 3

// Get reads one object.
func (c *Client) Get(ctx context.Context, key api.Key) (api.Object, error) {
	p, err := c.place(ctx, opGet, key.Kind, key)
	if err != nil {
		return nil, err
	}
	it, _, err := c.look(ctx, opGet, p, key)
	if err != nil {
		return nil, err
	}
	if it.ended { // who marked it did not get further
		err := p.writer.(resources).finish(ctx, key)
		return nil, cmp.Or(err, error(&datastore.Error{Op: opGet, Key: key, Reason: datastore.ErrNotFound}))
	}
	return it.object, nil
}

// look reads one object, and the resource that it is made of.
func (c *Client) look(ctx context.Context, op string, p *place, key api.Key) (item, runtime.Object, error) {
	missing := &datastore.Error{Op: op, Key: key, Reason: datastore.ErrNotFound}
	if err := checkKey(p.kind, key); err != nil {
		return item{}, nil, failed(op, key, err)
	}
	at, err := p.find(key)
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return item{}, nil, missing
	case err != nil:
		return item{}, nil, failed(op, key, err)
	}
	for _, name := range at.names {
		o := at.source.one()
		err := c.do(ctx, op, key, func(ctx context.Context) error {
			return at.source.client.Get().NamespaceIfScoped(at.namespace, at.namespace != "").Resource(at.source.resource).Name(name).Do(ctx).Into(o)
		})
		switch {
		case errors.Is(err, datastore.ErrNotFound):
			continue
		case err != nil:
			return item{}, nil, err
		}
		it, err := at.source.read(o)
		if err != nil {
			return item{}, nil, failed(op, key, err)
		}
		if it.object != nil && it.key.Name == key.Name {
			return it, o, nil
		}
	}
	return item{}, nil, missing
}

// List returns the objects of a kind as of one revision, ordered by namespace and name. Resources that cannot be read are left
// out and logged, so that one that is damaged does not take the others with it.
func (c *Client) List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error) {
	key := api.Key{Kind: kind, Namespace: opts.Namespace, Name: opts.NamePrefix + "*"}
	p, err := c.place(ctx, opList, kind, key)
	if err != nil {
		return datastore.List{}, err
	}
	var l datastore.List
	var revisions, seen []string
	for i := range p.sources {
		items, revision, err := c.listSource(ctx, key, &p.sources[i], opts)
		if err != nil {
			return datastore.List{}, err
		}
		revisions, seen = append(revisions, revision), append(seen, highest(items))
		l.Items = append(l.Items, items...)
	}
	l.Revision, l.Seen = strings.Join(revisions, "/"), datastore.Seen(strings.Join(seen, "/"))
	slices.SortFunc(l.Items, func(a, b api.Object) int {
		return cmp.Or(strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
	})
	return l, nil
}

// highest is the highest revision of objects; "0" if there are none.
func highest(objects []api.Object) string {
	var n uint64
	for _, o := range objects {
		if revision, err := parseRevision(o.GetResourceVersion()); err == nil {
			n = max(n, revision)
		}
	}
	return strconv.FormatUint(n, 10)
}

// listSource returns the objects of one source.
func (c *Client) listSource(ctx context.Context, key api.Key, s *source, opts datastore.ListOptions) ([]api.Object, string, error) {
	for attempt := 1; ; attempt++ {
		size := c.cfg.PageSize
		if attempt == listAttempts {
			size = 0
		}
		items, revision, err := c.pages(ctx, key, s, opts, size)
		if !errors.Is(err, datastore.ErrCompacted) || attempt == listAttempts {
			return items, revision, err
		}
	}
}

// pages reads a list, some objects at a time.
func (c *Client) pages(ctx context.Context, key api.Key, s *source, opts datastore.ListOptions, size int64) (items []api.Object, revision string, err error) {
	others := map[api.Key]api.Object{} // that are stored under another name than the usual one
	o := s.options(opts)
	for o.Limit = size; ; {
		page := s.list()
		if err := c.do(ctx, opList, key, func(ctx context.Context) error {
			return s.request(opts.Namespace, o).Do(ctx).Into(page)
		}); err != nil {
			return nil, "", err
		}
		if err := meta.EachListItem(page, func(r runtime.Object) error {
			it, err := s.read(r)
			switch {
			case err != nil:
				c.unreadable(s, r, err)
			case it.object == nil || it.ended || !matches(it.key, opts):
			case s.look != nil && r.(*document).Name != it.key.Name:
				others[it.key] = it.object
			default:
				items = append(items, it.object)
			}
			return nil
		}); err != nil {
			return nil, "", failed(opList, key, err)
		}
		m, err := meta.ListAccessor(page)
		if err != nil {
			return nil, "", failed(opList, key, err)
		}
		if o.Continue = m.GetContinue(); o.Continue == "" {
			for _, usual := range items {
				delete(others, api.KeyOf(usual))
			}
			return slices.AppendSeq(items, maps.Values(others)), m.GetResourceVersion(), nil
		}
	}
}

// now is the present revision of a source.
func (c *Client) now(ctx context.Context, op string, key api.Key, s *source, namespace string) (string, error) {
	o := s.options(datastore.ListOptions{Namespace: namespace})
	o.Limit = 1
	page := s.list()
	if err := c.do(ctx, op, key, func(ctx context.Context) error { return s.request(namespace, o).Do(ctx).Into(page) }); err != nil {
		return "", err
	}
	m, err := meta.ListAccessor(page)
	if err != nil {
		return "", failed(op, key, err)
	}
	return m.GetResourceVersion(), nil
}

func (s *source) options(opts datastore.ListOptions) (o metav1.ListOptions) {
	if s.narrow != nil {
		o.LabelSelector, o.FieldSelector = s.narrow(opts)
	}
	return o
}

func (s *source) request(namespace string, o metav1.ListOptions) *rest.Request {
	return s.client.Get().NamespaceIfScoped(namespace, namespace != "").Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec)
}

func matches(key api.Key, opts datastore.ListOptions) bool {
	return (opts.Namespace == "" || key.Namespace == opts.Namespace) && strings.HasPrefix(key.Name, opts.NamePrefix)
}

// unreadable logs a resource that is treated as if it were not there.
func (c *Client) unreadable(s *source, o runtime.Object, err error) {
	name := "?"
	if m, accessErr := meta.Accessor(o); accessErr == nil {
		name = strings.TrimPrefix(m.GetNamespace()+"/"+m.GetName(), "/")
	}
	c.log.Error("a resource cannot be read and is ignored; repair or delete it", "resource", s.resource, "name", name, "error", err)
}

// parseRevision reads a resourceVersion.
func parseRevision(s string) (uint64, error) {
	if s == "" {
		return 0, errors.New("its resourceVersion is empty")
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("resourceVersion %q is none of Kubernetes", s)
	}
	return n, nil
}

// isGone tells whether the server no longer remembers a revision.
func isGone(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }
