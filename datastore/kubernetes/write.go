package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/datastore"
)

// Create stores a new object. The server draws uid and creationTimestamp.
func (c *Client) Create(ctx context.Context, o api.Object) (api.Object, error) {
	return c.write(ctx, opCreate, api.KeyOf(o), func(p *place) (api.Object, error) { return p.writer.create(ctx, api.KeyOf(o), o) })
}

// Update replaces an object whose stored revision is o's.
func (c *Client) Update(ctx context.Context, o api.Object) (api.Object, error) {
	return c.write(ctx, opUpdate, api.KeyOf(o), func(p *place) (api.Object, error) {
		if _, err := parseRevision(o.GetResourceVersion()); err != nil {
			return nil, &datastore.Error{Op: opUpdate, Key: api.KeyOf(o), Reason: datastore.ErrConflict, Err: err}
		}
		return p.writer.update(ctx, api.KeyOf(o), o)
	})
}

// Delete removes an object and returns its last state. One with finalizers is gone when the last of them has been removed.
func (c *Client) Delete(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	return c.write(ctx, opDelete, key, func(p *place) (api.Object, error) { return p.writer.remove(ctx, key, pre) })
}

// Remove deletes an object of address management that was read before, if it is still as it was; see datastore.Remove.
func (c *Client) Remove(ctx context.Context, o api.Object) error {
	key := api.KeyOf(o)
	_, err := c.write(ctx, opDelete, key, func(p *place) (api.Object, error) {
		r, ok := p.writer.(resources)
		if _, err := parseRevision(o.GetResourceVersion()); !ok || !isIPAM(key.Kind) || err != nil {
			return p.writer.remove(ctx, key, datastore.Precondition{Revision: o.GetResourceVersion()})
		}
		return nil, r.removeRead(ctx, key, o)
	})
	return err
}

func (c *Client) write(ctx context.Context, op string, key api.Key, do func(*place) (api.Object, error)) (api.Object, error) {
	p, err := c.place(ctx, op, key.Kind, key)
	if err != nil {
		return nil, err
	}
	if err := checkKey(p.kind, key); err != nil {
		return nil, failed(op, key, err)
	}
	o, err := do(p)
	if _, done := errors.AsType[*datastore.Error](err); err != nil && !done {
		err = failed(op, key, err)
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// readOnly refuses to write, and says what to do instead.
type readOnly string

func (r readOnly) refuse() (api.Object, error) { return nil, errors.New(string(r)) }

func (r readOnly) create(context.Context, api.Key, api.Object) (api.Object, error) {
	return r.refuse()
}

func (r readOnly) update(context.Context, api.Key, api.Object) (api.Object, error) {
	return r.refuse()
}

func (r readOnly) remove(context.Context, api.Key, datastore.Precondition) (api.Object, error) {
	return r.refuse()
}

// resources are objects that are custom resources.
type resources struct {
	c      *Client
	kind   api.Kind
	layout *layout
}

func (r resources) create(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	names, err := r.layout.names(r.kind, key)
	if err != nil {
		return nil, err
	}
	if len(names) > 1 { // one that an older version made has another name, and would not be in the way
		if _, err := r.c.Get(ctx, key); !errors.Is(err, datastore.ErrNotFound) {
			return nil, orElse(err, &datastore.Error{Op: opCreate, Key: key, Reason: datastore.ErrExists})
		}
	}
	o = o.DeepCopyObject().(api.Object)
	o.SetResourceVersion("")
	d, err := r.send(ctx, opCreate, "POST", key, o, names[0])
	if errors.Is(err, datastore.ErrExists) && isIPAM(r.kind.Name) {
		// It may be one that is marked as deleted, which looking at it finishes.
		if _, gone := r.c.Get(ctx, key); errors.Is(gone, datastore.ErrNotFound) {
			d, err = r.send(ctx, opCreate, "POST", key, o, names[0])
		}
	}
	if err != nil {
		return nil, err
	}
	return r.settle(ctx, opCreate, key, o, d)
}

func (r resources) update(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	names, err := r.layout.names(r.kind, key)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		d, err := r.send(ctx, opUpdate, "PUT", key, o, name)
		switch {
		case errors.Is(err, datastore.ErrNotFound) && i+1 < len(names):
			continue
		case err != nil:
			return nil, err
		}
		return r.settle(ctx, opUpdate, key, o, d)
	}
	return nil, &datastore.Error{Op: opUpdate, Key: key, Reason: datastore.ErrNotFound} // names are never none
}

// send writes an object under a name, and returns what is stored then. sub is a subresource, if any.
func (r resources) send(ctx context.Context, op, verb string, key api.Key, o api.Object, name string, sub ...string) (*document, error) {
	body, err := r.layout.encode(r.kind, o, name)
	if err != nil {
		return nil, failed(op, key, err)
	}
	d := &document{}
	err = r.c.do(ctx, op, key, func(ctx context.Context) error {
		request := r.layout.client.Verb(verb).NamespaceIfScoped(key.Namespace, r.kind.Namespaced).Resource(r.layout.resource(r.kind)).
			SetHeader("Content-Type", "application/json").Body(body)
		if verb != "POST" {
			request = request.Name(name).SubResource(sub...)
		}
		return request.Do(ctx).Into(d)
	})
	return d, err
}

// settle writes the status of what has been written, where the server keeps that apart.
func (r resources) settle(ctx context.Context, op string, key api.Key, o api.Object, d *document) (api.Object, error) {
	sent, err := r.layout.encode(r.kind, o, d.Name)
	if err != nil {
		return nil, err
	}
	if !sameStatus(sent, d.raw) {
		o = o.DeepCopyObject().(api.Object)
		o.SetResourceVersion(d.ResourceVersion)
		after, err := r.send(ctx, op, "PUT", key, o, d.Name, "status")
		switch {
		case errors.Is(err, datastore.ErrNotFound): // the kind has no status here, or none that is apart
		case err != nil:
			return nil, fmt.Errorf("the object was written, its status not: %w", err)
		default:
			d = after
		}
	}
	it, err := r.layout.decode(r.kind, d)
	if err != nil {
		return nil, err
	}
	return it.object, nil
}

// sameStatus tells whether two documents say the same under status; nothing and an empty status are one.
func sameStatus(a, b []byte) bool {
	status := func(data []byte) map[string]any {
		var doc struct {
			Status map[string]any `json:"status"`
		}
		if json.Unmarshal(data, &doc) != nil || doc.Status == nil {
			return map[string]any{}
		}
		return doc.Status
	}
	return reflect.DeepEqual(status(a), status(b))
}

func (r resources) remove(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	p := &place{kind: r.kind, sources: []source{r.c.resources(r.kind, r.layout)}}
	p.find = p.custom(r.layout)
	for {
		it, o, err := r.c.look(ctx, opDelete, p, key)
		switch {
		case err != nil:
			return nil, err
		case it.ended:
			if err := r.drop(ctx, key, o.(*document)); err != nil {
				return nil, err
			}
			return nil, &datastore.Error{Op: opDelete, Key: key, Reason: datastore.ErrNotFound}
		}
		if err := check(key, it.object, pre); err != nil {
			return nil, err
		}
		d := o.(*document)
		if isIPAM(r.kind.Name) {
			d, err = r.send(ctx, opDelete, "PUT", key, marked(it.object), d.Name)
		}
		if err == nil {
			err = r.drop(ctx, key, d)
		}
		switch {
		case errors.Is(err, datastore.ErrConflict) && pre.Revision == "":
			continue // it was changed since it was read: look again
		case err != nil:
			return nil, err
		}
		return it.object, nil
	}
}

// removeRead marks and deletes an object of address management that has one name. Both writes hold only if nobody else has written
// since.
func (r resources) removeRead(ctx context.Context, key api.Key, o api.Object) error {
	names, err := r.layout.names(r.kind, key)
	if err != nil {
		return err
	}
	d, err := r.send(ctx, opDelete, "PUT", key, marked(o), names[0])
	if err != nil {
		return err
	}
	return r.drop(ctx, key, d)
}

// finish deletes an object that is marked as deleted. That somebody else was quicker is fine.
func (r resources) finish(ctx context.Context, key api.Key) error {
	_, err := r.remove(ctx, key, datastore.Precondition{})
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return err
}

// drop deletes a resource if it is what it was when it was read.
func (r resources) drop(ctx context.Context, key api.Key, d *document) error {
	body, err := json.Marshal(metav1.DeleteOptions{
		TypeMeta:      metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"},
		Preconditions: &metav1.Preconditions{UID: &d.UID, ResourceVersion: &d.ResourceVersion},
	})
	if err != nil {
		return err
	}
	return r.c.do(ctx, opDelete, key, func(ctx context.Context) error {
		return r.layout.client.Delete().NamespaceIfScoped(key.Namespace, r.kind.Namespaced).Resource(r.layout.resource(r.kind)).Name(d.Name).
			SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
	})
}

// marked is an IPAM object with the mark that it is about to be deleted.
func marked(o api.Object) api.Object {
	o = o.DeepCopyObject().(api.Object)
	switch o := o.(type) {
	case *api.IPAMBlock:
		o.Spec.Deleted = true
	case *api.BlockAffinity:
		o.Spec.Deleted = true
	case *api.IPAMHandle:
		o.Spec.Deleted = true
	}
	return o
}

// check compares an object with what a delete demands of it.
func check(key api.Key, o api.Object, pre datastore.Precondition) error {
	switch {
	case pre.UID != "" && o.GetUID() != types.UID(pre.UID):
		return &datastore.Error{
			Op: opDelete, Key: key, Reason: datastore.ErrConflict,
			Err: fmt.Errorf("its uid is %s, not %s: it was deleted and made anew", o.GetUID(), pre.UID),
		}
	case pre.Revision != "" && o.GetResourceVersion() != pre.Revision:
		return &datastore.Error{Op: opDelete, Key: key, Reason: datastore.ErrConflict}
	}
	return nil
}

// policies are resources among which are those of Kubernetes, which are not to be changed here.
type policies struct{ writer }

const notOurs = readOnly("names that begin with " + kubernetes.NamePrefix + " are those of Kubernetes' own NetworkPolicies; change that one, with kubectl, or choose another name")

func (p policies) create(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	return p.of(key).create(ctx, key, o)
}

func (p policies) update(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	return p.of(key).update(ctx, key, o)
}

func (p policies) remove(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	return p.of(key).remove(ctx, key, pre)
}

func (p policies) of(key api.Key) writer {
	if kubernetes.IsTranslated(key.Name) {
		return notOurs
	}
	return p.writer
}

// orElse is an error, or another if it is nil.
func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
