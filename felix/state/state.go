// Package state joins what typha says (the node's view) with what is on the node: endpoints that were wired, interfaces
// of the host, best paths from bird. It holds data and knows what changed; it decides nothing (package render does) and
// does no I/O. It is not safe for concurrent use: the agent's loop owns it.
package state

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/prefixes"
)

// Section is a part of the desired state that is computed on its own.
type Section uint8

// The sections, as bits of a set.
const (
	Links    Section = 1 << iota // host sides of pods, sysctls
	Tunnels                      // tunnel devices, forwarding entries, neighbours
	Firewall                     // rules and sets
	Routes                       // routes, but for changes of single paths of bird's
	Paths                        // routes of the paths that ChangedPaths tells
	All      = Links | Tunnels | Firewall | Routes
)

// Endpoint is a pod interface that this node has wired. It is what felix keeps on disk, so that a restart knows its pods.
type Endpoint struct {
	ID          view.EndpointID   `json:"id"`
	Network     string            `json:"network"`     // name of the CNI network
	ContainerID string            `json:"containerID"` // sandbox that the CNI call was for
	UID         string            `json:"uid,omitempty"`
	Pod         string            `json:"pod,omitempty"` // name, empty outside Kubernetes
	Namespace   string            `json:"namespace"`
	Interface   string            `json:"interface"` // host side
	MAC         string            `json:"mac"`       // pod side
	MTU         int               `json:"mtu"`
	AutoMTU     bool              `json:"autoMTU,omitempty"` // MTU is felix's choice: it follows the network between the nodes
	Addresses   []netip.Addr      `json:"addresses"`
	Netns       string            `json:"netns"`
	Labels      map[string]string `json:"labels,omitempty"`
	Profiles    []string          `json:"profiles,omitempty"`
	Forwarding  bool              `json:"forwarding,omitempty"` // the pod may forward
	Queues      int               `json:"queues,omitempty"`     // of the pair; 0 is one
	Routes      []netip.Prefix    `json:"routes,omitempty"`     // of the pod, instead of the default route of their family
	// Floating, AllowedSources and QoS came with the CNI call, and go to typha: what of them holds is in the view.
	Floating       []netip.Addr   `json:"floating,omitempty"`
	AllowedSources []netip.Prefix `json:"allowedSources,omitempty"`
	QoS            *view.QoS      `json:"qos,omitempty"`
	Leaving        bool           `json:"leaving,omitempty"` // being deleted: no route, rules still there
}

// Handle is the IPAM handle of the endpoint's addresses (spec §5.7).
func (e Endpoint) Handle() string { return e.Network + "." + e.ContainerID }

// Host is what the node's own network looks like.
type Host struct {
	// Interfaces by name, workload and tunnel devices and the loopback left out.
	Interfaces map[string]Interface
	// Loopback is the addresses that others may reach the host by and that are on the loopback, sorted.
	Loopback []netip.Addr
	// NextHops says how the kernel reaches the next hops of bird's paths.
	NextHops map[netip.Addr]NextHop
	// Uplinks are the interfaces by which packets to other nodes leave, in the order of their names.
	Uplinks []string
	// Ways are the interfaces by which packets to each other node leave, by the node's address; nil unless there are several uplinks.
	Ways map[netip.Addr]string
}

// NextHop is how the kernel reaches an address: by Via (the address itself if it is on the link) through Link. An empty
// Link means that it does not.
type NextHop struct {
	Via    netip.Addr
	Link   string
	Metric uint32
}

// Interface is one interface of the host.
type Interface struct {
	Index     int
	MTU       int
	Up        bool
	Addresses []netip.Prefix
}

// Path is a best path from bird. Without a way, the prefix has none.
type Path struct {
	Prefix netip.Prefix
	Ways   *Ways
}

// Ways are how a prefix is reached: every next hop is equally good. Prefixes by the thousand have the same, and may share it;
// it is not changed.
type Ways struct {
	NextHops []netip.Addr
	Metric   uint32
}

// State is everything felix knows.
type State struct {
	Node      string // name of this node
	Pools     map[string]*api.IPPool
	Config    *api.FelixConfiguration // resolved for this node; defaults until typha has sent it
	Nodes     map[string]view.Node
	Sets      map[string]view.IPSet // as they came; WholeSet has what changed since
	Policies  map[string]view.Policy
	Lists     map[string]view.PolicyList
	Workloads map[string]view.WorkloadEndpoint // by id, as typha sees them
	HostEPs   map[string]view.HostEndpoint
	Remote    map[string]view.Route // by key
	Local     map[string]Endpoint   // by interface name
	Paths     prefixes.Map[*Ways]   // from bird
	Host      Host
	Bearers   map[string][]string // interfaces that bore addresses of host endpoints before felix was started, by the endpoint's name
	Synced    bool                // the view was whole at least once (from typha or from disk)

	Capabilities Capabilities // of the kernel

	receives map[reception]int               // routes of Remote that ask for it
	firewall FirewallChanges                 // since ChangedFirewall was asked
	members  map[string]map[view.Member]bool // what changed of Sets, and whether it is in them now; see WholeSet
	changed  prefixes.Map[struct{}]          // of Paths, since ChangedPaths was asked
}

// New returns the state of a node that knows nothing yet: defaults, and everything closed.
func New(node string) *State {
	config := &api.FelixConfiguration{Spec: *api.EffectiveFelix()}
	return &State{
		Node: node, Config: config,
		Pools: map[string]*api.IPPool{}, Nodes: map[string]view.Node{}, Sets: map[string]view.IPSet{},
		Policies: map[string]view.Policy{}, Lists: map[string]view.PolicyList{},
		Workloads: map[string]view.WorkloadEndpoint{}, HostEPs: map[string]view.HostEndpoint{},
		Remote: map[string]view.Route{}, Local: map[string]Endpoint{},
		Host: Host{Interfaces: map[string]Interface{}}, receives: map[reception]int{},
		members: map[string]map[view.Member]bool{},
	}
}

// Apply takes a whole batch and returns the sections it touches.
func (s *State) Apply(b view.Batch) Section {
	var touched Section
	for _, item := range b.Updates {
		touched |= s.put(item)
	}
	for _, key := range b.Removes {
		touched |= s.remove(key)
	}
	if b.InSync && !s.Synced {
		s.Synced = true
		touched = All
	}
	return touched
}

func (s *State) put(item view.Item) Section {
	switch it := item.(type) {
	case view.Resource:
		switch o := it.Object.(type) {
		case *api.IPPool:
			s.Pools[o.Name] = o
		case *api.FelixConfiguration:
			s.Config = o
			s.firewall.Config = true
		default:
			return 0
		}
		s.firewall.Settings = true
		return All
	case view.Node:
		s.Nodes[it.Name] = it
		return s.node(it.Name)
	case view.IPSet:
		s.setSet(it.ID, &it)
		return Firewall
	case view.IPSetDelta:
		s.changeSet(it)
		return Firewall
	case view.Policy:
		s.Policies[it.ID] = it
		note(&s.firewall.Policies, it.ID)
		return Firewall
	case view.PolicyList:
		s.Lists[it.ID] = it
		note(&s.firewall.Lists, it.ID)
		return Firewall
	case view.WorkloadEndpoint:
		s.Workloads[it.ID.String()] = it
		note(&s.firewall.Workloads, it.ID.String())
		return Firewall | Links | Routes
	case view.HostEndpoint:
		s.HostEPs[it.Name] = it
		s.firewall.Hosts = true
		return Firewall
	case view.Route:
		return s.setRemote(it.Key().ID, &it)
	}
	return 0
}

// node is what a change of a node touches: of this one everything, since its addresses say which interfaces it uses.
func (s *State) node(name string) Section {
	s.firewall.Settings = true
	if name == s.Node {
		return All
	}
	return Tunnels | Routes | Firewall
}

// setRemote sets a route of typha's table, or removes it. The firewall is touched only when the first route asks for a
// tunnel to be received, or the last one no longer does, and by a route to a workload of this node, which may be to a floating
// address of its.
func (s *State) setRemote(key string, r *view.Route) Section {
	touched := Routes | Tunnels
	defer func() { s.firewall.Settings = s.firewall.Settings || touched&Firewall != 0 }()
	old := s.Remote[key]
	delete(s.Remote, key)
	if s.leadsHere(&old) || r != nil && s.leadsHere(r) {
		touched |= Firewall
	}
	if r != nil {
		s.Remote[key] = *r
		for _, t := range r.Receive {
			at := reception{r.Dst.Addr().Is6(), t}
			if s.receives[at]++; s.receives[at] == 1 {
				touched |= Firewall | Links // what fits into a tunnel goes for pods
			}
		}
	}
	for _, t := range old.Receive {
		at := reception{old.Dst.Addr().Is6(), t}
		if s.receives[at]--; s.receives[at] == 0 {
			delete(s.receives, at)
			touched |= Firewall | Links
		}
	}
	return touched
}

func (s *State) leadsHere(r *view.Route) bool {
	return r.Type == view.RouteWorkload && r.Node == s.Node
}

// Receives tells whether packets of a family may arrive by a tunnel, whatever the pools say now: while a pool changes its
// mode, both the old and the new way are open.
func (s *State) Receives(v6 bool, t view.Tunnel) bool { return s.receives[reception{v6, t}] > 0 }

// reception is a way by which packets may arrive.
type reception struct {
	v6     bool
	tunnel view.Tunnel
}

func (s *State) remove(key view.Key) Section {
	switch key.Kind {
	case view.KindResource:
		// A configuration is never removed alone; pools come and go.
		for name, pool := range s.Pools {
			if (view.Resource{Object: pool}).Key() == key {
				delete(s.Pools, name)
			}
		}
		s.firewall.Settings = true
		return All
	case view.KindNode:
		delete(s.Nodes, key.ID)
		return s.node(key.ID)
	case view.KindIPSet:
		s.setSet(key.ID, nil)
	case view.KindPolicy:
		delete(s.Policies, key.ID)
		note(&s.firewall.Policies, key.ID)
	case view.KindPolicyList:
		delete(s.Lists, key.ID)
		note(&s.firewall.Lists, key.ID)
	case view.KindWorkloadEndpoint:
		delete(s.Workloads, key.ID)
		note(&s.firewall.Workloads, key.ID)
		return Firewall | Links | Routes
	case view.KindHostEndpoint:
		delete(s.HostEPs, key.ID)
		s.firewall.Hosts = true
	case view.KindRoute:
		return s.setRemote(key.ID, nil)
	}
	return Firewall
}

// SetLocal records an endpoint of this node.
func (s *State) SetLocal(e Endpoint) Section {
	s.Local[e.Interface] = e
	note(&s.firewall.Local, e.Interface)
	return Links | Firewall | Routes
}

// DeleteLocal forgets an endpoint.
func (s *State) DeleteLocal(iface string) Section {
	delete(s.Local, iface)
	note(&s.firewall.Local, iface)
	return Links | Firewall | Routes
}

// SetHost replaces what is known of the host's interfaces.
func (s *State) SetHost(h Host) Section {
	var touched Section
	if !maps.Equal(s.Host.NextHops, h.NextHops) {
		touched |= Routes
	}
	if !maps.Equal(s.Host.Ways, h.Ways) {
		touched |= Tunnels
	}
	if !maps.EqualFunc(s.Host.Interfaces, h.Interfaces, Interface.equal) || !slices.Equal(s.Host.Uplinks, h.Uplinks) ||
		!slices.Equal(s.Host.Loopback, h.Loopback) {
		touched = All
		s.firewall.Settings, s.firewall.Hosts = true, true
	}
	s.Host = h
	return touched
}

// SetBearers tells on which interfaces host endpoints without an interface's name were found before felix was started.
func (s *State) SetBearers(b map[string][]string) Section {
	s.Bearers = b
	s.firewall.Hosts = true
	return Firewall
}

// SetPath records bird's best paths for a prefix; none removes it.
func (s *State) SetPath(p Path) Section {
	if p.Ways == nil || len(p.Ways.NextHops) == 0 {
		s.Paths.Delete(p.Prefix)
	} else {
		s.Paths.Set(p.Prefix, p.Ways)
	}
	s.changed.Set(p.Prefix, struct{}{})
	return Paths
}

// ChangedPaths returns the prefixes whose paths were set or removed since it was last called.
func (s *State) ChangedPaths() prefixes.Map[struct{}] {
	changed := s.changed
	s.changed = prefixes.Map[struct{}]{}
	return changed
}

// PathsChanged is how many prefixes ChangedPaths would return.
func (s *State) PathsChanged() int { return s.changed.Len() }

// NextHopsKnown tells whether the way to every next hop of bird's paths was looked up, with whatever outcome.
func (s *State) NextHopsKnown() bool {
	var last *Ways // many in a row are the same
	for _, w := range s.Paths.All() {
		if w == last {
			continue
		}
		last = w
		for _, hop := range w.NextHops {
			if _, ok := s.Host.NextHops[hop]; !ok {
				return false
			}
		}
	}
	return true
}

// View returns what typha says of a local endpoint. Not ok means that typha does not know it (yet), or that what it knows
// is another incarnation: then the endpoint is closed.
func (s *State) View(e Endpoint) (view.WorkloadEndpoint, bool) {
	w, ok := s.Workloads[e.ID.String()]
	if !ok || (w.ContainerID != "" && w.ContainerID != e.ContainerID) {
		return view.WorkloadEndpoint{}, false
	}
	return w, true
}

func (i Interface) equal(o Interface) bool {
	return i.Index == o.Index && i.MTU == o.MTU && i.Up == o.Up && slices.Equal(i.Addresses, o.Addresses)
}
