package agent

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
)

// Batch commits a whole batch of typha's; ack is called by the loop when it is in the kernel.
func (a *Agent) Batch(ctx context.Context, b view.Batch, ack func()) {
	a.post(ctx, event{do: func(s *state.State) state.Section { return s.Apply(b) }, ack: ack})
}

// SetHost tells what the node's own network looks like.
func (a *Agent) SetHost(ctx context.Context, h state.Host) {
	a.post(ctx, event{do: func(s *state.State) state.Section { return s.SetHost(h) }})
}

// SetPaths tells changes of bird's best paths; ack is called by the loop when they are in the kernel. known says that bird
// has told all that it has.
func (a *Agent) SetPaths(ctx context.Context, paths []state.Path, known bool, ack func()) {
	a.post(ctx, event{ack: ack, do: func(s *state.State) (touched state.Section) {
		a.pathsKnown = a.pathsKnown || known
		for _, p := range paths {
			touched |= s.SetPath(p)
		}
		return touched
	}})
}

// SetLocal records an endpoint and returns when it is programmed, closed or open.
func (a *Agent) SetLocal(ctx context.Context, e state.Endpoint) error {
	holds := func() error { return a.kernel.Holds(e) }
	return a.local(ctx, func(s *state.State) state.Section { return s.SetLocal(e) }, holds, e.Leaving)
}

// DeleteLocal forgets an endpoint and returns when nothing of it is left.
func (a *Agent) DeleteLocal(ctx context.Context, iface string) error {
	holds := func() error { return nil }
	return a.local(ctx, func(s *state.State) state.Section { return s.DeleteLocal(iface) }, holds, true)
}

// local changes the local endpoints and waits for the turn's end. A failure elsewhere in the kernel is not this
// endpoint's: holds, called by the loop, judges it alone.
func (a *Agent) local(ctx context.Context, change func(*state.State) state.Section, holds func() error, lenient bool) error {
	outcome := make(chan error, 1)
	a.post(ctx, event{
		do: func(s *state.State) state.Section {
			touched := change(s)
			a.events.LocalChanged(localEndpoints(s))
			return touched
		},
		done: func(failed error) {
			if failed != nil {
				failed = holds()
			}
			outcome <- failed
		},
		lenient: lenient,
	})
	return wait(ctx, outcome)
}

// WaitOpen returns when the endpoint is open and programmed; when ctx ends before, the error says what is missing.
func (a *Agent) WaitOpen(ctx context.Context, iface string) error {
	opened := make(chan error, 1)
	a.post(ctx, event{do: func(*state.State) state.Section {
		a.waiters = append(a.waiters, waiter{iface: iface, done: opened, ctx: ctx})
		return 0
	}})
	select {
	case err := <-opened:
		return err
	case <-ctx.Done():
	}
	missing := make(chan error, 1)
	after := context.WithoutCancel(ctx)
	a.post(after, event{do: func(s *state.State) state.Section {
		e := s.Local[iface]
		why := s.Closed(e)
		if err := a.kernel.Holds(e); err != nil {
			why = append(why, err.Error())
		}
		missing <- fmt.Errorf("%s is closed: %s", iface, strings.Join(why, "; "))
		return 0
	}})
	return <-missing
}

// Local returns the endpoints on the node, by interface.
func (a *Agent) Local(ctx context.Context) (map[string]state.Endpoint, error) {
	return look(ctx, a, func(s *state.State) map[string]state.Endpoint { return maps.Clone(s.Local) })
}

// PodMTU is the MTU for new pods.
func (a *Agent) PodMTU(ctx context.Context) (int, error) { return look(ctx, a, render.PodMTU) }

// look reads something of the state, in the loop.
func look[T any](ctx context.Context, a *Agent, read func(*state.State) T) (T, error) {
	answer := make(chan T, 1)
	a.post(ctx, event{do: func(s *state.State) state.Section {
		answer <- read(s)
		return 0
	}})
	select {
	case v := <-answer:
		return v, nil
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (a *Agent) post(ctx context.Context, e event) {
	select {
	case a.inbox <- e:
	case <-ctx.Done():
	}
}

func wait(ctx context.Context, outcome <-chan error) error {
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Dump returns every object of the drivers, desired beside actual.
func (a *Agent) Dump(context.Context) ([]server.Difference, error) {
	var out []server.Difference
	for _, e := range a.kernel.Entries() {
		d := server.Difference{Section: string(e.Kind), Key: e.Key, Desired: e.Desired, Actual: e.Actual}
		if e.Err != nil {
			d.Error = e.Err.Error()
		}
		out = append(out, d)
	}
	return out, nil
}
