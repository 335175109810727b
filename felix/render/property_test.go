package render_test

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/thorough"
)

// rounds is how many random histories each scenario goes through.
func rounds() int { return thorough.Rounds(3, 20) }

// Whatever the order in which knowledge arrives, in batches cut anywhere, with detours, the outcome is that of all at once.
func TestOrderDoesNotMatter(t *testing.T) {
	for name, w := range scenarios() {
		t.Run(name, func(t *testing.T) {
			want := text(w.state())
			for seed := range uint64(rounds()) {
				s := state.New(self)
				for _, step := range history(w, rand.New(rand.NewPCG(seed, 1))) {
					step(s)
				}
				require.Equal(t, want, text(s), "seed %d", seed)
			}
		})
	}
}

// What the loop sends to the drivers is differences, and only of the sections that the state says are touched: applied one
// after the other they must give what is computed from scratch.
func TestDifferencesAddUpToTheWhole(t *testing.T) {
	for name, w := range scenarios() {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(rounds()) {
				s, k := state.New(self), newKernel()
				for _, step := range history(w, rand.New(rand.NewPCG(seed, 2))) {
					k.follow(s, step(s))
					k.check(t, s)
				}
			}
		})
	}
}

// history is a random way to bring a world: every fact once in its final form, some as something else before, some removed
// and brought again.
func history(w *world, r *rand.Rand) []func(*state.State) state.Section {
	var steps []func(*state.State) state.Section
	put := func(items ...view.Item) func(*state.State) state.Section {
		return func(s *state.State) state.Section { return s.Apply(view.Batch{Updates: items}) }
	}
	var detours []func(*state.State) state.Section
	for _, it := range w.items {
		if d, ok := detour(it); ok && r.IntN(2) == 0 {
			detours = append(detours, put(d))
		}
		if _, isConfig := it.(view.Resource); !isConfig && r.IntN(3) == 0 {
			detours = append(detours, put(it), func(s *state.State) state.Section {
				return s.Apply(view.Batch{Removes: []view.Key{it.Key()}})
			})
		}
	}
	items := shuffled(w.items, r)
	for len(items) > 0 { // cut into batches of random size
		n := 1 + r.IntN(len(items))
		steps = append(steps, put(items[:n]...))
		items = items[n:]
	}
	for _, e := range w.local {
		steps = append(steps, func(s *state.State) state.Section { return s.SetLocal(e) })
		detours = append(detours, func(s *state.State) state.Section {
			other := e
			other.Addresses = []netip.Addr{addr("192.168.9.8"), addr("fd00:9::8")}
			return s.SetLocal(other)
		}, func(s *state.State) state.Section {
			other := e
			other.Addresses, other.Leaving = []netip.Addr{addr("192.168.9.9")}, !e.Leaving
			return s.SetLocal(other)
		}, func(s *state.State) state.Section { return s.DeleteLocal(e.Interface) })
	}
	for _, p := range w.paths {
		steps = append(steps, func(s *state.State) state.Section { return s.SetPath(p) })
		detours = append(detours, func(s *state.State) state.Section {
			return s.SetPath(state.Path{Prefix: p.Prefix, Ways: &state.Ways{NextHops: []netip.Addr{addr("10.30.0.57")}, Metric: 7}})
		})
	}
	steps = append(steps, func(s *state.State) state.Section { return s.SetHost(w.host) },
		func(s *state.State) state.Section { return s.SetCapabilities(state.Capabilities{Lacks: w.lacks}) },
		func(s *state.State) state.Section { return s.SetBearers(w.bore) })
	detours = append(detours, func(s *state.State) state.Section {
		return s.SetCapabilities(state.Capabilities{Lacks: map[string]string{api.FeatureVXLAN: "no", api.FeatureIPIP: "no"}})
	})
	detours = append(detours, func(s *state.State) state.Section {
		return s.SetHost(state.Host{Interfaces: map[string]state.Interface{"eth7": {Index: 7, MTU: 600, Up: true}}})
	})
	return slices.Concat(shuffled(detours, r), shuffled(steps, r),
		[]func(*state.State) state.Section{func(s *state.State) state.Section { return s.Apply(view.Batch{InSync: true}) }})
}

// detour is an item's earlier self.
func detour(it view.Item) (view.Item, bool) {
	switch it := it.(type) {
	case view.Resource:
		switch o := it.Object.DeepCopyObject().(type) {
		case *api.IPPool:
			o.Spec.NATOutgoing, o.Spec.VXLANMode, o.Spec.IPIPMode = !o.Spec.NATOutgoing, api.VXLANMode(o.Spec.IPIPMode), api.IPIPMode(o.Spec.VXLANMode)
			return view.Resource{Object: o}, true
		case *api.FelixConfiguration:
			o.Spec.InterfacePrefix = "tap"
			return view.Resource{Object: o}, true
		}
	case view.Node:
		it.VXLANMAC4, it.IPv4, it.IPIPAddr = "66:00:00:00:04:0f", prefix("10.30.0.250/24"), addr("10.88.0.250")
		return it, true
	case view.IPSet:
		it.Members = []view.Member{{Prefix: prefix("192.168.1.2/32")}, {Prefix: prefix("192.168.3.0/24")}}
		return it, true
	case view.PolicyList:
		it.Profiles = nil
		return it, true
	case view.HostEndpoint:
		it.Interface, it.Normal, it.PreDNAT, it.Forward = "eth0", it.Forward, "", it.Normal
		return it, true
	case view.WorkloadEndpoint:
		it.Incomplete = []string{"something"}
		return it, true
	case view.Route:
		other := map[view.Tunnel]view.Tunnel{view.TunnelNone: view.TunnelVXLAN, view.TunnelVXLAN: view.TunnelIPIP, view.TunnelIPIP: view.TunnelNone}
		it.Send, it.CrossSubnet, it.Receive = other[it.Send], !it.CrossSubnet, append(slices.Clone(it.Receive), view.TunnelIPIP)
		return it, true
	}
	return nil, false
}

func shuffled[T any](list []T, r *rand.Rand) []T {
	out := slices.Clone(list)
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// kernel adds differences up as drivers do.
type kernel struct {
	routes map[desired.RouteKey]desired.Route
	fw     render.Whole
	rules  render.Firewall
	told   bool // something of the firewall

	tunnels render.Tunnels
	links   map[string]desired.WorkloadLink
	rib     render.RIB
	encaps  map[netip.Prefix]desired.Encap
}

func newKernel() *kernel {
	return &kernel{
		routes: map[desired.RouteKey]desired.Route{}, encaps: map[netip.Prefix]desired.Encap{},
		fw: render.Whole{
			Sets: map[string]desired.Set{}, Chains: map[string]desired.Chain{}, Workloads: map[string]desired.Workload{},
			Hosts: map[string]desired.Host{},
		},
	}
}

// follow takes up what a change of the state touched, as the loop does.
func (k *kernel) follow(s *state.State, touched state.Section) {
	if touched&(state.Routes|state.Paths) != 0 {
		routes, encaps := k.rib.Update(s, touched)
		apply(k.routes, routes)
		apply(k.encaps, encaps)
	}
	if touched&state.Tunnels != 0 {
		k.tunnels = render.TunnelState(s)
	}
	if touched&state.Links != 0 {
		k.links = render.Links(s)
	}
	if touched&state.Firewall == 0 {
		return
	}
	k.told = true
	d := k.rules.Update(s)
	if d.Settings != nil {
		k.fw.Settings = *d.Settings
	}
	apply(k.fw.Sets, d.Sets)
	for id, change := range d.Members {
		set := k.fw.Sets[id]
		members := slices.DeleteFunc(slices.Clone(set.Members), func(m view.Member) bool { return slices.Contains(change.Removed, m) })
		set.Members = slices.Compact(slices.SortedFunc(slices.Values(append(members, change.Added...)), view.Member.Compare))
		k.fw.Sets[id] = set
	}
	apply(k.fw.Chains, d.Chains)
	apply(k.fw.Workloads, d.Workloads)
	apply(k.fw.Hosts, d.Hosts)
}

func apply[K comparable, V any](to map[K]V, d desired.Delta[K, V]) {
	for key := range d.Removed {
		delete(to, key)
	}
	maps.Copy(to, d.Set)
}

// check compares with what is computed from scratch, as the kernel would: by Equal.
func (k *kernel) check(t *testing.T, s *state.State) {
	t.Helper()
	routes, fw := render.Routes(s), render.FirewallState(s)
	require.True(t, desired.Diff(k.routes, routes, desired.Route.Equal).Empty(), "routes %v, want %v", k.routes, routes)
	require.Equal(t, render.Encaps(routes), k.encaps)
	if k.tunnels.FDB != nil {
		require.Equal(t, render.TunnelState(s), k.tunnels)
	}
	if k.links != nil {
		require.Equal(t, render.Links(s), k.links)
	}
	if !k.told {
		return // nothing of the firewall was touched yet
	}
	checkFirewall(t, k.fw, fw)
}

func checkFirewall(t *testing.T, have, want render.Whole) {
	t.Helper()
	require.True(t, have.Settings.Equal(want.Settings), "%+v, want %+v", have.Settings, want.Settings)
	sameSet := func(a, b desired.Set) bool { return a.Type == b.Type && slices.Equal(a.Members, b.Members) }
	require.True(t, desired.Diff(have.Sets, want.Sets, sameSet).Empty(), "sets %v, want %v", have.Sets, want.Sets)
	require.True(t, desired.Diff(have.Chains, want.Chains, desired.Chain.Equal).Empty(), "chains %v, want %v", have.Chains, want.Chains)
	require.Equal(t, want.Workloads, have.Workloads)
	require.Equal(t, want.Hosts, have.Hosts)
}
