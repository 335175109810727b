package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	a.post(ctx, event{do: func(s *state.State) state.Section {
		a.host = true
		return s.SetHost(h)
	}})
}

// SetBearers tells what Events.Bearers told before felix was started.
func (a *Agent) SetBearers(ctx context.Context, interfaces map[string][]string) {
	a.post(ctx, event{do: func(s *state.State) state.Section { return s.SetBearers(interfaces) }})
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

// programPatience is how long an endpoint waits for what the kernel refused at first, which as a rule is tried again within a
// second: far less than a runtime waits for the CNI.
const programPatience = 10 * time.Second

// SetLocal records an endpoint and returns when it is programmed, closed or open. For one that is leaving, what cannot be
// taken out of the kernel now is no error: it is taken out later, and its interface goes meanwhile.
func (a *Agent) SetLocal(ctx context.Context, e state.Endpoint) error {
	holds := func() error { return a.kernel.Holds(e) }
	if e.Leaving {
		holds = nil
	}
	err := a.local(ctx, func(s *state.State) state.Section {
		was, told := a.expected[e.Interface]
		delete(a.expected, e.Interface)
		touched := s.SetLocal(e)
		if !told || !reflect.DeepEqual(was, e) {
			a.report()
		}
		return touched
	}, holds)
	if err == nil || ctx.Err() != nil || status.Code(err) == codes.Unavailable {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, programPatience)
	defer cancel()
	return a.await(ctx, e.Interface, func(*state.State) error { return a.kernel.Holds(e) })
}

// DeleteLocal forgets an endpoint and returns when the kernel was told so.
func (a *Agent) DeleteLocal(ctx context.Context, iface string) error {
	return a.local(ctx, func(s *state.State) state.Section {
		delete(a.expected, iface)
		touched := s.DeleteLocal(iface)
		a.report()
		return touched
	}, nil)
}

// Forgotten returns when no connection is left of addresses that a deleted endpoint had: whoever gets one of them next has none of
// the former owner's.
func (a *Agent) Forgotten(ctx context.Context, addrs []netip.Addr) error {
	return a.kernel.Forgotten(ctx, addrs)
}

// Expect reports an endpoint that is being made, so that its policy is known when it is there. It does not wait.
func (a *Agent) Expect(ctx context.Context, e state.Endpoint) {
	a.post(ctx, event{do: func(*state.State) state.Section {
		a.expected[e.Interface] = e
		a.report()
		return 0
	}})
}

// Verify has the kernel read anew and repaired, and tells what of an endpoint is still not there as wanted.
func (a *Agent) Verify(ctx context.Context, e state.Endpoint) error {
	done := make(chan error, 1)
	a.post(ctx, event{done: done, do: func(*state.State) state.Section {
		a.kernel.Resync()
		return 0
	}})
	if _, err := wait(ctx, a, done); err != nil {
		return err
	}
	wrong, err := look(ctx, a, func(*state.State) error { return a.kernel.Holds(e) })
	return errors.Join(wrong, err)
}

// local changes the local endpoints and waits for the turn's end. A failure elsewhere in the kernel is not this
// endpoint's: holds, called by the loop, judges it alone; without it no failure counts.
func (a *Agent) local(ctx context.Context, change func(*state.State) state.Section, holds func() error) error {
	outcome := make(chan error, 1)
	a.post(ctx, event{do: change, done: outcome, holds: holds})
	failed, err := wait(ctx, a, outcome)
	return errors.Join(failed, err)
}

// WaitOpen returns when the endpoint is open and programmed; when ctx ends before, the error says what is missing.
func (a *Agent) WaitOpen(ctx context.Context, iface string) error {
	return a.await(ctx, iface, func(s *state.State) error { return a.whyClosed(s, iface) })
}

// await returns when missing, called by the loop after each turn, finds nothing, or the endpoint is gone; when ctx ends before, the
// error says what is missing.
func (a *Agent) await(ctx context.Context, iface string, missing func(*state.State) error) error {
	outcome := make(chan error, 1)
	a.post(ctx, event{do: func(*state.State) state.Section {
		a.waiters = append(a.waiters, waiter{iface: iface, missing: missing, done: outcome, ctx: ctx})
		return 0
	}})
	if failed, err := wait(ctx, a, outcome); ctx.Err() == nil {
		return errors.Join(failed, err)
	}
	after := context.WithoutCancel(ctx)
	why, err := look(after, a, missing)
	return errors.Join(why, err)
}

// whyClosed says what an endpoint waits for, nothing if it is open.
func (a *Agent) whyClosed(s *state.State, iface string) error {
	e, ok := s.Local[iface]
	if !ok {
		return fmt.Errorf("interface %s was removed meanwhile", iface)
	}
	why := s.Closed(e)
	if err := a.kernel.Holds(e); err != nil {
		why = append(slices.Clone(why), err.Error())
	}
	if len(why) == 0 {
		return nil
	}
	return fmt.Errorf("%s is closed: %s", iface, strings.Join(why, "; "))
}

// Local returns the endpoints on the node, by interface.
func (a *Agent) Local(ctx context.Context) (map[string]state.Endpoint, error) {
	return look(ctx, a, func(s *state.State) map[string]state.Endpoint { return maps.Clone(s.Local) })
}

// PodMTU is the MTU for new pods.
func (a *Agent) PodMTU(ctx context.Context) (int, error) { return look(ctx, a, render.PodMTU) }

// SetCapabilities tells what the kernel can do.
func (a *Agent) SetCapabilities(ctx context.Context, c state.Capabilities) {
	a.post(ctx, event{do: func(s *state.State) state.Section { return s.SetCapabilities(c) }})
}

// Serves tells why a pod with these addresses, and with these that float, would not be reached by them; nil if it would be.
func (a *Agent) Serves(ctx context.Context, addrs, floating []netip.Addr) error {
	refusal, err := look(ctx, a, func(s *state.State) error {
		for _, addr := range slices.Concat(addrs, floating) {
			if why := render.Refusal(s, addr); why != "" {
				return status.Error(codes.Unimplemented, why)
			}
		}
		for _, addr := range floating {
			if !render.Floats(s, addr) {
				return status.Errorf(codes.InvalidArgument, "floating address %s is in no IP pool, so nobody would know the way to it; take one of a pool, or make a pool for them", addr)
			}
		}
		return nil
	})
	return cmp.Or(err, refusal)
}

// look reads something of the state, in the loop.
func look[T any](ctx context.Context, a *Agent, read func(*state.State) T) (T, error) {
	answer := make(chan T, 1)
	a.post(ctx, event{do: func(s *state.State) state.Section {
		answer <- read(s)
		return 0
	}})
	return wait(ctx, a, answer)
}

// post hands an event to the loop, unless it has ended.
func (a *Agent) post(ctx context.Context, e event) {
	select {
	case a.inbox <- e:
	case <-ctx.Done():
	case <-a.ended:
	}
}

// errEnded is the answer to those who still wait when felix stops.
var errEnded = status.Error(codes.Unavailable, "felix is stopping")

// wait returns what the loop answers.
func wait[T any](ctx context.Context, a *Agent, answer <-chan T) (T, error) {
	var none T
	select {
	case v := <-answer:
		return v, nil
	case <-ctx.Done():
		return none, ctx.Err()
	case <-a.ended:
		return none, errEnded
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
	if problems := a.problems.Load(); problems != nil {
		for _, p := range *problems {
			out = append(out, server.Difference{Section: "pool", Key: p.Pool, Desired: p.Capability, Error: p.Message})
		}
	}
	return out, nil
}
