package render

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// Options are what the view does not tell.
type Options struct {
	// Node is the own node's name.
	Node string
	// RouterID is an IPv4 address, "hash" for one made of the node's name, or empty: the node's IPv4 address, and the hash on
	// nodes without one.
	RouterID string
}

// State is a node's BGP view. It is not safe for concurrent use.
type State struct {
	options Options
	items   map[view.Key]view.Item
	inSync  bool
}

// NewState returns an empty view.
func NewState(o Options) *State { return &State{options: o, items: map[view.Key]view.Item{}} }

// Commit applies a batch.
func (s *State) Commit(b view.Batch) {
	for _, it := range b.Updates {
		s.items[it.Key()] = it
	}
	for _, k := range b.Removes {
		delete(s.items, k)
	}
	s.inSync = s.inSync || b.InSync
}

// InSync tells whether the view has been whole; before that Render would miss peers.
func (s *State) InSync() bool { return s.inSync }

// node is a node as BGP sees it.
type node struct {
	name    string
	v4, v6  netip.Addr     // not valid: none
	subnets []netip.Prefix // of its addresses, as far as it says
	as      uint32
	port    uint16
	cluster netip.Addr // valid: it reflects routes
	labels  map[string]string
}

// address is the node's address of a family.
func (n *node) address(v6 bool) netip.Addr {
	if v6 {
		return n.v6
	}
	return n.v4
}

// renderer is one run over a state.
type renderer struct {
	options    Options
	config     api.BGPConfigurationSpec // "default"
	own        *node
	reflection *api.Reflection                     // what stands in for the mesh; nil: nothing does
	ownSpec    api.BGPConfigurationSpec            // "node.<own>"
	perNode    map[string]api.BGPConfigurationSpec // by node name
	nodes      []*node                             // by name
	peers      []*api.BGPPeer                      // by name
	filters    map[string]*api.BGPFilter
	secrets    []view.Secret
	pods       []view.WorkloadEndpoint // of this node, that speak BGP with it
	warnings   map[string]struct{}
	out        Config
}

// Render computes the configuration. An error means that there is none: what runs should go on.
func (s *State) Render() (Config, error) {
	r := &renderer{
		options: s.options, perNode: map[string]api.BGPConfigurationSpec{}, filters: map[string]*api.BGPFilter{},
		warnings: map[string]struct{}{},
	}
	keys := make([]view.Key, 0, len(s.items))
	for k := range s.items {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b view.Key) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID)) })
	var raw []*api.Node
	for _, k := range keys {
		switch it := s.items[k].(type) {
		case view.Resource:
			if n, ok := it.Object.(*api.Node); ok {
				raw = append(raw, n) // needs the configurations first
				continue
			}
			r.resource(it.Object)
		case view.Secret:
			r.secrets = append(r.secrets, it)
		case view.Route:
			if it.Type == view.RouteBlock && it.Node == s.options.Node {
				r.out.OwnBlocks = append(r.out.OwnBlocks, it.Dst)
			}
		case view.WorkloadEndpoint:
			if it.Peering != nil {
				r.pods = append(r.pods, it)
			}
		case view.Origination:
			r.out.Originate = append(r.out.Originate, it.Prefix)
		}
	}
	for _, n := range raw {
		r.node(n)
	}
	if r.own == nil {
		return Config{}, fmt.Errorf("node %s is not in the datastore yet; calico-node registers it when it starts", s.options.Node)
	}
	return r.render()
}

func (r *renderer) resource(o api.Object) {
	switch o := o.(type) {
	case *api.BGPConfiguration:
		name, isNode := strings.CutPrefix(o.Name, "node.")
		switch {
		case o.Name == "default":
			r.config = o.Spec
			r.chosen(o)
		case isNode:
			r.perNode[name] = o.Spec
		default:
			r.warn("BGPConfiguration(%s): is ignored; only \"default\" and \"node.<name>\" count", o.Name)
		}
	case *api.BGPPeer:
		r.peers = append(r.peers, o)
	case *api.BGPFilter:
		r.filters[o.Name] = o
	case *api.IPPool:
		if p, ok := r.prefix("IPPool("+o.Name+").spec.cidr", o.Spec.CIDR); ok {
			never := func(mode string) bool { return mode == "" || mode == string(api.VXLANNever) }
			tunnelled := !never(string(o.Spec.VXLANMode)) || !never(string(o.Spec.IPIPMode))
			r.out.Pools = append(r.out.Pools, Pool{Prefix: p, DisableExport: o.Spec.DisableBGPExport, Tunnelled: tunnelled})
		}
	}
}

func (r *renderer) node(o *api.Node) {
	n := &node{name: o.Name, as: r.globalAS(), port: api.DefaultBGPPort, labels: o.Labels}
	if p := cmp.Or(r.perNode[o.Name].ListenPort, r.config.ListenPort); p != 0 {
		n.port = p
	}
	if bgp := o.Spec.BGP; bgp != nil {
		n.v4, n.v6 = r.nodeAddress(n, bgp.IPv4Address), r.nodeAddress(n, bgp.IPv6Address)
		switch as := bgp.ASNumber; {
		case as == nil:
		case *as == 0:
			r.warn("Node(%s).spec.bgp.asNumber: there is no AS 0 (RFC 7607); the node has the cluster's, %d", o.Name, n.as)
		default:
			n.as = uint32(*as)
		}
		if id := bgp.RouteReflectorClusterID; id != "" {
			a, err := netip.ParseAddr(id)
			if err != nil || !a.Is4() {
				r.warn("Node(%s).spec.bgp.routeReflectorClusterID: %q does not have the form of an IPv4 address; the node reflects nothing", o.Name, id)
			} else {
				n.cluster = a
			}
		}
	}
	r.nodes = append(r.nodes, n)
	if o.Name == r.options.Node {
		r.own, r.ownSpec = n, r.perNode[o.Name]
	}
}

// globalAS is the AS number of nodes that have none of their own.
func (r *renderer) globalAS() uint32 {
	switch as := r.config.ASNumber; {
	case as == nil:
	case *as == 0:
		r.warn("BGPConfiguration(default).spec.asNumber: there is no AS 0 (RFC 7607); it is taken as %d", api.DefaultASNumber)
	default:
		return uint32(*as)
	}
	return uint32(api.DefaultASNumber)
}

// nodeAddress reads an address of a node, with or without the length of its subnet.
func (r *renderer) nodeAddress(n *node, s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		n.subnets = append(n.subnets, p.Masked())
		return p.Addr()
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		r.warn("Node(%s).spec.bgp: %q is not an address; nobody peers with it", n.name, s)
	}
	return a
}

// onLink tells whether an address is in a subnet of the node.
func (n *node) onLink(a netip.Addr) bool {
	return slices.ContainsFunc(n.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (r *renderer) warn(format string, args ...any) {
	r.warnings[fmt.Sprintf(format, args...)] = struct{}{}
}

// prefix reads a CIDR or an address, with the bits beyond the length cleared.
func (r *renderer) prefix(where, s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		r.warn("%s: %q is not a CIDR; it is left out", where, s)
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}

// routerID follows the option.
func (r *renderer) routerID() (netip.Addr, error) {
	switch id := r.options.RouterID; {
	case id == "" && r.own.v4.IsValid():
		return r.own.v4, nil
	case id == "", id == "hash":
		sum := sha256.Sum256([]byte(r.own.name))
		if sum[0] > 223 { // neither multicast nor reserved
			sum[0] -= 32
		}
		return netip.AddrFrom4([4]byte(sum[:4])), nil
	default:
		a, err := netip.ParseAddr(id)
		if err != nil || !a.Is4() || a.IsUnspecified() {
			return netip.Addr{}, fmt.Errorf("router id %q is neither an IPv4 address nor \"hash\"; correct CALICO_ROUTER_ID", id)
		}
		return a, nil
	}
}
