package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// kernel is a kernel in memory. It keeps what it was told apart from what was applied, applies objects one by one, keeps
// those that fail dirty, and forgets nothing on its own.
type kernel struct {
	mu      sync.Mutex
	fail    func(object string) error // why an object cannot be programmed; nil: all can
	hold    chan struct{}             // Apply waits for it to be closed; nil: it does not
	applies int
	updates int // that changed something
	whole   bool
	routesW bool
	resyncs int

	wantLinks, links   map[string]desired.WorkloadLink
	wantRoutes, routes map[desired.RouteKey]desired.Route
	wantRules, rules   map[string]desired.Workload
	ipips              map[string]desired.IPIP
	encaps             map[netip.Prefix]desired.Encap
	decaps             map[netip.Addr]desired.Decap
}

func newKernel() *kernel {
	return &kernel{
		wantLinks: map[string]desired.WorkloadLink{}, links: map[string]desired.WorkloadLink{},
		wantRoutes: map[desired.RouteKey]desired.Route{}, routes: map[desired.RouteKey]desired.Route{},
		wantRules: map[string]desired.Workload{}, rules: map[string]desired.Workload{},
		ipips: map[string]desired.IPIP{}, encaps: map[netip.Prefix]desired.Encap{}, decaps: map[netip.Addr]desired.Decap{},
	}
}

func (k *kernel) Update(c desired.Changes) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !c.Links.Empty() || !c.Routes.Empty() || !c.Firewall.Workloads.Empty() {
		k.updates++
	}
	follow(k.wantLinks, c.Links)
	follow(k.wantRoutes, c.Routes)
	follow(k.wantRules, c.Firewall.Workloads)
	follow(k.ipips, c.IPIPs)
	follow(k.encaps, c.Encaps)
	follow(k.decaps, c.Decaps)
}

func follow[K comparable, V any](to map[K]V, d desired.Delta[K, V]) {
	for key := range d.Removed {
		delete(to, key)
	}
	maps.Copy(to, d.Set)
}

func (k *kernel) Apply(ctx context.Context) error {
	k.mu.Lock()
	hold := k.hold
	k.applies++
	k.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(
		dataplane.Of("link", converge("link", k.wantLinks, k.links, k.fail, func(a, b desired.WorkloadLink) bool { return a == b })),
		dataplane.Of("rules", converge("rule", k.wantRules, k.rules, k.fail, desired.Workload.Equal)),
		dataplane.Of("route", converge("route", k.wantRoutes, k.routes, k.fail, desired.Route.Equal)))
}

func converge[K comparable, V any](kind string, want, have map[K]V, fail func(string) error, equal func(a, b V) bool) error {
	var errs []error
	try := func(key K, do func()) {
		object := fmt.Sprintf("%s %v", kind, key)
		if fail != nil {
			if err := fail(object); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", object, err))
				return
			}
		}
		do()
	}
	for key := range have {
		if _, ok := want[key]; !ok {
			try(key, func() { delete(have, key) })
		}
	}
	for key, v := range want {
		if old, ok := have[key]; !ok || !equal(old, v) {
			try(key, func() { have[key] = v })
		}
	}
	return errors.Join(errs...)
}

func (k *kernel) Whole()       { k.mu.Lock(); k.whole = true; k.mu.Unlock() }
func (k *kernel) RoutesWhole() { k.mu.Lock(); k.routesW = true; k.mu.Unlock() }
func (k *kernel) Resync()      { k.mu.Lock(); k.resyncs++; k.mu.Unlock() }

func (k *kernel) Forgotten(context.Context, []netip.Addr) error { return nil }

func (k *kernel) Holds(e state.Endpoint) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !maps.EqualFunc(k.rules, k.wantRules, desired.Workload.Equal) {
		return errors.New("rules are not all programmed")
	}
	if _, ok := k.links[e.Interface]; !ok && !e.Leaving {
		return fmt.Errorf("interface %s is not there", e.Interface)
	}
	for _, a := range e.Addresses {
		if _, ok := k.routes[desired.WorkloadRoute(a, e.Interface, 3).Key()]; !ok && !e.Leaving {
			return fmt.Errorf("route %s is not programmed", a)
		}
	}
	return nil
}

func (k *kernel) Programmed(dst netip.Prefix) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.routes {
		if key.Dst == dst {
			return true
		}
	}
	return false
}

func (k *kernel) ToldAs(string) string { return "" }

func (k *kernel) Entries() []dataplane.Entry {
	return []dataplane.Entry{{Object: dataplane.Object{Kind: dataplane.KindRoute, Key: "10.0.0.0/8"}, Desired: "a", Actual: "b", Err: errors.New("no")}}
}

// breaks sets what cannot be programmed.
func (k *kernel) breaks(fail func(object string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = fail
}

// see looks at the kernel.
func see[T any](k *kernel, what func(*kernel) T) T {
	k.mu.Lock()
	defer k.mu.Unlock()
	return what(k)
}

// announcer keeps the latest announcement.
type announcer struct {
	mu    sync.Mutex
	all   []netip.Prefix
	calls int
}

func (a *announcer) Announce(p []netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all, a.calls = slices.Clone(p), a.calls+1
}

func (a *announcer) now() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []string{}
	for _, p := range a.all {
		out = append(out, p.String())
	}
	return out
}

// rig is a running agent with its surroundings. It belongs to one synctest bubble.
type rig struct {
	*agent.Agent
	t      *testing.T
	kernel *kernel
	bird   *announcer
	stop   context.CancelFunc

	mu       sync.Mutex
	local    [][]state.Endpoint
	ready    [][]string
	mtus     []int
	troubles []string // reason: message
	homes    []string // of pods' policy-sync sockets
	moves    int      // times that a route to another node changed
}

func start(t *testing.T, local ...state.Endpoint) *rig {
	r := &rig{t: t, kernel: newKernel(), bird: &announcer{}}
	r.Agent = agent.New("worker-1", r.kernel, r.bird, local, agent.Events{
		LocalChanged: func(all []state.Endpoint) { r.note(func() { r.local = append(r.local, all) }) },
		Ready:        func(reasons []string) { r.note(func() { r.ready = append(r.ready, reasons) }) },
		MTU:          func(mtu int) { r.note(func() { r.mtus = append(r.mtus, mtu) }) },
		Trouble:      func(reason, message string) { r.note(func() { r.troubles = append(r.troubles, reason+": "+message) }) },
		Peers: func(_ []netip.Addr, moved bool) {
			if moved {
				r.note(func() { r.moves++ })
			}
		},
		PolicySync: func(home string) { r.note(func() { r.homes = append(r.homes, home) }) },
	}, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
	})
	return r
}

func (r *rig) note(f func()) { r.mu.Lock(); f(); r.mu.Unlock() }

// sync tells the whole view, with everything that the endpoints given need to be open, and returns whether it was acked.
func (r *rig) sync(open ...state.Endpoint) (acked *bool) {
	acked = new(bool)
	b := view.Batch{InSync: true, Updates: []view.Item{
		view.Node{Name: "worker-1", IPv4: netip.MustParsePrefix("10.30.0.206/24"), VXLANAddr4: netip.MustParseAddr("10.1.0.1")},
		view.Policy{ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}},
		view.PolicyList{ID: "l1", Profiles: []string{"pro/all"}},
	}}
	for _, e := range open {
		b.Updates = append(b.Updates, view.WorkloadEndpoint{ID: e.ID, ContainerID: e.ContainerID, PolicyList: "l1"})
	}
	r.SetHost(r.t.Context(), state.Host{})
	r.Batch(r.t.Context(), b, func() { r.note(func() { *acked = true }) })
	return acked
}

func (r *rig) is(b *bool) bool { r.mu.Lock(); defer r.mu.Unlock(); return *b }

// ownBlocks are blocks and borrowed addresses of this node.
func ownBlocks(all ...string) view.Batch {
	var b view.Batch
	for _, text := range all {
		route := view.Route{Dst: netip.MustParsePrefix(text), Type: view.RouteBlock, Node: "worker-1"}
		if route.Dst.IsSingleIP() {
			route.Type = view.RouteWorkload
		}
		b.Updates = append(b.Updates, route)
	}
	return b
}

func pod(name string, addrs ...string) state.Endpoint {
	e := state.Endpoint{
		ID:          view.EndpointID{Orchestrator: "k8s", Workload: "shop/" + name, Endpoint: "eth0"},
		ContainerID: "c-" + name, Interface: "cali" + name, MTU: 1500,
	}
	for _, a := range addrs {
		e.Addresses = append(e.Addresses, netip.MustParseAddr(a))
	}
	return e
}
