package alloc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// known is what a watch has told once, whatever became of it.
type known struct{ objects map[api.Key]api.Object }

func knowing(objects ...api.Object) known {
	k := known{map[api.Key]api.Object{}}
	for _, o := range objects {
		k.objects[api.KeyOf(o)] = o
	}
	return k
}

func (k known) Get(key api.Key) (api.Object, bool) { return k.objects[key], true }

func (k known) List(kind string) (all []api.Object, ok bool) {
	for key, o := range k.objects {
		if key.Kind == kind {
			all = append(all, o)
		}
	}
	return all, true
}

// knowing is the same world for a process that knows something of it already.
func (w world) knowing(objects ...api.Object) world {
	w.Allocator = New(w.f, Options{Now: w.Now, Known: knowing(objects...)})
	return w
}

// What is known is never a reason to refuse: the datastore may have more by now.
func TestNothingIsRefusedByWhatIsKnown(t *testing.T) {
	disabled := aPool("p", "10.0.0.0/28", 30)
	disabled.Spec.Disabled = true
	other := aPool("p", "10.0.0.0/28", 30)
	other.Spec.NodeSelector = "nobody == 'here'"
	for name, objects := range map[string][]api.Object{
		"nothing":             nil,
		"no such node":        {aPool("p", "10.0.0.0/28", 30)},
		"another pool":        {aPool("q", "10.9.0.0/28", 30), aNode("n")},
		"disabled then":       {disabled, aNode("n")},
		"for others then":     {other, aNode("n")},
		"all reserved then":   {aPool("p", "10.0.0.0/28", 30), aNode("n"), aReservation("10.0.0.0/28")},
		"of other blocks":     {aPool("p", "10.0.0.0/28", 31), aNode("n")},
		"of a full node then": {aPool("p", "10.0.0.0/28", 30), aNode("n"), aConfig(func(s *api.IPAMConfigurationSpec) { s.MaxBlocksPerHost = 1 })},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, aPool("p", "10.0.0.0/28", 30), aNode("n")).knowing(objects...)
			for range 2 { // the second time the node has blocks
				got, err := w.AutoAssign(t.Context(), Request{Node: "n", Family: 4, Count: 6, Handle: "h", Use: api.UseWorkload})
				require.NoError(t, err)
				require.NoError(t, got.Shortfall())
				require.Len(t, got.Taken, 6)
				unknown, err := w.Release(t.Context(), block.Release{Addr: got.Addrs[0].Addr(), Handle: "h"})
				require.NoError(t, err)
				require.Empty(t, unknown)
			}
			stored, err := w.ByHandle(t.Context(), "h")
			require.NoError(t, err)
			require.Len(t, stored, 10)
			require.NoError(t, w.f.broken())
			require.Empty(t, w.f.surplus())
		})
	}
}

// A pool that the datastore does not have any more, or has disabled, gives no block to whoever has not heard of it.
func TestNoBlockIsClaimedByWhatIsKnown(t *testing.T) {
	disabled := aPool("p", "10.0.0.0/28", 30)
	disabled.Spec.Disabled = true
	w := newWorld(t, disabled, aNode("n")).knowing(aPool("p", "10.0.0.0/28", 30), aNode("n"))
	_, err := w.AutoAssign(t.Context(), Request{Node: "n", Family: 4, Count: 1, Handle: "h", Use: api.UseWorkload})
	require.ErrorIs(t, err, ErrNoPool)
	for key := range w.f.objects {
		require.Contains(t, []string{kindPool, kindNode}, key.Kind)
	}
	// Nor is one given up: the node's labels may have changed.
	w = newWorld(t, aPool("p", "10.0.0.0/28", 30), aNode("n"))
	_, err = w.AutoAssign(t.Context(), Request{Node: "n", Family: 4, Count: 1, Use: api.UseWorkload, Handle: "h"})
	require.NoError(t, err)
	_, err = w.ReleaseByHandle(t.Context(), "h")
	require.NoError(t, err)
	selective := aPool("p", "10.0.0.0/28", 30)
	selective.Spec.NodeSelector = "nobody == 'here'"
	w = w.knowing(selective, aPool("q", "10.9.0.0/28", 30), aNode("n"))
	require.Empty(t, w.fromKnownAddrs(t))
	require.Contains(t, w.f.objects, api.Key{Kind: kindBlock, Name: "10.0.0.0/30"})
}

func (w world) fromKnownAddrs(t *testing.T) any {
	t.Helper()
	got, err := w.fromKnown(t.Context(), Request{Node: "n", Family: 4, Count: 1, Handle: "h", Use: api.UseWorkload})
	require.NoError(t, err)
	return got.Addrs
}

// TestRequestsOfAPod counts what the life of a pod's address costs, once its node has a block: reserved, settled and released as
// typha does it. What people configure is not asked for.
func TestRequestsOfAPod(t *testing.T) {
	objects := []api.Object{aPool("p", "10.0.0.0/26", 26), aNode("n")}
	w := newWorld(t, objects...).knowing(objects...)
	ctx := t.Context()
	var mu sync.Mutex
	var made []string
	count := func(what func() error) []string {
		t.Helper()
		made = nil
		w.f.before = func(_ context.Context, c call) error {
			mu.Lock()
			defer mu.Unlock()
			made = append(made, fmt.Sprint(c.op, " ", c.key.Kind))
			return nil
		}
		require.NoError(t, what())
		return slices.Sorted(slices.Values(made))
	}
	warm := Request{Node: "n", Family: 4, Count: 1, Handle: "warm-n-1", Use: api.UseWorkload}
	_, err := w.AutoAssign(ctx, warm)
	require.NoError(t, err)

	var got Assignment
	require.Equal(t, []string{"list BlockAffinity", "update IPAMBlock", "update IPAMHandle"},
		count(func() (err error) { got, err = w.AutoAssign(ctx, warm); return err }), "reserve")
	to := block.Owner{Handle: "k8s-pod-network.1", Attributes: map[string]string{api.OwnerNode: "n"}}
	require.Equal(t, []string{"create IPAMHandle", "update IPAMBlock", "update IPAMHandle"},
		count(func() error { return w.Reassign(ctx, got.Addrs[0].Addr(), "warm-n-1", to) }), "settle")
	require.Equal(t, []string{"delete IPAMHandle", "get IPAMBlock", "get IPAMHandle", "update IPAMBlock"}, count(func() error {
		_, err := w.ReleaseHandles(ctx, func(block.Allocation, string) error { return nil }, to.Handle)
		return err
	}), "release")

	require.Equal(t, got.Taken[0].Block, prefix("10.0.0.0/26"))
	require.Equal(t, "host:n", got.Taken[0].Affinity)
	require.NotZero(t, got.Taken[0].Sequence)
	require.Empty(t, w.f.surplus())
	require.Len(t, maps.Collect(maps.All(w.f.objects)), 2+3, "pool, node; block, affinity, handle of the reserve")
}

// A handle that somebody else has written is read again, and counts what both gave it.
func TestRememberedHandleOfOthers(t *testing.T) {
	objects := []api.Object{aPool("p", "10.0.0.0/26", 26), aNode("n")}
	w := newWorld(t, objects...)
	other := New(w.f, Options{Now: w.Now})
	r := Request{Node: "n", Family: 4, Count: 1, Handle: "h", Use: api.UseWorkload}
	for range 3 {
		for _, a := range []*Allocator{w.Allocator, other} {
			_, err := a.AutoAssign(t.Context(), r)
			require.NoError(t, err)
		}
	}
	require.Empty(t, w.f.surplus())
	_, err := other.ReleaseByHandle(t.Context(), "h")
	require.NoError(t, err)
	require.NotContains(t, w.f.objects, api.Key{Kind: kindHandle, Name: "h"})
	_, err = w.AutoAssign(t.Context(), r) // which remembers a handle that is gone
	require.NoError(t, err)
	require.Empty(t, w.f.surplus())
	for i := range mostHandles + 10 {
		w.Allocator.handles.keep(fmt.Sprint(i), api.NewIPAMHandle(fmt.Sprint(i)))
	}
	require.Len(t, w.Allocator.handles.all, mostHandles)
}

// A block that somebody else has written is read again, and nobody is refused because of an old one.
func TestRememberedBlockOfOthers(t *testing.T) {
	objects := []api.Object{aPool("p", "10.0.0.0/28", 28), aNode("n")}
	w := newWorld(t, objects...).knowing(objects...)
	other := New(w.f, Options{Now: w.Now, Known: knowing(objects...)})
	warm := Request{Node: "n", Family: 4, Count: 1, Handle: "warm-n-1", Use: api.UseWorkload}
	_, err := w.AutoAssign(t.Context(), warm)
	require.NoError(t, err)
	theirs, err := other.AutoAssign(t.Context(), warm)
	require.NoError(t, err)
	require.NoError(t, w.Reassign(t.Context(), theirs.Addrs[0].Addr(), "warm-n-1", block.Owner{Handle: "pod"}), "of which the old block knows nothing")
	_, err = other.ReleaseByHandle(t.Context(), "pod")
	require.NoError(t, err)
	require.ErrorIs(t, w.Reassign(t.Context(), theirs.Addrs[0].Addr(), "pod", block.Owner{Handle: "pod-2"}), ErrNotAssigned, "though the old block has it")
	rest := warm
	rest.Count = 15
	got, err := other.AutoAssign(t.Context(), rest)
	require.NoError(t, err)
	require.Len(t, got.Addrs, 15)
	_, err = other.ReleaseByHandle(t.Context(), "warm-n-1")
	require.NoError(t, err)
	got, err = w.AutoAssign(t.Context(), rest)
	require.NoError(t, err)
	require.Len(t, got.Addrs, 15)
	require.Empty(t, w.f.surplus())
}

// A write that nobody knows the end of is not repeated with other addresses.
func TestUncertainByWhatIsKnown(t *testing.T) {
	objects := []api.Object{aPool("p", "10.0.0.0/26", 26), aNode("n")}
	w := newWorld(t, objects...).knowing(objects...)
	r := Request{Node: "n", Family: 4, Count: 1, Handle: "h", Use: api.UseWorkload}
	_, err := w.AutoAssign(t.Context(), r)
	require.NoError(t, err)
	w.f.after = func(c call) error {
		if c.op == "update" && c.key.Kind == kindBlock {
			return &datastore.Error{Op: c.op, Key: c.key, Reason: datastore.ErrUnavailable}
		}
		return nil
	}
	w.f.before = func(_ context.Context, c call) error {
		if c.op == "get" && c.key.Kind == kindBlock && w.f.revision > 0 && w.updated() {
			return &datastore.Error{Op: c.op, Key: c.key, Reason: datastore.ErrUnavailable}
		}
		return nil
	}
	_, err = w.AutoAssign(t.Context(), r)
	require.ErrorIs(t, err, errUncertain)
	w.f.before, w.f.after = nil, nil
	stored, err := w.ByHandle(t.Context(), "h")
	require.NoError(t, err)
	require.Len(t, stored, 2, "one write, though its end was not known")
}

// updated tells whether the block has the second address already.
func (w world) updated() bool {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	for key, o := range w.f.objects {
		if b, ok := o.(*api.IPAMBlock); ok && key.Kind == kindBlock && len(b.Spec.Attributes) > 0 {
			n := 0
			for _, a := range b.Spec.Allocations {
				if a != nil {
					n++
				}
			}
			return n > 1
		}
	}
	return false
}
