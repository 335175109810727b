package alloc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// errBroken is what a broken datastore answers: nobody knows whether the call was done.
var errBroken = errors.New("connection reset")

// The life of a node in one process: all kinds of operations, each of which writes several objects.
type life []struct {
	name string
	do   func(context.Context, *Allocator) error
}

const capacity = 8 // addresses of the pool

func lifeOfANode() life {
	request := func(handle string, n int) Request {
		return Request{Node: "node-a", Family: 4, Count: n, Handle: handle, Use: api.UseWorkload, Attributes: map[string]string{api.OwnerNode: "node-a"}}
	}
	assign := func(handle string, n int) func(context.Context, *Allocator) error {
		return func(ctx context.Context, a *Allocator) error {
			_, err := a.AssignAll(ctx, request(handle, n))
			return err
		}
	}
	release := func(handle string) func(context.Context, *Allocator) error {
		return func(ctx context.Context, a *Allocator) error {
			_, err := a.ReleaseByHandle(ctx, handle)
			if errors.Is(err, datastore.ErrNotFound) {
				return nil
			}
			return err
		}
	}
	specific := netip.MustParseAddr("10.0.0.1")
	return life{
		{"h1", assign("h1", 1)},
		{"h2", assign("h2", 3)}, // more than one block
		{"h3", func(ctx context.Context, a *Allocator) error {
			return a.AssignIP(ctx, Specific{Addr: specific, Node: "node-a", Handle: "h3"})
		}},
		{"release h1", release("h1")},
		{"h4", assign("h4", 2)},
		{"release 10.0.0.1", func(ctx context.Context, a *Allocator) error {
			_, err := a.Release(ctx, block.Release{Addr: specific, Handle: "h3"})
			return err
		}},
		{"settle h4", func(ctx context.Context, a *Allocator) error {
			addrs, err := a.ByHandle(ctx, "h4")
			for _, p := range addrs {
				err = errors.Join(err, a.Reassign(ctx, p.Addr(), "h4", block.Owner{Handle: "h6", Attributes: map[string]string{api.OwnerPod: "p"}}))
			}
			return err
		}},
		{"remove node", func(ctx context.Context, a *Allocator) error { return a.ReleaseNode(ctx, "node-a", false) }},
		{"h5 borrows", assign("h5", 3)},
		{"release h2", release("h2")},
		{"tunnel", func(ctx context.Context, a *Allocator) error {
			_, err := a.EnsureTunnels(ctx, "node-a", map[Tunnel]netip.Addr{TunnelIPIP: {}})
			return err
		}},
	}
}

func crashWorld(t *testing.T) world {
	return newWorld(t, aNode("node-a"), aNode("node-b"), aPool("p", "10.0.0.0/29", 31, func(s *api.IPPoolSpec) { s.IPIPMode = api.IPIPAlways }))
}

// TestProcessDiesAtEachStep lets the process die at each single call of the datastore, before or after it is done, and
// starts a fresh one on what is left.
func TestProcessDiesAtEachStep(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		for k := 0; ; k++ {
			w := crashWorld(t)
			calls, dead := 0, false
			w.f.check = func() { require.NoError(t, w.f.broken(), "call %d", calls) }
			w.f.before = func(context.Context, call) error {
				if dead || (calls == k && !done) {
					dead = true
					return errBroken
				}
				calls++
				return nil
			}
			w.f.after = func(call) error {
				if done && calls == k+1 {
					dead = true
					return errBroken
				}
				return nil
			}
			for _, step := range lifeOfANode() {
				err := step.do(t.Context(), w.Allocator)
				if dead {
					break
				}
				require.NoError(t, err, step.name)
			}
			w.f.before, w.f.after = nil, nil
			reconcile(t, w, fmt.Sprintf("died at call %d, done=%v", k, done))
			if calls <= k && !dead {
				require.Greater(t, k, 100)
				break
			}
		}
	}
}

// reconcile is what a fresh process finds and does after another one died: every address can be found by its handle, used
// or given back, pending claims are finished, and in the end the whole pool is free.
func reconcile(t *testing.T, w world, what string) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, w.f.broken(), what)
	held := 0
	for id := range all[*api.IPAMHandle](w.f) {
		addrs, err := w.ByHandle(ctx, id)
		require.NoError(t, err, what)
		held += len(addrs)
	}
	got, err := w.AutoAssign(ctx, Request{Node: "node-a", Family: 4, Count: capacity, Handle: "rest", Use: api.UseWorkload})
	require.NoError(t, err, what)
	require.Equal(t, capacity, held+len(got.Addrs), "%s: addresses are lost: %v", what, got)
	require.NoError(t, w.f.broken(), what)
	for name, aff := range all[*api.BlockAffinity](w.f) {
		require.Equal(t, api.AffinityConfirmed, aff.Spec.State, "%s: %s", what, name)
	}
	for _, id := range slices.Sorted(maps.Keys(all[*api.IPAMHandle](w.f))) {
		_, err := w.ReleaseByHandle(ctx, id)
		require.NoError(t, err, what)
	}
	require.NoError(t, w.ReleaseNode(ctx, "node-a", true), what)
	require.Empty(t, all[*api.IPAMBlock](w.f), what)
	require.Empty(t, all[*api.BlockAffinity](w.f), what)
}

// TestSingleFailure lets each single call of the datastore fail once, without or in spite of being done. The operation may
// fail; what it leaves must be sound, and repeating it (as callers do) or giving up its handle must work.
func TestSingleFailure(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		for k := 0; ; k++ {
			w := crashWorld(t)
			calls, failed := 0, false
			what := fmt.Sprintf("call %d fails, done=%v", k, done)
			w.f.check = func() { require.NoError(t, w.f.broken(), what) }
			w.f.before = func(context.Context, call) error {
				calls++
				if !done && calls == k+1 {
					failed = true
					return errBroken
				}
				return nil
			}
			w.f.after = func(call) error {
				if done && calls == k+1 && !failed {
					failed = true
					return errBroken
				}
				return nil
			}
			for _, step := range lifeOfANode() {
				err := step.do(t.Context(), w.Allocator)
				if err == nil {
					continue
				}
				require.ErrorIs(t, err, errBroken, "%s: %s", what, step.name)
				if len(step.name) == 2 { // an assignment: the caller gives up
					if _, err := w.ReleaseByHandle(t.Context(), step.name); err != nil {
						require.ErrorIs(t, err, datastore.ErrNotFound)
					}
					left, err := w.ByHandle(t.Context(), step.name)
					require.NoError(t, err)
					require.Empty(t, left, "%s: %s", what, step.name)
				}
				err = step.do(t.Context(), w.Allocator)
				require.NoError(t, err, "%s: %s again", what, step.name)
			}
			w.f.before, w.f.after = nil, nil
			reconcile(t, w, what)
			if calls <= k {
				require.Greater(t, k, 100)
				break
			}
		}
	}
}

// TestLostAnswers lets the answer to a block's write get lost, with the write done or not, and somebody else write in
// between: the allocator finds out which it was.
func TestLostAnswers(t *testing.T) {
	for _, done := range []bool{false, true} {
		for _, meddle := range []bool{false, true} {
			w := crashWorld(t)
			w.assign("node-a", 1)
			lost := false
			lose := func(c call) error {
				if lost || c.op != "update" || c.key.Kind != kindBlock {
					return nil
				}
				lost = true
				return errBroken
			}
			if done {
				w.f.after = func(c call) error {
					err := lose(c)
					if err != nil && meddle { // another address of the same block is taken right after
						b, _ := block.Of(w.f.objects[c.key].(*api.IPAMBlock))
						b.Written()
						w.f.put(b.IPAMBlock)
					}
					return err
				}
			} else {
				w.f.before = func(_ context.Context, c call) error {
					err := lose(c)
					if err != nil && meddle {
						w.f.put(w.f.objects[c.key])
					}
					return err
				}
			}
			got, err := w.try("node-a", 1, func(r *Request) { r.Handle = "lost" })
			what := fmt.Sprintf("done=%v meddle=%v", done, meddle)
			require.True(t, lost)
			if !done && meddle {
				// It cannot be told from a write that was done and undone by somebody else.
				require.ErrorIs(t, err, errBroken, what)
				continue
			}
			require.NoError(t, err, what)
			stored, err := w.ByHandle(t.Context(), "lost")
			require.NoError(t, err)
			require.Equal(t, got.Addrs, stored, what)
			require.Empty(t, w.f.surplus(), what)
		}
	}
}

// TestUncertainWriteStaysCounted loses the answer to a block's write that was done, and then the datastore for good as far
// as blocks go: nobody can tell, so the handle must keep counting the addresses.
func TestUncertainWriteStaysCounted(t *testing.T) {
	w := crashWorld(t)
	w.assign("node-a", 1)
	lost := false
	w.f.before = func(_ context.Context, c call) error {
		if lost && c.key.Kind == kindBlock {
			return errBroken
		}
		return nil
	}
	w.f.after = func(c call) error {
		if c.op == "update" && c.key.Kind == kindBlock {
			lost = true
			return errBroken
		}
		return nil
	}
	_, err := w.try("node-a", 1, func(r *Request) { r.Handle = "lost" }) // looks whether the handle counts enough
	require.ErrorIs(t, err, errBroken)
	require.ErrorContains(t, err, "the datastore may or may not have done this")
	w.f.before, w.f.after = nil, nil
	released, err := w.ReleaseByHandle(t.Context(), "lost")
	require.NoError(t, err)
	require.Len(t, released, 1)
}

// TestTimeRunsOut ends the request's context at each call: the handle is still counted down.
func TestTimeRunsOut(t *testing.T) {
	for k := 0; ; k++ {
		w := crashWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		w.f.before = func(context.Context, call) error {
			if calls++; calls == k+1 {
				cancel()
			}
			return nil
		}
		_, err := w.AutoAssign(ctx, Request{Node: "node-a", Family: 4, Count: 3, Handle: "h", Use: api.UseWorkload})
		cancel()
		w.f.before = nil
		if calls <= k {
			require.NoError(t, err)
			break
		}
		require.NoError(t, w.f.broken())
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		require.Empty(t, w.f.surplus(), "call %d", k)
	}
}

func TestForCleanup(t *testing.T) {
	left := func(ctx context.Context) time.Duration {
		ctx, cancel := forCleanup(ctx)
		defer cancel()
		require.NoError(t, ctx.Err())
		deadline, ok := ctx.Deadline()
		if !ok {
			return time.Hour
		}
		return time.Until(deadline)
	}
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	long, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.InDelta(t, 30, left(dead).Seconds(), 1)
	require.InDelta(t, 30, left(short).Seconds(), 1)
	require.InDelta(t, 60, left(long).Seconds(), 1)
	require.Equal(t, time.Hour, left(t.Context()))
}
