// Package render computes a node's BGP configuration from what typha tells of the cluster: which sessions the node has and
// how each behaves, what it announces, and what filters decide. It follows the rules that users of Calico rely on (spec:
// "what confd renders").
//
// It refuses everything else: no I/O, no clock, no wire messages. The outcome depends on the items alone, never on the order
// in which they came, and is sorted.
package render

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/muslin-net/muslin/api/bgp"
)

// Config is the configuration of a node's speaker. Unset values mean the speaker's defaults.
type Config struct {
	RouterID        netip.Addr // IPv4
	ASNumber        uint32
	ListenPort      uint16
	ListenAddresses []netip.Addr // empty: all
	ClusterID       netip.Addr   // IPv4 if the node reflects routes, else not valid
	LogLevel        string       // "debug", "info", "warning"
	LogSeverity     string       // what the resources say of confd's own log, as they say it; empty: nothing
	NormalPriority4 uint32
	NormalPriority6 uint32
	Peers           []Peer // by type and name
	Filters         []bgp.Filter
	Originate       []netip.Prefix
	Pools           []Pool
	OwnBlocks       []netip.Prefix
	Advertisements  []Advertisement
	ServiceRanges   []netip.Prefix // of load balancers and external addresses: a reflector passes on what lies in them
	Unrouted        []netip.Prefix // of all services: nothing inside is routed by the kernel
	StaticRoutes    []StaticRoute
	// IgnoredInterfaces are patterns of interfaces whose subnets are not known to a speaker that reads the kernel's routes.
	IgnoredInterfaces []string
	// Warnings name what in the input is not followed, and why. They are for people.
	Warnings []string
}

// PeerType is where a session comes from.
type PeerType uint8

// The types of peer.
const (
	Mesh PeerType = iota + 1
	Global
	NodeSpecific
	LocalWorkload
)

// String is the word that session names begin with.
func (t PeerType) String() string {
	return [...]string{"", "Mesh", "Global", "Node", "Local_Workload"}[t]
}

// NextHopMode is what the next hop of announced routes becomes.
type NextHopMode uint8

// The modes.
const (
	NextHopAuto NextHopMode = iota
	NextHopSelf
	NextHopKeep
)

// Peer is a session.
type Peer struct {
	Name            string // "Mesh_10_0_0_1"
	Type            PeerType
	Source          string // the resource that asks for it
	Address         netip.Addr
	Port            uint16
	ASNumber        uint32
	LocalASNumber   uint32     // 0: the node's
	SourceAddress   netip.Addr // not valid: the kernel chooses
	Passive         bool
	Password        string
	TTLSecurity     uint8
	RestartTime     time.Duration // 0: the speaker's default
	KeepaliveTime   time.Duration // 0: the speaker's default
	HoldTime        time.Duration // 0: the speaker's default
	ReflectorClient bool
	NextHop         NextHopMode
	AllowedOwnAS    uint32
	Filters         []string
	BFD             *BFD          // nil: none
	LongLivedTime   time.Duration // stale time of long-lived graceful restart (RFC 9494), 0: off
	// WaitingFor is what is missing before the session may be tried: "Secret tor, key password".
	WaitingFor string
}

// Internal tells whether the session is iBGP, judged by the AS number that the peer is shown.
func (p *Peer) Internal(c *Config) bool { return p.ASNumber == cmp.Or(p.LocalASNumber, c.ASNumber) }

// BFD is what watches a peer (RFC 5880).
type BFD struct {
	MinSend, MinReceive time.Duration
	Multiplier          uint8
	Multihop            bool // the peer is not on a link of the node (RFC 5883)
}

// StaticRoute is a host route to a peer by way of a gateway.
type StaticRoute struct {
	Prefix  netip.Prefix
	Gateway netip.Addr
}

// Pool is an address pool.
type Pool struct {
	Prefix        netip.Prefix
	DisableExport bool
	Tunnelled     bool // its routes are of tunnels, which no speaker makes
}

// Advertisement gives communities to the routes inside a prefix.
type Advertisement struct {
	Prefix      netip.Prefix
	Communities []bgp.Community
}
