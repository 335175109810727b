package scale

import (
	"context"
	"maps"
	"net/netip"
	"sync"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/environ"
	"github.com/muslin-net/muslin/felix/state"
)

// felix is the core of one: state, rendering and the loop, with a kernel that takes notes.
type felix struct {
	agent  *agent.Agent
	kernel *kernel
	spec   ClientSpec
}

func newFelix(s ClientSpec) *felix {
	f := &felix{kernel: newKernel(), spec: s}
	f.agent = agent.New(s.Node, f.kernel, f.kernel, s.Local, agent.Events{
		LocalChanged: func([]state.Endpoint) {}, Ready: func([]string) {}, MTU: func(int) {},
	}, quiet)
	return f
}

// start runs it until ctx ends, and returns what waits for the end.
func (f *felix) start(ctx context.Context) (done func()) {
	var running sync.WaitGroup
	running.Go(func() { _ = f.agent.Run(ctx) })
	f.agent.SetHost(ctx, f.spec.Host)
	f.agent.SetPaths(ctx, nil, true, nil) // bird has told all: nothing
	return running.Wait
}

// program commits a batch, as felix's own uplink does.
func (f *felix) program(b view.Batch, applied func()) {
	f.agent.Batch(context.Background(), environ.Settings{}.Over(b), applied)
}

// localEndpoints are the pods of a node as its felix has them.
func (w *World) localEndpoints(node int) (out []state.Endpoint) {
	for _, i := range w.nodes[node].pods {
		p, o := w.pods[i], w.podObject(i)
		out = append(out, state.Endpoint{
			ID:      view.EndpointID{Orchestrator: o.Spec.Orchestrator, Workload: o.Namespace + "/" + o.Spec.Pod, Endpoint: o.Spec.Endpoint},
			Network: "k8s-pod-network", ContainerID: o.Spec.ContainerID, Pod: o.Spec.Pod, Namespace: o.Namespace, Interface: o.Spec.InterfaceName,
			MAC: o.Spec.MAC, MTU: 1450, Addresses: []netip.Addr{w.address(node, p.ordinal)}, Profiles: o.Spec.Profiles,
		})
	}
	return out
}

// hostOf is the network of a node.
func hostOf(node int) state.Host {
	own := netip.PrefixFrom(nodeAddress(node), 12)
	return state.Host{
		Interfaces: map[string]state.Interface{"ens5": {Index: 2, MTU: 1500, Up: true, Addresses: []netip.Prefix{own}}}, Uplinks: []string{"ens5"},
	}
}

// kernel holds what it is told, as a kernel and its drivers would, and counts.
type kernel struct {
	mu       sync.Mutex // guards all below
	applies  int
	changes  int // applies with something to do
	touched  bool
	vxlans   map[string]desired.VXLAN
	ipips    map[string]desired.IPIP
	links    map[string]desired.WorkloadLink
	fdb      map[desired.FDBKey]netip.Addr
	neighs   map[desired.NeighborKey]desired.MAC
	routes   map[desired.RouteKey]desired.Route
	sets     map[string]map[view.Member]struct{}
	chains   map[string]desired.Chain
	pods     map[string]desired.Workload
	prefixes []netip.Prefix // announced
}

var _ agent.Kernel = (*kernel)(nil)

func newKernel() *kernel {
	return &kernel{
		vxlans: map[string]desired.VXLAN{}, ipips: map[string]desired.IPIP{}, links: map[string]desired.WorkloadLink{},
		fdb: map[desired.FDBKey]netip.Addr{}, neighs: map[desired.NeighborKey]desired.MAC{}, routes: map[desired.RouteKey]desired.Route{},
		sets: map[string]map[view.Member]struct{}{}, chains: map[string]desired.Chain{}, pods: map[string]desired.Workload{},
	}
}

func follow[K comparable, V any](to map[K]V, d desired.Delta[K, V], touched *bool) {
	*touched = *touched || !d.Empty()
	for k := range d.Removed {
		delete(to, k)
	}
	maps.Copy(to, d.Set)
}

// Update takes changes.
func (k *kernel) Update(c desired.Changes) {
	k.mu.Lock()
	defer k.mu.Unlock()
	follow(k.vxlans, c.VXLANs, &k.touched)
	follow(k.ipips, c.IPIPs, &k.touched)
	follow(k.links, c.Links, &k.touched)
	follow(k.fdb, c.FDB, &k.touched)
	follow(k.neighs, c.Neighbors, &k.touched)
	follow(k.routes, c.Routes, &k.touched)
	follow(k.chains, c.Firewall.Chains, &k.touched)
	follow(k.pods, c.Firewall.Workloads, &k.touched)
	k.touched = k.touched || !c.Firewall.Empty()
	for id := range c.Firewall.Sets.Removed {
		delete(k.sets, id)
	}
	for id, s := range c.Firewall.Sets.Set {
		k.sets[id] = make(map[view.Member]struct{}, len(s.Members))
		for _, m := range s.Members {
			k.sets[id][m] = struct{}{}
		}
	}
	for id, d := range c.Firewall.Members {
		for _, m := range d.Removed {
			delete(k.sets[id], m)
		}
		for _, m := range d.Added {
			k.sets[id][m] = struct{}{}
		}
	}
}

// Apply counts.
func (k *kernel) Apply(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applies++
	if k.touched {
		k.changes++
	}
	k.touched = false
	return nil
}

// Whole and the others are for real kernels: nothing is ever missing here.
func (k *kernel) Whole() {}

// RoutesWhole does nothing.
func (k *kernel) RoutesWhole() {}

// Resync does nothing.
func (k *kernel) Resync() {}

// Forgotten has no connections.
func (k *kernel) Forgotten(context.Context, []netip.Addr) error { return nil }

// Holds finds everything programmed.
func (k *kernel) Holds(state.Endpoint) error { return nil }

// Entries lists nothing.
func (k *kernel) Entries() []dataplane.Entry { return nil }

// ToldAs knows no chain.
func (k *kernel) ToldAs(string) string { return "" }

// Programmed tells whether a route was told of.
func (k *kernel) Programmed(netip.Prefix) bool { return true }

// Announce takes what bird would.
func (k *kernel) Announce(prefixes []netip.Prefix) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.prefixes = prefixes
}
