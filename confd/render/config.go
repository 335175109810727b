// Package render computes a node's BGP configuration from what typha tells of the cluster: which sessions the node has and
// how each behaves, what it announces, and what filters decide. It follows the rules that users of Calico rely on (spec:
// "what confd renders").
//
// It refuses everything else: no I/O, no clock, no wire messages. The outcome depends on the items alone, never on the order
// in which they came, and is sorted.
package render

import (
	"net/netip"
	"time"
)

// Config is the configuration of a node's speaker. Unset values mean the speaker's defaults.
type Config struct {
	RouterID        netip.Addr // IPv4
	ASNumber        uint32
	ListenPort      uint16
	ListenAddresses []netip.Addr // empty: all
	ClusterID       netip.Addr   // IPv4 if the node reflects routes, else not valid
	LogLevel        string       // "debug", "info", "warning"
	NormalPriority4 uint32
	NormalPriority6 uint32
	Peers           []Peer // by type and name
	Filters         []Filter
	Originate       []netip.Prefix
	Pools           []Pool
	OwnBlocks       []netip.Prefix
	Advertisements  []Advertisement
	ServiceRanges   []netip.Prefix
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
)

// String is the word that session names begin with.
func (t PeerType) String() string { return [...]string{"", "Mesh", "Global", "Node"}[t] }

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
	ReflectorClient bool
	NextHop         NextHopMode
	AllowedOwnAS    uint32
	Filters         []string
}

// Pool is an address pool.
type Pool struct {
	Prefix        netip.Prefix
	DisableExport bool
}

// Advertisement gives communities to the routes inside a prefix.
type Advertisement struct {
	Prefix      netip.Prefix
	Communities []string // values
}

// Filter is a BGPFilter.
type Filter struct {
	Name                               string
	Import4, Export4, Import6, Export6 []Rule
}

// Operator relates a route's prefix to a rule's.
type Operator uint8

// The operators.
const (
	NoPrefix Operator = iota
	Equal
	NotEqual
	In
	NotIn
)

// SessionType restricts a rule to a kind of session.
type SessionType uint8

// The kinds of session.
const (
	AnySession SessionType = iota
	External               // eBGP
	Internal               // iBGP
)

// Rule is one rule of a filter.
type Rule struct {
	Accept          bool
	Prefix          netip.Prefix
	Operator        Operator
	MinLength       int // 0: not given
	MaxLength       int // 0: not given
	FromRemotePeers bool
	Interface       string
	SessionType     SessionType
	Community       string
	ASPrefix        []uint32
	Priority        uint32
	Operations      []Operation
}

// Operation changes an accepted route in one way: exactly one field is set.
type Operation struct {
	AddCommunity string
	Prepend      []uint32
	SetPriority  uint32
}
