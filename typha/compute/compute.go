// Package compute decides what every node must know. It turns the objects of the datastore into the entries of all
// views (package views): which policies apply to which endpoint, who is a member of which set, where each address
// lives, and how each node is configured.
//
// The Engine is incremental: one change costs what it affects. Its output is nevertheless a function of the objects it
// holds, never of the order in which they came or of how they were batched; a test recomputes everything from scratch
// after each of thousands of random changes and compares.
//
// How a change travels:
//
//	object ──► subject ──► index ──► selector ──► policy ──► policy list ──► endpoint ──► node
//	            labels      by label   members      rules       shared by       closed while     refcounts of
//	            inherited   and value  of sets      to set ids  content         incomplete       all it reaches
//
// Apply only notes and re-matches; Flush follows what is dirty to the entries and returns the difference. The package
// does no I/O, reads no clock and logs nothing. Objects that cannot be understood are as if absent: intake has judged
// and reported them before, and put what is closed in the place of policies.
package compute

import (
	"cmp"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/keymap"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// Engine holds the cluster as far as views depend on it. It belongs to one goroutine.
type Engine struct {
	out *output

	index    *index
	profiles map[string]*profile             // by name; those known or referred to
	subjects keymap.Map[*subject]            // endpoints and network sets
	tiers    map[string]*api.Tier            // by name
	members  map[string]map[*policy]struct{} // policies by tier name
	policies map[api.Key]*policy             // as they are now
	slots    map[string]*slot                // policies and profiles by id, known or referred to
	groups   *groups                         // of workloads
	lists    map[string]*list                // of host endpoints, by content
	sets     map[string]*ipset               // by id; only those that some node needs
	services map[string][]view.Member

	nodes   map[string]*node
	numbers map[string]nodeID // ids of all node names ever met
	names   []string          // by id
	felix   map[string]*api.FelixConfiguration
	routes  *routes
	pods    *pods

	peerings map[string]*peering // BGPPeers that select pods, by name
	gateways []netip.Addr        // by which such pods know their nodes
	bgpPorts map[string]uint16   // that speakers listen on, by the name of the BGPConfiguration that says so

	originations *originations
	secrets      *secrets

	everywhere map[*slot]struct{} // policies that every node has

	dirtyEndpoints map[*subject]struct{}
	gone           map[api.Key]*subject // endpoints that went since the last flush
	dirtySlots     map[*slot]struct{}
	dirtySets      map[*ipset]struct{}
	dirtyFelix     map[string]struct{} // nodes whose configuration is to be resolved anew
	repin          bool                // nodes, or what every node has, changed
	keyBuf         []byte
	warnings       []string
}

// New returns an engine that holds no objects.
func New() *Engine {
	e := &Engine{
		out:            newOutput(),
		profiles:       map[string]*profile{},
		tiers:          map[string]*api.Tier{},
		members:        map[string]map[*policy]struct{}{},
		policies:       map[api.Key]*policy{},
		slots:          map[string]*slot{},
		lists:          map[string]*list{},
		sets:           map[string]*ipset{},
		services:       map[string][]view.Member{},
		nodes:          map[string]*node{},
		numbers:        map[string]nodeID{},
		felix:          map[string]*api.FelixConfiguration{},
		peerings:       map[string]*peering{},
		bgpPorts:       map[string]uint16{},
		everywhere:     map[*slot]struct{}{},
		dirtyEndpoints: map[*subject]struct{}{},
		gone:           map[api.Key]*subject{},
		dirtySlots:     map[*slot]struct{}{},
		dirtySets:      map[*ipset]struct{}{},
		dirtyFelix:     map[string]struct{}{},
	}
	e.index = newIndex(e.matched, e.unmatched)
	e.routes = newRoutes(e.out)
	e.pods = newPods()
	e.originations = newOriginations(e.out)
	e.secrets = newSecrets(e.out)
	e.groups = newGroups()
	e.setProfile(api.ProfileDefaultAllow, nil)
	return e
}

// Options are what is said to typha itself and not by an object.
type Options struct {
	// ClusterRanges stand for the configured ranges of Services' cluster addresses, unless they are empty.
	ClusterRanges []netip.Prefix
	// Namespace is where Secrets are. Empty means kube-system.
	Namespace string
}

// Configure sets the options. It is called before anything is applied.
func (e *Engine) Configure(o Options) {
	e.originations.override = o.ClusterRanges
	e.secrets.namespace = cmp.Or(o.Namespace, e.secrets.namespace)
}

// Apply takes changes in. The views change only with the next Flush.
func (e *Engine) Apply(changes ...cache.Change) {
	for _, c := range changes {
		e.apply(c)
	}
}

func (e *Engine) apply(c cache.Change) {
	switch c.Key.Kind {
	case "WorkloadEndpoint":
		e.setWorkload(c.Key, endpointOf(c))
	case kubernetes.KindPod:
		e.setPod(c.Key, endpointOf(c))
	case kubernetes.KindNamespace:
		o, _ := c.Object.(*api.Profile)
		e.setNamespace(c.Key.Name, o)
	case "HostEndpoint":
		e.setSubject(c.Key, orNil(c, hostSubject))
	case "NetworkSet":
		e.setSubject(c.Key, orNil(c, networkSetSubject))
	case "GlobalNetworkSet":
		e.setSubject(c.Key, orNil(c, globalNetworkSetSubject))
	case "Profile":
		o, _ := c.Object.(*api.Profile)
		e.setProfile(c.Key.Name, o)
	case "Tier":
		o, _ := c.Object.(*api.Tier)
		e.setTier(c.Key.Name, o)
	case "NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy",
		"StagedKubernetesNetworkPolicy", kubernetes.KindCluster, kubernetes.KindAdmin, kubernetes.KindBaseline:
		o, _ := c.Object.(api.Object)
		e.setPolicy(c.Key, parsePolicy(c.Key.Kind, o))
	case "Node":
		o, _ := c.Object.(*api.Node)
		e.setNode(c.Key.Name, o)
	case "FelixConfiguration":
		o, _ := c.Object.(*api.FelixConfiguration)
		e.setFelix(c.Key.Name, o)
	case "IPPool":
		o, _ := c.Object.(*api.IPPool)
		e.setPool(c.Key, o)
	case "IPAMBlock":
		o, _ := c.Object.(*api.IPAMBlock)
		e.routes.setBlock(c.Key.Name, o)
	case "BlockAffinity":
		o, _ := c.Object.(*api.BlockAffinity)
		e.routes.setAffinity(c.Key.Name, o)
	case "BGPConfiguration", "BGPPeer", "BGPFilter":
		o, _ := c.Object.(api.Object)
		e.setBGP(c.Key, o)
	}
}

// endpointOf is the endpoint that is there, or nil. Who keeps no cache may give objects as they are.
func endpointOf(c cache.Change) *cache.Endpoint {
	if o, ok := c.Object.(*api.WorkloadEndpoint); ok {
		return cache.EndpointOf(o)
	}
	o, _ := c.Object.(*cache.Endpoint)
	return o
}

// orNil makes the subject of an object that is there.
func orNil[T api.Object](c cache.Change, make func(T) *subject) *subject {
	o, ok := c.Object.(T)
	if !ok {
		return nil
	}
	return make(o)
}

// Flush computes all that the changes since the last Flush affect, and returns how the views change. The caller adds
// checkpoint and in-sync flag.
func (e *Engine) Flush() views.Change {
	e.flushSlots()
	e.flushEndpoints()
	e.flushGroups()
	e.flushSets()
	e.flushFelix()
	e.routes.flush()
	e.originations.flush()
	e.secrets.flush()
	return e.out.take()
}
