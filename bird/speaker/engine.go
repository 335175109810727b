// Package speaker drives a BGP engine: it holds what is configured, what this node announces and what felix knows of next
// hops, and asks the engine for the difference only. It keeps the best paths for felix, and the history of the sessions.
//
// The engine stands behind an interface (Engine), so that gobgp can be replaced. All decisions are package policy's.
package speaker

import (
	"context"
	"net/netip"
	"time"

	"github.com/muslin-net/muslin/bird/policy"
)

// Engine is what a speaker needs of a BGP implementation. Methods may be called from several goroutines.
type Engine interface {
	// Start opens the listeners and begins with empty tables and no peers. After an error nothing is open.
	Start(g Global) error
	// Stop closes every session with a Cease, and the listeners. Tables are empty after it.
	Stop() error
	// AddPeer adds a session; its address must be new.
	AddPeer(n Neighbor) error
	// UpdatePeer changes a session, and restarts it if what changed is part of the OPEN or of the connection.
	UpdatePeer(n Neighbor) error
	// DeletePeer ends a session with a Cease; its routes are gone at once.
	DeletePeer(address netip.Addr) error
	// SetProgram replaces the policy. Routes are judged by it from now on; those already there by RefreshIn and RefreshOut.
	SetProgram(p policy.Program) error
	// RefreshIn judges again what the peer has sent.
	RefreshIn(address netip.Addr) error
	// RefreshOut sends the peer again what it may have. It takes nothing back.
	RefreshOut(address netip.Addr) error
	// Announce adds or replaces an own route.
	Announce(a Announcement) error
	// Withdraw removes an own route.
	Withdraw(prefix netip.Prefix) error
	// Peers lists the sessions with their counters, but for what is advertised. It costs a walk over what each peer has sent.
	Peers() ([]PeerCounters, error)
	// Routes lists a table, of a peer unless it is Table.
	Routes(ctx context.Context, view View, peer netip.Addr, v6 bool, yield func(Path)) error
}

// Events is what an engine tells. Calls come one at a time, in order, and must return quickly.
type Events interface {
	// Best says which learned paths are best for a prefix now; none if there are none, or an own route is better. Prefixes may
	// share the list, and none is named in it.
	Best(prefix netip.Prefix, paths []Path)
	// Session says that a session has changed its state.
	Session(address netip.Addr, state State)
	// EndOfRIB says that a peer has sent all that it has (RFC 4724).
	EndOfRIB(address netip.Addr)
	// Trouble says why a session fails, in words. Empty ones say that it has come up. Against Session it may come early, never
	// late: why a session is lost may be told before Session has told that it is up.
	Trouble(address netip.Addr, reason string)
}

// Global is what concerns all sessions. Changing it takes a new Start.
type Global struct {
	ASNumber  uint32
	RouterID  netip.Addr
	Port      uint16
	Addresses []netip.Addr // empty: all
}

// Neighbor is a session as the engine sees it.
type Neighbor struct {
	policy.Peer
	LocalAS    uint32
	Internal   bool
	Client     bool       // the engine lets any route out to it, as to a reflector's client; the program says which
	ClusterID  netip.Addr // of this reflector
	AllPaths   bool       // send every path that the program lets out, if the peer takes them (RFC 7911)
	Restarting bool       // the process has restarted: set the R bit and wait for End-of-RIB (RFC 4724)
	Deferral   time.Duration
}

// Announcement is an own route. Its next hop is this node.
type Announcement struct {
	Prefix      netip.Prefix
	Preference  uint32
	Communities []policy.Community // including tags
}

// State is a state of RFC 4271 section 8.
type State uint8

// The states.
const (
	StateUnknown State = iota
	Idle
	Connect
	Active
	OpenSent
	OpenConfirm
	Established
	Down // administratively, or by a limit
)

// String is the name that operators know.
func (s State) String() string {
	return [...]string{"Unknown", "Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Down"}[s]
}

// Path is one way to a prefix.
type Path struct {
	Prefix      netip.Prefix
	NextHop     netip.Addr
	Peer        netip.Addr // not valid: an own route
	Preference  uint32
	ASPath      []uint32
	Communities []policy.Community // without tags
	MED         uint32
	Origin      string // "igp", "egp", "incomplete"
	Originator  netip.Addr
	Stale       bool // the peer restarts, and the path is kept for it
	Best        bool // in listings of Table
}

// route is the path as policy sees it.
func (p *Path) route() policy.Route {
	return policy.Route{
		Prefix: p.Prefix, Learned: p.Peer.IsValid(), Preference: p.Preference, Communities: p.Communities,
		ASPath: p.ASPath, NextHop: p.NextHop, Originator: p.Originator,
	}
}

// PeerCounters is what an engine counts of a session.
type PeerCounters struct {
	Address                        netip.Addr
	LocalAddress                   netip.Addr // not valid if there is no connection
	Received, Accepted, Advertised uint64
	Restarting                     bool // the peer restarts and its routes are kept
	AllPaths                       bool // the session is up, and every path to a prefix is sent
}

// View is a table of an engine.
type View uint8

// The views.
const (
	Table      View = iota // every path that was accepted, own ones too
	Received               // what a peer sent
	Advertised             // what a peer was sent
)
