// Package policy says what a BGP configuration means. It owns the nouns of a configuration, judges them, decides which of
// the node's own routes go to whom (spec: export decision), explains why a received route is not used (import decision),
// resolves several peers on one address, and compiles all of it to a Program: statements over sets, the form that BGP
// engines run.
//
// It refuses everything else: no sockets, no engine, no wire messages, no clock. The result depends on the input alone.
package policy

import (
	"net/netip"
	"time"

	"github.com/muslin-net/muslin/api/bgp"
)

// MaxPreference is 2^31-1. Local preference and kernel metric are each other's complement to it, so that the best route
// of BGP is the best route of the kernel.
const MaxPreference = 1<<31 - 1

// Defaults of what a configuration leaves out.
const (
	DefaultPort            = 179
	DefaultNormalPriority  = 1024
	DefaultHoldTime        = 240 * time.Second // what BIRD offers
	DefaultRestartTime     = 120 * time.Second
	DefaultRestartDeferral = 30 * time.Second
)

// PreferenceOf is the local preference that carries a kernel metric.
func PreferenceOf(metric uint32) uint32 {
	if metric >= MaxPreference {
		return 0
	}
	return MaxPreference - metric
}

// MetricOf is the kernel metric that a local preference stands for, at least 1: the kernel reads 0 as "not given".
func MetricOf(preference uint32) uint32 {
	if preference >= MaxPreference {
		return 1
	}
	return MaxPreference - preference
}

// Config is the whole configuration of a speaker. Values are immutable once handed over.
type Config struct {
	Generation      uint64
	RouterID        netip.Addr // IPv4
	ASNumber        uint32
	ListenPort      uint16
	ListenAddresses []netip.Addr // empty: all
	Peers           []Peer
	Filters         []bgp.Filter
	Originate       []Origination
	Export          Export
	ClusterID       netip.Addr // IPv4 if this node reflects routes, else not valid
	LogLevel        string     // "debug", "info", "warning"
	RestartDeferral time.Duration
	NormalPriority4 uint32
	NormalPriority6 uint32
	StaticRoutes    []StaticRoute
	// Notes are what the resources ask for and the configuration does not follow, for people.
	Notes []string
}

// StaticRoute is a host route to a peer by way of a gateway. Felix programs it; it is never announced.
type StaticRoute struct {
	Prefix  netip.Prefix
	Gateway netip.Addr
}

// Reflects tells whether the node is a route reflector (RFC 4456).
func (c *Config) Reflects() bool { return c.ClusterID.IsValid() }

// NormalPriority is the metric of ordinary routes of p's family.
func (c *Config) NormalPriority(p netip.Prefix) uint32 {
	if p.Addr().Is6() {
		return c.NormalPriority6
	}
	return c.NormalPriority4
}

// PeerType is where a session comes from. Of several peers on one address the one of the lowest type wins.
type PeerType uint8

// The types of peer.
const (
	PeerGlobal PeerType = iota + 1
	PeerNode
	PeerLocalWorkload
	PeerMesh
)

// NextHopMode is what the next hop of announced routes becomes.
type NextHopMode uint8

// The modes: RFC 4271's rules for the kind of session, always this node, never changed.
const (
	NextHopAuto NextHopMode = iota
	NextHopSelf
	NextHopKeep
)

// Peer is one session. Its family is that of the address.
type Peer struct {
	Name               string
	Type               PeerType
	Source             string // the resource that asks for it: "BGPPeer(tor-a)"
	Address            netip.Addr
	Port               uint16
	ASNumber           uint32
	LocalASNumber      uint32     // what the peer is shown, 0: the node's
	SourceAddress      netip.Addr // not valid: the kernel chooses
	Passive            bool
	Password           string // TCP MD5 (RFC 2385); never logged
	TTLSecurity        uint8  // hops (RFC 5082), 0: off
	RestartTime        time.Duration
	KeepaliveTime      time.Duration
	HoldTime           time.Duration
	ReflectorClient    bool
	NextHop            NextHopMode
	AllowedOwnAS       uint32
	Filters            []string
	LongLivedStaleTime time.Duration // 0: off (RFC 9494)
	BFD                BFD
	WaitingFor         string // what is missing before it is tried: "Secret tor, key password"
}

// Local is the AS number that the peer is shown.
func (p *Peer) Local(c *Config) uint32 {
	if p.LocalASNumber != 0 {
		return p.LocalASNumber
	}
	return c.ASNumber
}

// Internal tells whether the session is iBGP, judged by the AS number that the peer is shown.
func (p *Peer) Internal(c *Config) bool { return p.ASNumber == p.Local(c) }

// Origination is a prefix with communities: one that is announced without a kernel route, or one whose routes get them.
type Origination struct {
	Prefix      netip.Prefix
	Communities []Community
}

// Export is what the export decision looks at.
type Export struct {
	Pools          []Pool
	OwnBlocks      []netip.Prefix // confirmed affinities only
	Advertisements []Origination
	ServiceRanges  []netip.Prefix
	Unrouted       []netip.Prefix // no path inside goes to the kernel
}

// Pool is an address pool.
type Pool struct {
	Prefix        netip.Prefix
	DisableExport bool
}

// Route is a route as decisions see it.
type Route struct {
	Prefix      netip.Prefix
	Learned     bool // it came over BGP
	Preference  uint32
	Interface   string // outgoing interface of a local route, empty for a blackhole
	Communities []Community
	ASPath      []uint32 // leftmost first
	NextHop     netip.Addr
	Originator  netip.Addr // of a reflected route (RFC 4456), else not valid
}

// Verdict is what was decided about a route and by what: "BGPFilter(only-pods).importV4[1]", "outside every pool".
type Verdict struct {
	Accept bool
	By     string
	// Operations are what the deciding filter rule changes.
	Operations []bgp.Operation
	// filter tells that a named filter decided, so that no advertisement's communities are added.
	filter bool
}
