package compute

import (
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// excludeLabel on a node, with the value "true", keeps traffic of services from outside away from it.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// originations decide which prefixes of services each node announces, and put them into its BGP view. Several services,
// and a range, may ask for one prefix: they are counted.
type originations struct {
	out      *output
	override []netip.Prefix // stands for the ranges of cluster addresses, if there are any
	config   serviceRanges  // as configured
	ranges   serviceRanges  // as of the last flush
	services map[string]*serviceState
	sliceOf  map[string]string // services by slice

	all    map[netip.Prefix]*offer            // what every node announces
	local  map[string]map[netip.Prefix]*offer // what single nodes do, by their names in Kubernetes
	nodes  map[string]string                  // names in Kubernetes of the nodes that may announce
	active map[string]string                  // the same as of the last flush
	named  map[string]map[string]struct{}     // active nodes by their names in Kubernetes

	dirty      map[string]struct{} // services
	dirtyNodes map[string]struct{}
}

// offer is how many ask for a prefix.
type offer struct {
	ranges, hosts int
	entry         *views.Entry
}

func newOriginations(out *output) *originations {
	return &originations{
		out: out, services: map[string]*serviceState{}, sliceOf: map[string]string{},
		all: map[netip.Prefix]*offer{}, local: map[string]map[netip.Prefix]*offer{},
		nodes: map[string]string{}, active: map[string]string{}, named: map[string]map[string]struct{}{},
		dirty: map[string]struct{}{}, dirtyNodes: map[string]struct{}{},
	}
}

// state returns what is known of a service, and makes it if there is nothing.
func (o *originations) state(name string) *serviceState {
	s := o.services[name]
	if s == nil {
		s = &serviceState{slices: map[string]*EndpointSlice{}}
		o.services[name] = s
	}
	return s
}

// setConfig takes in the cluster's configuration, or with nil its end.
func (o *originations) setConfig(c *api.BGPConfiguration) { o.config = rangesOf(c) }

// setNode takes in a node, or with nil its end.
func (o *originations) setNode(name string, n *api.Node) {
	was, announced := o.nodes[name]
	if n == nil || n.Labels[excludeLabel] == "true" {
		delete(o.nodes, name)
		if announced {
			o.dirtyNodes[name] = struct{}{}
		}
		return
	}
	if now := kubernetesName(n); !announced || now != was {
		o.nodes[name] = now
		o.dirtyNodes[name] = struct{}{}
	}
}

// kubernetesName is what Kubernetes calls a node.
func kubernetesName(n *api.Node) string {
	for _, r := range n.Spec.OrchRefs {
		if r.Orchestrator == api.OrchestratorKubernetes && r.NodeName != "" {
			return r.NodeName
		}
	}
	return n.Name
}

// flush tells nodes what changed. Nodes that cease to announce go first and those that begin come last, so that between
// the two only nodes count whose name is the same before and after.
func (o *originations) flush() {
	for name := range o.dirtyNodes {
		if kube, ok := o.active[name]; ok && o.nodes[name] != kube {
			o.stop(name, kube)
		}
	}
	o.flushOffers()
	for name := range o.dirtyNodes {
		if kube, ok := o.nodes[name]; ok && o.active[name] != kube {
			o.start(name, kube)
		}
	}
	clear(o.dirtyNodes)
}

func (o *originations) stop(name, kube string) {
	for _, offers := range []map[netip.Prefix]*offer{o.all, o.local[kube]} {
		for p := range offers {
			o.out.drop(bgpView(name), view.Origination{Prefix: p}.Key())
		}
	}
	delete(o.active, name)
	delete(o.named[kube], name)
	if len(o.named[kube]) == 0 {
		delete(o.named, kube)
	}
}

func (o *originations) start(name, kube string) {
	o.active[name] = kube
	if o.named[kube] == nil {
		o.named[kube] = map[string]struct{}{}
	}
	o.named[kube][name] = struct{}{}
	for p := range o.local[kube] {
		o.tell(name, p)
	}
	for p := range o.all {
		o.tell(name, p)
	}
}

// tell tells an active node about a prefix. What is announced by all nodes comes before what this one announces: a range
// does not become an address because a service has just that.
func (o *originations) tell(name string, p netip.Prefix) {
	best := o.all[p]
	if best == nil {
		best = o.local[o.active[name]][p]
	}
	if best == nil {
		o.out.drop(bgpView(name), view.Origination{Prefix: p}.Key())
		return
	}
	o.out.put(bgpView(name), best.entry)
}

// place is a prefix as announced by one node, or with an empty name by all.
type place struct {
	node   string
	prefix netip.Prefix
}

// flushOffers counts anew what changed services and ranges ask for, and tells the nodes that it concerns.
func (o *originations) flushOffers() {
	ranges := o.config
	if len(o.override) > 0 {
		ranges.cluster = o.override
	}
	touched := map[place]*views.Entry{} // what was there before
	if !ranges.equal(o.ranges) {
		for _, p := range ranges.whole() {
			o.count(touched, place{"", p}, +1, 0)
		}
		for _, p := range o.ranges.whole() {
			o.count(touched, place{"", p}, -1, 0)
		}
		o.ranges = ranges
		for name := range o.services {
			o.dirty[name] = struct{}{}
		}
	}
	for name := range o.dirty {
		s := o.services[name]
		was := s.offers
		s.offers = s.announced(o.ranges)
		o.countAll(touched, s.offers, +1)
		o.countAll(touched, was, -1)
		if s.service == nil && len(s.slices) == 0 {
			delete(o.services, name)
		}
	}
	clear(o.dirty)
	for at, was := range touched {
		if now := o.entry(at); now == was || now != nil && was != nil && now.Version == was.Version {
			continue
		}
		if at.node != "" {
			for name := range o.named[at.node] {
				o.tell(name, at.prefix)
			}
			continue
		}
		for name := range o.active {
			o.tell(name, at.prefix)
		}
	}
}

func (o *originations) countAll(touched map[place]*views.Entry, a announcement, by int) {
	for _, p := range a.all {
		o.count(touched, place{"", p}, 0, by)
	}
	for node, prefixes := range a.local {
		for _, p := range prefixes {
			o.count(touched, place{node, p}, 0, by)
		}
	}
}

// count counts more or less that ask for a prefix. The entry stays the same one as long as it says the same.
func (o *originations) count(touched map[place]*views.Entry, at place, ranges, hosts int) {
	if _, again := touched[at]; !again {
		touched[at] = o.entry(at)
	}
	offers := o.all
	if at.node != "" {
		if o.local[at.node] == nil {
			o.local[at.node] = map[netip.Prefix]*offer{}
		}
		offers = o.local[at.node]
	}
	now := offers[at.prefix]
	if now == nil {
		now = &offer{}
		offers[at.prefix] = now
	}
	now.ranges += ranges
	now.hosts += hosts
	switch item := (view.Origination{Prefix: at.prefix, Host: now.ranges == 0}); {
	case now.ranges == 0 && now.hosts == 0:
		delete(offers, at.prefix)
		if at.node != "" && len(offers) == 0 {
			delete(o.local, at.node)
		}
	case now.entry == nil || now.entry.Item() != view.Item(item):
		now.entry = views.NewEntry(item)
	}
}

// entry is what is announced at a place; nil if nothing.
func (o *originations) entry(at place) *views.Entry {
	offers := o.all
	if at.node != "" {
		offers = o.local[at.node]
	}
	if now := offers[at.prefix]; now != nil {
		return now.entry
	}
	return nil
}
