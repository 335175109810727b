// Package view is the vocabulary in which typha tells a node what it must know: the computed counterpart of the
// resources in package api. typha/compute produces these values, the wire (proto/muslin/typha/v1) carries them, and the
// cores of felix and confd consume them. They are plain immutable data: whoever receives one must not change it.
//
// Every item has a Key and a Version. The version says only same or different (design: "Versions say same or
// different; checkpoints say earlier or later") and is equal on every typha replica for equal content.
package view

import (
	"cmp"
	"net/netip"

	"github.com/muslin-net/muslin/api"
)

// Kind is a kind of item. The numbers rank the kinds: within a batch, updates go in ascending order and removals in
// descending order, so that nothing ever names what is not there yet.
type Kind uint8

// The kinds of item, in the order of their programming.
const (
	KindResource         Kind = iota + 1 // a resource that nodes need as it is: pools, resolved configuration, BGP objects
	KindSecret                           // a secret's value for the node that uses it
	KindNode                             // addresses and tunnel endpoints of one node
	KindIPSet                            // members of a selector, service or named port
	KindPolicy                           // the rules of one policy or profile
	KindPolicyList                       // what applies to an endpoint, in order
	KindWorkloadEndpoint                 // one endpoint of the viewing node
	KindHostEndpoint                     // one host endpoint of the viewing node
	KindRoute                            // where a block or an address lives
	KindOrigination                      // a service prefix that the viewing node announces
)

// Key names an item within a view.
type Key struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
}

// Item is one thing a view holds.
type Item interface {
	Key() Key
}

// Checkpoint is a point in the history of the datastore: for each source the highest revision that is reflected. etcd
// has the one source "etcd"; Kubernetes has one for each kind.
type Checkpoint map[string]uint64

// Batch is the unit of change: all of it or nothing is committed. Updates are in ascending, Removes in descending order
// of Kind.
type Batch struct {
	Updates    []Item
	Removes    []Key
	Checkpoint Checkpoint
	InSync     bool // the view is whole with this batch
}

// Resource carries a resource of package api as it is. Typha trims what the viewer has no use for (status, labels that
// no selector asks for, managed fields), so that a change of those is no change of the view.
type Resource struct {
	Object api.Object
}

// Key is the resource's own key: kind/namespace/name.
func (r Resource) Key() Key {
	k := api.KeyOf(r.Object)
	return Key{KindResource, k.Kind + "/" + k.Namespace + "/" + k.Name}
}

// Secret is the value of a key of a secret. It never goes into logs or files that others can read.
type Secret struct {
	Name  string // namespace/name/key
	Value []byte
}

// String is the secret's name, so that no log and no failing test shows its value.
func (s Secret) String() string { return "secret " + s.Name }

// GoString is the same.
func (s Secret) GoString() string { return s.String() }

// Key is the secret's name.
func (s Secret) Key() Key { return Key{KindSecret, s.Name} }

// Node is what other nodes, and the node itself, need to reach it. Unset addresses are invalid netip values.
type Node struct {
	Name string
	// IPv4 and IPv6 are the node's addresses with the prefix length of its subnet, which decides CrossSubnet.
	IPv4, IPv6 netip.Prefix
	// IPIPAddr, VXLANAddr4 and VXLANAddr6 are the addresses of its tunnel devices.
	IPIPAddr, VXLANAddr4, VXLANAddr6 netip.Addr
	// VXLANMAC4 and VXLANMAC6 are the Ethernet addresses of its VXLAN devices, "66:…".
	VXLANMAC4, VXLANMAC6 string
	// PodCIDRs are the ranges that Kubernetes gave to the node.
	PodCIDRs []netip.Prefix `json:",omitempty"`
}

// Key is the node's name.
func (n Node) Key() Key { return Key{KindNode, n.Name} }

// SetType tells what an IP set's members are.
type SetType uint8

// The types of IP set.
const (
	SetNet    SetType = iota + 1 // prefixes (a single address is a /32 or /128)
	SetIPPort                    // address, protocol and port together
)

// Member is one member of an IP set. For SetNet only Prefix is set.
type Member struct {
	Prefix   netip.Prefix `json:"prefix"`
	Protocol Protocol     `json:"protocol,omitempty"`
	Port     uint16       `json:"port,omitempty"`
}

// IPSet is a whole set. Both families are in one set; the kernel has one set for each.
type IPSet struct {
	ID      string // "s:…", "n:…", "svc:…", "svcnoport:…" as in the spec
	Type    SetType
	Members []Member // sorted, no duplicates
}

// Key is the set's id.
func (s IPSet) Key() Key { return Key{KindIPSet, s.ID} }

// IPSetDelta changes a set that the receiver already has at version From. It only travels; a view holds IPSets.
type IPSetDelta struct {
	ID             string
	From, To       Version
	Added, Removed []Member
}

// Key is the set's id.
func (s IPSetDelta) Key() Key { return Key{KindIPSet, s.ID} }

// RouteType tells what lives at a route's destination.
type RouteType uint8

// The types of route.
const (
	RouteBlock    RouteType = iota + 1 // an IPAM block affine to the node
	RouteWorkload                      // one address in use on a node that does not own its block (borrowed), or a floating one
	RouteTunnel                        // a node's tunnel address that lies in no block of that node
)

// Tunnel is a way to carry packets between nodes.
type Tunnel uint8

// The tunnels.
const (
	TunnelNone Tunnel = iota // direct: plain routing
	TunnelIPIP
	TunnelVXLAN
	TunnelWireGuard
)

// Route says which node a destination lives on and how its pool wants packets carried there. It is the same for every
// viewer: whether CrossSubnet applies, and what the next hop is, the node decides from its own subnet.
type Route struct {
	Dst  netip.Prefix
	Type RouteType
	Node string
	Pool string // name of the pool, empty outside all pools
	// Send is how the pool says packets go there; with CrossSubnet only to nodes outside the sender's subnet.
	Send        Tunnel
	CrossSubnet bool
	// Receive lists the ways a node must accept packets for Dst. It has more than Send while the pool's mode changes.
	Receive []Tunnel
}

// Key is the destination and node: during a move two nodes may have one destination.
func (r Route) Key() Key { return Key{KindRoute, r.Dst.String() + "@" + r.Node} }

// Origination is a service prefix that the viewing node announces over BGP.
type Origination struct {
	Prefix netip.Prefix
	// Host is true for a single service's address, false for a configured range.
	Host bool
}

// Key is the prefix.
func (o Origination) Key() Key { return Key{KindOrigination, o.Prefix.String()} }

// Compare orders members by prefix, protocol and port; sets are sorted by it.
func (m Member) Compare(o Member) int {
	return cmp.Or(
		m.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(m.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(m.Protocol, o.Protocol),
		cmp.Compare(m.Port, o.Port),
	)
}
