package datastore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// Validating returns a client that lets only good objects into c: a write gets its defaults, is validated, compared with
// what it replaces, and checked against the other objects it depends on. It also serves the built-in objects, which no
// datastore holds.
//
// Reads are not judged: what is stored is served as it is, even if today's validation would refuse it. The checks against
// other objects see the datastore before the write; two writers at the same moment can each pass (see api.CheckCreate).
// Kinds that only the system writes (api.Kind.Internal) are not read before an update, so that address management
// costs one request a write. What is deleted is read before only if there is something to check.
func Validating(c Client) Client { return validating{c} }

type validating struct{ Client }

// Prompt passes the request on; see the function Prompt.
func (v validating) Prompt() { Prompt(v.Client) }

// Pages passes the request on, unless there is a built-in object among those of the kind; see the function Pages.
func (v validating) Pages(ctx context.Context, kind string, opts ListOptions, take func([]api.Object) error) (List, error) {
	if kind == builtinProfile().key.Kind {
		return Pages(ctx, struct{ Reader }{v}, kind, opts, take)
	}
	return Pages(ctx, v.Client, kind, opts, take)
}

// Full passes the question on; see the function Full.
func (v validating) Full(ctx context.Context) error { return Full(ctx, v.Client) }

// Create stores a new object if it is valid.
func (v validating) Create(ctx context.Context, o api.Object) (api.Object, error) {
	key := api.KeyOf(o)
	if key == builtinProfile().key {
		return nil, &Error{Op: "create", Key: key, Reason: ErrExists, Err: api.CheckCreate(o, v.others(ctx))}
	}
	o, err := prepare("create", o)
	if err != nil {
		return nil, err
	}
	if err := api.CheckCreate(o, v.others(ctx)); err != nil {
		return nil, refused("create", key, err)
	}
	return v.Client.Create(ctx, o)
}

// Update replaces an object if the new one is valid and may replace the old.
func (v validating) Update(ctx context.Context, o api.Object) (api.Object, error) {
	key := api.KeyOf(o)
	if b := builtinProfile(); key == b.key {
		return nil, refused("update", key, api.CheckUpdate(b.object, o, v.others(ctx)))
	}
	o, err := prepare("update", o)
	if err != nil {
		return nil, err
	}
	if api.KindOf(o).Internal {
		return v.Client.Update(ctx, o)
	}
	old, err := v.Client.Get(ctx, key)
	if err != nil {
		return nil, renamed("update", err)
	}
	if old.GetResourceVersion() != o.GetResourceVersion() { // the comparison below would be with another object
		return nil, &Error{Op: "update", Key: key, Reason: ErrConflict}
	}
	if err := api.CheckUpdate(old, o, v.others(ctx)); err != nil {
		return nil, refused("update", key, err)
	}
	if o.GetUID() == "" {
		o.SetUID(old.GetUID())
	}
	if created := o.GetCreationTimestamp(); created.IsZero() {
		o.SetCreationTimestamp(old.GetCreationTimestamp())
	}
	return v.Client.Update(ctx, o)
}

// Delete removes an object if nothing depends on it.
func (v validating) Delete(ctx context.Context, key api.Key, pre Precondition) (api.Object, error) {
	if b := builtinProfile(); key == b.key {
		return nil, refused("delete", key, api.CheckDelete(b.object, v.others(ctx)))
	}
	if kind, ok := api.LookupKind(key.Kind); ok && api.ChecksDelete(kind.Name) {
		o, err := v.Client.Get(ctx, key)
		if err == nil {
			if err := api.CheckDelete(o, v.others(ctx)); err != nil {
				return nil, refused("delete", key, err)
			}
		}
		// An object that cannot be read, as one that is damaged, may still be deleted; if it is not there, Delete says so.
	}
	return v.Client.Delete(ctx, key, pre)
}

// Remove deletes an object that was read before; see the function Remove. What users may write goes through the checks of Delete.
func (v validating) Remove(ctx context.Context, o api.Object) error {
	if api.KindOf(o).Internal {
		return Remove(ctx, v.Client, o)
	}
	_, err := v.Delete(ctx, api.KeyOf(o), Precondition{Revision: o.GetResourceVersion()})
	return err
}

// Get reads one object, also a built-in one.
func (v validating) Get(ctx context.Context, key api.Key) (api.Object, error) {
	if b := builtinProfile(); key == b.key {
		return b.object, nil
	}
	return v.Client.Get(ctx, key)
}

// List reads the objects of a kind together with the built-in ones.
func (v validating) List(ctx context.Context, kind string, opts ListOptions) (List, error) {
	l, err := v.Client.List(ctx, kind, opts)
	b := builtinProfile()
	if err != nil || kind != b.key.Kind || !strings.HasPrefix(b.key.Name, opts.NamePrefix) {
		return l, err
	}
	at, stored := slices.BinarySearchFunc(l.Items, b.key.Name, func(o api.Object, name string) int {
		return cmp.Compare(o.GetName(), name)
	})
	if stored { // somebody put one there past this layer: it does not count
		l.Items[at] = b.object
	} else {
		l.Items = slices.Insert(l.Items, at, b.object)
	}
	return l, nil
}

// others lets the checks of api look at what is stored.
func (v validating) others(ctx context.Context) api.Others {
	return func(kind string) ([]api.Object, error) {
		l, err := v.List(ctx, kind, ListOptions{})
		return l.Items, err
	}
}

// prepare returns a copy with defaults, or says what is wrong with it.
func prepare(op string, o api.Object) (api.Object, error) {
	o = o.DeepCopyObject().(api.Object)
	o.Default()
	if err := o.Validate(); err != nil {
		return nil, refused(op, api.KeyOf(o), err)
	}
	return o, nil
}

func refused(op string, key api.Key, err error) error { return &Error{Op: op, Key: key, Err: err} }

// renamed tells a failure as that of another operation.
func renamed(op string, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	other := *e
	other.Op = op
	return &other
}

// builtin is an object that exists without being stored.
type builtin struct {
	key    api.Key
	object api.Object
}

func builtinProfile() builtin {
	p := api.DefaultAllowProfile()
	return builtin{key: api.KeyOf(p), object: p}
}
