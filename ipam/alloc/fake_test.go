package alloc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// fake is a datastore in memory that refuses what a real one refuses, so that tests can look and step in between calls.
type fake struct {
	before func(context.Context, call) error // may wait; an error is returned without doing the call
	after  func(call) error                  // an error is returned although a write was done
	check  func()                            // runs after each write, alone

	mu       sync.Mutex // guards the following
	objects  map[api.Key]api.Object
	revision int
}

// call is one call of the datastore.
type call struct {
	op  string // get, list, create, update, delete
	key api.Key
}

func (c call) writes() bool { return c.op != "get" && c.op != "list" }

func newFake(objects ...api.Object) *fake {
	f := &fake{objects: map[api.Key]api.Object{}}
	for _, o := range objects {
		f.put(o)
	}
	return f
}

// put stores an object without asking.
func (f *fake) put(o api.Object) {
	f.revision++
	o = o.DeepCopyObject().(api.Object)
	o.SetResourceVersion(strconv.Itoa(f.revision))
	f.objects[api.KeyOf(o)] = o
}

// do runs one call: the test's hooks, then f, alone.
func (f *fake) do(ctx context.Context, c call, run func() (api.Object, error)) (api.Object, error) {
	if f.before != nil {
		if err := f.before(ctx, c); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, &datastore.Error{Op: c.op, Key: c.key, Err: err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	o, reason := run()
	if reason != nil {
		return nil, &datastore.Error{Op: c.op, Key: c.key, Reason: reason}
	}
	if c.writes() && f.check != nil {
		f.check()
	}
	if f.after != nil {
		if err := f.after(c); err != nil {
			return nil, err
		}
	}
	if o == nil {
		return nil, nil
	}
	return o.DeepCopyObject().(api.Object), nil
}

func (f *fake) Get(ctx context.Context, key api.Key) (api.Object, error) {
	return f.do(ctx, call{"get", key}, func() (api.Object, error) {
		o, ok := f.objects[key]
		if !ok {
			return nil, datastore.ErrNotFound
		}
		return o, nil
	})
}

func (f *fake) List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error) {
	var l datastore.List
	_, err := f.do(ctx, call{"list", api.Key{Kind: kind, Name: opts.NamePrefix}}, func() (api.Object, error) {
		for key, o := range f.objects {
			if key.Kind == kind && strings.HasPrefix(key.Name, opts.NamePrefix) {
				l.Items = append(l.Items, o.DeepCopyObject().(api.Object))
			}
		}
		l.Revision = strconv.Itoa(f.revision)
		return nil, nil
	})
	slices.SortFunc(l.Items, func(x, y api.Object) int { return cmp.Compare(x.GetName(), y.GetName()) })
	return l, err
}

func (f *fake) Create(ctx context.Context, o api.Object) (api.Object, error) {
	key := api.KeyOf(o)
	return f.do(ctx, call{"create", key}, func() (api.Object, error) {
		if _, ok := f.objects[key]; ok {
			return nil, datastore.ErrExists
		}
		f.put(o)
		return f.objects[key], nil
	})
}

func (f *fake) Update(ctx context.Context, o api.Object) (api.Object, error) {
	key := api.KeyOf(o)
	return f.do(ctx, call{"update", key}, func() (api.Object, error) {
		old, ok := f.objects[key]
		switch {
		case !ok:
			return nil, datastore.ErrNotFound
		case old.GetResourceVersion() != o.GetResourceVersion():
			return nil, datastore.ErrConflict
		}
		f.put(o)
		return f.objects[key], nil
	})
}

func (f *fake) Delete(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	return f.do(ctx, call{"delete", key}, func() (api.Object, error) {
		old, ok := f.objects[key]
		switch {
		case !ok:
			return nil, datastore.ErrNotFound
		case pre.Revision != "" && pre.Revision != old.GetResourceVersion():
			return nil, datastore.ErrConflict
		}
		f.revision++
		delete(f.objects, key)
		return old, nil
	})
}

// all returns the stored objects of a type by name. The caller holds mu or is alone.
func all[T api.Object](f *fake) map[string]T {
	out := map[string]T{}
	for key, o := range f.objects {
		if o, ok := o.(T); ok {
			out[key.Name] = o
		}
	}
	return out
}

// broken returns what must never be true, after whichever write: blocks that overlap or contradict themselves, handles
// that count too few addresses, confirmed affinities without their block.
func (f *fake) broken() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	truth := map[string]map[string]int{}
	blocks := map[string]block.Block{}
	for name, obj := range all[*api.IPAMBlock](f) {
		b, err := block.Of(obj.DeepCopy())
		if err != nil {
			complain("%w", err)
			continue
		}
		for other := range blocks {
			if netip.MustParsePrefix(other).Overlaps(b.CIDR()) {
				complain("blocks %s and %s overlap", other, name)
			}
		}
		blocks[name] = b
		for a := range b.All() {
			if a.Handle != "" {
				if truth[a.Handle] == nil {
					truth[a.Handle] = map[string]int{}
				}
				truth[a.Handle][name]++
			}
		}
	}
	handles := all[*api.IPAMHandle](f)
	for handle, counts := range truth {
		for cidr, n := range counts {
			if h := handles[handle]; h == nil || h.Spec.Block[cidr] < n {
				complain("handle %s counts too few addresses in %s: has %d", handle, cidr, n)
			}
		}
	}
	for name, aff := range all[*api.BlockAffinity](f) {
		b, ok := blocks[aff.Spec.CIDR]
		if confirmed(aff) && (!ok || b.Affinity() != string(aff.Spec.Type)+":"+aff.Spec.Node) {
			complain("affinity %s is confirmed, but the block is not its own", name)
		}
	}
	return errors.Join(errs...)
}

// surplus returns handles that count more addresses than there are, which is allowed after a crash only.
func (f *fake) surplus() []string {
	var out []string
	for id, h := range all[*api.IPAMHandle](f) {
		if len(h.Spec.Block) == 0 {
			out = append(out, id+" is empty")
		}
		for cidr, n := range h.Spec.Block {
			has := 0
			if obj, ok := all[*api.IPAMBlock](f)[cidr]; ok {
				b, _ := block.Of(obj.DeepCopy())
				has = len(b.ByHandle(id))
			}
			if has != n {
				out = append(out, fmt.Sprintf("%s counts %d in %s, has %d", id, n, cidr, has))
			}
		}
	}
	return out
}

// clock is a wall clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 8, 22, 10, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Makers of objects.

func aPool(name, cidr string, bits int, change ...func(*api.IPPoolSpec)) *api.IPPool {
	p := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: api.IPPoolSpec{CIDR: cidr, BlockSize: bits}}
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func aNode(name string, labels ...string) *api.Node {
	n := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		n.Labels[k] = v
	}
	return n
}

func aReservation(cidrs ...string) *api.IPReservation {
	return &api.IPReservation{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: api.IPReservationSpec{ReservedCIDRs: cidrs}}
}

func aConfig(change func(*api.IPAMConfigurationSpec)) *api.IPAMConfiguration {
	c := &api.IPAMConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	change(&c.Spec)
	return c
}

func strict(s *api.IPAMConfigurationSpec) { s.StrictAffinity = true }

// world is a datastore, a clock and an allocator on them.
type world struct {
	*Allocator
	*clock
	f *fake
	t *testing.T
}

func newWorld(t *testing.T, objects ...api.Object) world {
	f, c := newFake(objects...), newClock()
	return world{New(f, Options{Now: c.Now}), c, f, t}
}

// assign is an AutoAssign that must succeed in full; it returns the addresses as text.
func (w world) assign(node string, n int, change ...func(*Request)) []string {
	w.t.Helper()
	got, err := w.try(node, n, change...)
	require.NoError(w.t, err)
	require.NoError(w.t, got.Shortfall())
	return texts(got.Addrs)
}

func (w world) try(node string, n int, change ...func(*Request)) (Assignment, error) {
	w.t.Helper()
	r := Request{Node: node, Family: 4, Count: n, Handle: "h-" + node, Use: api.UseWorkload, Attributes: map[string]string{api.OwnerNode: node}}
	for _, c := range change {
		c(&r)
	}
	got, err := w.AutoAssign(w.t.Context(), r)
	require.NoError(w.t, w.f.broken())
	return got, err
}

func (w world) blocks() map[string]*api.IPAMBlock { return all[*api.IPAMBlock](w.f) }

// affinities returns name → state.
func (w world) affinities() map[string]string {
	out := map[string]string{}
	for name, a := range all[*api.BlockAffinity](w.f) {
		out[name] = string(a.Spec.State)
	}
	return out
}

func (w world) handles() map[string]map[string]int {
	out := map[string]map[string]int{}
	for name, h := range all[*api.IPAMHandle](w.f) {
		out[name] = maps.Clone(h.Spec.Block)
	}
	return out
}

func texts(prefixes []netip.Prefix) []string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Addr().String()
	}
	return out
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
