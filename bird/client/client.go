// Package client talks to bird over its unix socket: felix exchanges routes with it, confd hands it configurations, and
// probes and calicoctl look at its sessions. What it exports are Go types; only Apply takes the wire's configuration, which
// confd makes.
package client

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/muslin-net/muslin/internal/rpc"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// DefaultSocket is where bird serves.
const DefaultSocket = "/run/calico/bird.sock"

// Client is a connection to the bird of this node. It is made when first used and again whenever it breaks. Its methods may
// be called from several goroutines.
type Client struct {
	conn *grpc.ClientConn
	bird birdv1.BirdServiceClient
}

// New prepares a connection to the socket.
func New(socket string) (*Client, error) {
	conn, err := rpc.DialUnix(socket)
	if err != nil {
		return nil, fmt.Errorf("bird at %s: %w", socket, err)
	}
	return &Client{conn: conn, bird: birdv1.NewBirdServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Applied says what an Apply did, by names of sessions.
type Applied struct {
	Generation                           uint64
	Added, Removed, Restarted, Refreshed []string
}

// Apply makes config the running one. A gRPC status of InvalidArgument means that it never will be; after any other error
// trying again is right.
func (c *Client) Apply(ctx context.Context, config *birdv1.Config) (Applied, error) {
	r, err := c.bird.Apply(ctx, &birdv1.ApplyRequest{Config: config})
	if err != nil {
		return Applied{}, fmt.Errorf("bird: applying generation %d: %w", config.GetGeneration(), err)
	}
	return Applied{
		Generation: r.GetGeneration(), Added: r.GetAdded(), Removed: r.GetRemoved(), Restarted: r.GetRestarted(), Refreshed: r.GetRefreshed(),
	}, nil
}

// Drain announces every route as about to go, and withdraws all after wait; it returns when that is done.
func (c *Client) Drain(ctx context.Context, wait time.Duration) error {
	if _, err := c.bird.Drain(ctx, &birdv1.DrainRequest{Wait: durationpb.New(wait)}); err != nil {
		return fmt.Errorf("bird: draining: %w", err)
	}
	return nil
}

// BeginDrain is Drain without waiting; Status.Drain tells how far it is.
func (c *Client) BeginDrain(ctx context.Context, wait time.Duration) error {
	if _, err := c.bird.Drain(ctx, &birdv1.DrainRequest{Wait: durationpb.New(wait), Detach: true}); err != nil {
		return fmt.Errorf("bird: draining: %w", err)
	}
	return nil
}

// Undrain takes a Drain back.
func (c *Client) Undrain(ctx context.Context) error {
	if _, err := c.bird.Drain(ctx, &birdv1.DrainRequest{Cancel: true}); err != nil {
		return fmt.Errorf("bird: going back into service: %w", err)
	}
	return nil
}

// Status is bird and its sessions.
type Status struct {
	Generation uint64 // of the running configuration, 0 if there is none
	RouterID   netip.Addr
	ASNumber   uint32
	Started    time.Time
	Configured time.Time // zero if it never was
	Software   string
	Drain      string   // "in service", "draining", "drained"
	Warnings   []string // what is not as the resources ask for, sorted
	Peers      []Peer   // by address
}

// Peer is a session and how it does.
type Peer struct {
	Name         string
	Type         PeerType
	Source       string // the resource that asks for it: "BGPPeer(tor-a)"
	Address      netip.Addr
	ASNumber     uint32
	State        State
	Since        time.Time // zero if it never had another state
	LastError    string    // what it last failed with
	Diagnosis    string    // what seems to be the matter, where LastError alone does not tell
	Passive      bool
	Received     uint64
	Accepted     uint64
	Advertised   uint64
	Restarting   bool         // the peer restarts and its routes are kept
	ShadowedBy   string       // another peer of the configuration has the address; this one has no session
	WaitingFor   string       // what is missing before it is tried: "Secret tor, key password"
	History      []Transition // newest first
	LocalAddress netip.Addr   // not valid if there is no connection
	Flaps        uint64       // how often it was lost after it had been up
	LocalAS      uint32       // what the peer is shown
	Port         uint16
	BFD          string // "up, 50ms x 3", "down, …"; empty without BFD
}

// Transition is a change of state. History has the newest first.
type Transition struct {
	At     time.Time
	State  State
	Reason string
}

// PeerType is where a session comes from.
type PeerType uint8

// The types, in the order of the wire.
const (
	Mesh PeerType = iota + 1
	Global
	NodeSpecific
	LocalWorkload
)

// String is the name in tables of calicoctl.
func (t PeerType) String() string {
	if t < Mesh || t > LocalWorkload {
		return "unknown"
	}
	return [...]string{"node-to-node mesh", "global", "node specific", "local workload"}[t-Mesh]
}

// State is a state of RFC 4271 section 8.
type State uint8

// The states, in the order of the wire.
const (
	StateUnknown State = iota
	Idle
	Connect
	Active
	OpenSent
	OpenConfirm
	Established
	Down // administratively, by a limit, or for want of the address
)

// String is the state's name.
func (s State) String() string {
	if s > Down {
		return "Unknown"
	}
	return [...]string{"Unknown", "Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Down"}[s]
}

// Protocol is the state in the words of BIRD, as tables of calicoctl have it.
func (p Peer) Protocol() string {
	switch p.State {
	case Established:
		return "up"
	case Down:
		return "down"
	default:
		return "start"
	}
}

// Info is the state, and what the session last failed with, as tables of calicoctl have it.
func (p Peer) Info() string {
	switch {
	case p.State == Established:
		return p.State.String()
	case p.ShadowedBy != "":
		return "Down: the address is " + p.ShadowedBy + "'s"
	case p.WaitingFor != "":
		return "Down: waiting for " + p.WaitingFor
	case p.State == Active && p.Passive && p.LastError == "" && p.Diagnosis == "":
		return "Passive"
	}
	info := strings.TrimSpace(p.State.String() + " " + p.LastError)
	if p.Diagnosis == "" {
		return info
	}
	return info + ": " + p.Diagnosis
}

// Reason is why a session is not up; empty if it is.
func (p Peer) Reason() string {
	if p.State == Established {
		return ""
	}
	for _, state := range []string{p.State.String() + ": ", p.State.String() + " ", p.State.String()} {
		if rest, ok := strings.CutPrefix(p.Info(), state); ok {
			return rest
		}
	}
	return ""
}

// Uptime is how long a session has been up; 0 if it is not.
func (p Peer) Uptime(now time.Time) time.Duration {
	if p.State != Established || p.Since.IsZero() {
		return 0
	}
	return max(now.Sub(p.Since), 0)
}

// Peers reports the sessions; peer, a name or an address, picks one, and empty means all.
func (c *Client) Peers(ctx context.Context, peer string) (Status, error) {
	r, err := c.bird.Peers(ctx, &birdv1.PeersRequest{Peer: peer})
	if err != nil {
		return Status{}, fmt.Errorf("bird: listing peers: %w", err)
	}
	return statusOf(r), nil
}

// ReadPeers reads an answer to RelayPeers.
func ReadPeers(body []byte) (Status, error) {
	r := &birdv1.PeersResponse{}
	if err := proto.Unmarshal(body, r); err != nil {
		return Status{}, fmt.Errorf("answer of bird: %w", err)
	}
	return statusOf(r), nil
}

func statusOf(r *birdv1.PeersResponse) Status {
	out := Status{
		Generation: r.GetGeneration(), RouterID: address(r.GetRouterId()), ASNumber: r.GetAsNumber(),
		Started: moment(r.GetStarted()), Configured: moment(r.GetConfigured()), Software: r.GetSoftware(), Drain: r.GetDrain(), Warnings: r.GetWarnings(),
	}
	for _, p := range r.GetPeers() {
		out.Peers = append(out.Peers, peerOf(p))
	}
	return out
}

func peerOf(p *birdv1.PeerState) Peer {
	out := Peer{
		Name: p.GetName(), Type: PeerType(p.GetType()), Source: p.GetSource(), Address: address(p.GetAddress()), ASNumber: p.GetAsNumber(),
		State: State(p.GetState()), Since: moment(p.GetSince()), LastError: p.GetLastError(), Passive: p.GetPassive(),
		Received: p.GetReceived(), Accepted: p.GetAccepted(), Advertised: p.GetAdvertised(), Restarting: p.GetRestarting(),
		ShadowedBy: p.GetShadowedBy(), WaitingFor: p.GetWaitingFor(), LocalAddress: address(p.GetLocalAddress()),
		Flaps: p.GetFlaps(), LocalAS: p.GetLocalAsNumber(), Diagnosis: p.GetDiagnosis(), Port: uint16(p.GetPort()), BFD: p.GetBfd(),
	}
	for _, t := range p.GetHistory() {
		out.History = append(out.History, Transition{At: moment(t.GetAt()), State: State(t.GetState()), Reason: t.GetReason()})
	}
	return out
}

// address is not valid for anything but 4 or 16 bytes.
func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}

func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
