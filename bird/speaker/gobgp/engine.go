// Package gobgp is the speaker's engine on osrg/gobgp v3. It converts between our types and gobgp's protobuf, knows the
// traps of that version, and decides nothing.
//
// The traps that shaped it: a peer's MD5 key stays on the listener unless the peer is removed by an update that carries it
// (DeletePeer); a change of reflector role is noticed only with another change (peer's description); a failed start leaves
// listeners open (Start); the best-path watch wants multipath switched on to report equal paths (Start); failures to connect
// are told to the log alone, at debug level (logger); a session that was lost rests for 5 s, whatever is configured (cutRest).
package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// Names of the two policies; assignments refer to them, so they never change.
const (
	importPolicy = "import"
	exportPolicy = "export"
)

// Engine is a gobgp server in this process.
type Engine struct {
	server  *server.BgpServer
	log     *slog.Logger
	reasons *logger
	feed    *feed

	mu     sync.Mutex // guards the following
	peers  map[netip.Addr]speaker.Neighbor
	states map[netip.Addr]speaker.State
	rests  map[netip.Addr]*rest
	dials  map[netip.Addr]context.CancelFunc // of sessions that wait for a connection
	ending map[netip.Addr]chan struct{}      // closed when the session, which Stop ends, is no longer up

	ctx      context.Context   //nolint:containedctx // of New: it bounds what events begin
	accepted chan *net.TCPConn // what comes out of it is a connection of gobgp's; nil: gobgp dials itself
	lent     bool              // sessions that are up have connections of ours
	untold   untold
	away     absences
}

// New starts gobgp's loop, without listening. Events go to events until ctx ends; the loop itself runs on, since gobgp has
// no way to end it, and sessions stay up: a process that just exits is what graceful restart wants.
func New(ctx context.Context, log *slog.Logger, events speaker.Events) (*Engine, error) {
	return newEngine(ctx, log, events, (*feed).attach)
}

func newEngine(ctx context.Context, log *slog.Logger, events speaker.Events, attach func(*feed, *server.BgpServer)) (*Engine, error) {
	e := &Engine{
		log:    log,
		feed:   newFeed(log),
		peers:  map[netip.Addr]speaker.Neighbor{},
		states: map[netip.Addr]speaker.State{},
		rests:  map[netip.Addr]*rest{},
		dials:  map[netip.Addr]context.CancelFunc{},
		ctx:    ctx,
	}
	e.feed.complete = func() { e.hide(netip.Addr{}) }
	e.reasons = &logger{log: log, events: events, shutdown: e.startAgain, up: e.takeOver, idle: e.goesIdle}
	e.server = server.NewBgpServer(server.LoggerOption(e.reasons), server.TimingHookOption(afterEach(func() {
		e.show()
		e.away.expect()
	})))
	if e.lent = lends(e.server); !e.lent {
		unexpected(log, "it writes and reads UPDATEs by itself, sends nobody several paths to a prefix, forgets the routes of a peer that restarts once an attempt to reach it fails, and may tell a peer late that we have restarted")
	}
	go e.server.Serve()
	// One watch for all: only within a watch does gobgp keep the order, and an End-of-RIB that overtakes the paths before it
	// would make us call the table complete too early.
	watch := &api.WatchEventRequest{
		Peer: &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{
			{Type: api.WatchEventRequest_Table_Filter_BEST}, {Type: api.WatchEventRequest_Table_Filter_EOR},
		}},
	}
	best, core := newBestReader(), newCoreReader()
	err := e.server.WatchEvent(ctx, watch, func(r *api.WatchEventResponse) { e.feed.tell(ctx, r) })
	if err != nil {
		return nil, fmt.Errorf("gobgp: watching: %w", err)
	}
	attach(e.feed, e.server)
	go e.feed.run(ctx, func(paths *bestPaths) { core.tell(events, paths) }, func(r *api.WatchEventResponse) {
		if p := r.GetPeer(); p != nil {
			e.tellSession(events, p)
		} else {
			e.tellTable(events, best, r.GetTable().GetPaths())
		}
	})
	return e, nil
}

// Start opens the listeners.
func (e *Engine) Start(g speaker.Global) error {
	global := &api.Global{
		Asn: g.ASNumber, RouterId: g.RouterID.String(), ListenPort: int32(g.Port),
		UseMultiplePaths: true,
		Families:         []uint32{0, 1}, // IPv4 and IPv6 unicast in gobgp's own numbering
	}
	for _, a := range g.Addresses {
		global.ListenAddresses = append(global.ListenAddresses, a.String())
	}
	if err := e.server.StartBgp(context.Background(), &api.StartBgpRequest{Global: global}); err != nil {
		_ = e.Stop() // closes the listeners that did open
		return fmt.Errorf("listening for BGP on %s: %w; free the port, or set another listenPort", listening(g), err)
	}
	e.mu.Lock()
	e.accepted = accepted(e.server)
	e.mu.Unlock()
	err := e.SetProgram(policy.Program{})
	for _, direction := range []api.PolicyDirection{api.PolicyDirection_IMPORT, api.PolicyDirection_EXPORT} {
		name, fallback := importPolicy, api.RouteAction_ACCEPT
		if direction == api.PolicyDirection_EXPORT {
			name, fallback = exportPolicy, api.RouteAction_REJECT
		}
		err = errors.Join(err, e.server.SetPolicyAssignment(context.Background(), &api.SetPolicyAssignmentRequest{
			Assignment: &api.PolicyAssignment{
				Name: "global", Direction: direction, Policies: []*api.Policy{{Name: name}}, DefaultAction: fallback,
			},
		}))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("gobgp: first policy: %w", err), e.Stop())
	}
	return nil
}

func listening(g speaker.Global) string {
	if len(g.Addresses) == 0 {
		return fmt.Sprintf("port %d", g.Port)
	}
	return fmt.Sprintf("%v port %d", g.Addresses, g.Port)
}

// Stop closes sessions and listeners.
func (e *Engine) Stop() error {
	e.quiesce()
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.peers)
	clear(e.states)
	clear(e.rests)
	for a := range e.dials {
		e.endDial(a)
	}
	if err := e.server.StopBgp(context.Background(), &api.StopBgpRequest{}); err != nil {
		return fmt.Errorf("gobgp: stopping: %w", err)
	}
	return nil
}

// quietWithin bounds how long Stop waits for sessions to end: a peer that reads nothing is left behind.
const quietWithin = time.Second

// quiesce ends the sessions that are up, and waits until they have: gobgp clears its configuration while it stops, whoever
// is reading it for what a peer has just sent.
func (e *Engine) quiesce() {
	e.mu.Lock()
	ending := map[netip.Addr]chan struct{}{}
	for a, state := range e.states {
		if state == speaker.Established {
			ending[a] = make(chan struct{})
		}
	}
	e.ending = maps.Clone(ending)
	e.mu.Unlock()
	for a := range ending {
		// A peer that has just gone has no session to end.
		_ = e.server.DisablePeer(context.Background(), &api.DisablePeerRequest{Address: a.String()})
	}
	enough := time.After(quietWithin)
	for _, ended := range ending {
		select {
		case <-ended:
		case <-enough:
			return
		}
	}
}

// AddPeer adds a session.
func (e *Engine) AddPeer(n speaker.Neighbor) error {
	e.mu.Lock()
	before, there := e.peers[n.Address]
	e.peers[n.Address] = n // what is told of it from now on is told of this session, and that it waits begins to dial
	e.untold.follow(n.Address, n)
	e.mu.Unlock()
	if err := e.server.AddPeer(context.Background(), &api.AddPeerRequest{Peer: e.toPeer(n)}); err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.peers, n.Address)
		if there { // it is not new
			e.peers[n.Address] = before
		}
		e.untold.follow(n.Address, before)
		return fmt.Errorf("gobgp: adding peer %s: %w", n.Address, err)
	}
	return nil
}

// UpdatePeer changes a session.
func (e *Engine) UpdatePeer(n speaker.Neighbor) error {
	if _, err := e.server.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: e.toPeer(n)}); err != nil {
		return fmt.Errorf("gobgp: updating peer %s: %w", n.Address, err)
	}
	closeForgotten(n.Address, n.SourceAddress)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers[n.Address] = n
	e.feed.follow(e.peers)
	e.endDial(n.Address) // it may have another address or key to dial with
	e.followDial(n.Address, e.states[n.Address])
	return nil
}

// toPeer leaves dialling to us where that works, and does not send what cannot be taken back.
func (e *Engine) toPeer(n speaker.Neighbor) *api.Peer {
	n.AllPaths = n.AllPaths && e.lent
	p := toPeer(n)
	e.mu.Lock()
	defer e.mu.Unlock()
	p.Transport.PassiveMode = n.Passive || e.accepted != nil
	return p
}

// DeletePeer ends a session.
func (e *Engine) DeletePeer(address netip.Addr) error {
	e.mu.Lock()
	n, known := e.peers[address]
	delete(e.peers, address)
	delete(e.rests, address)
	e.untold.follow(address, speaker.Neighbor{})
	e.endDial(address)
	e.mu.Unlock()
	hangUp(address, n.SourceAddress)
	if known && n.Password != "" {
		n.Password, n.Passive = "", true
		if _, err := e.server.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: toPeer(n)}); err != nil {
			return fmt.Errorf("gobgp: taking the key of peer %s off: %w", address, err)
		}
	}
	if err := e.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: address.String()}); err != nil {
		return fmt.Errorf("gobgp: deleting peer %s: %w", address, err)
	}
	closeForgotten(address, n.SourceAddress)
	return nil
}

// SetProgram replaces the policy.
func (e *Engine) SetProgram(p policy.Program) error {
	if err := e.server.SetPolicies(context.Background(), toPolicies(p)); err != nil {
		return fmt.Errorf("gobgp: replacing the policy: %w", err)
	}
	return nil
}

// RefreshIn judges again what the peer has sent.
func (e *Engine) RefreshIn(address netip.Addr) error {
	return e.refresh(address, api.ResetPeerRequest_IN)
}

// RefreshOut sends the peer again what it may have.
func (e *Engine) RefreshOut(address netip.Addr) error {
	return e.refresh(address, api.ResetPeerRequest_OUT)
}

func (e *Engine) refresh(address netip.Addr, direction api.ResetPeerRequest_SoftResetDirection) error {
	err := e.server.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: address.String(), Soft: true, Direction: direction})
	if err != nil {
		return fmt.Errorf("gobgp: refreshing peer %s: %w", address, err)
	}
	return nil
}

// Announce adds or replaces an own route.
func (e *Engine) Announce(a speaker.Announcement) error {
	path, err := toPath(a)
	if err == nil {
		_, err = e.server.AddPath(context.Background(), &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: path})
	}
	if err != nil {
		return fmt.Errorf("gobgp: announcing %s: %w", a.Prefix, err)
	}
	return nil
}

// Withdraw removes an own route.
func (e *Engine) Withdraw(prefix netip.Prefix) error {
	path, err := toPath(speaker.Announcement{Prefix: prefix})
	if err == nil {
		err = e.server.DeletePath(context.Background(), &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: path})
	}
	if err != nil {
		return fmt.Errorf("gobgp: withdrawing %s: %w", prefix, err)
	}
	return nil
}

// Peers lists the sessions.
func (e *Engine) Peers() ([]speaker.PeerCounters, error) {
	var out []speaker.PeerCounters
	err := e.server.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		out = append(out, fromPeer(p))
	})
	if err != nil {
		return nil, fmt.Errorf("gobgp: listing peers: %w", err)
	}
	return out, nil
}

// Routes lists a table.
func (e *Engine) Routes(ctx context.Context, view speaker.View, peer netip.Addr, v6 bool, yield func(speaker.Path)) error {
	r := &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: family(v6)}
	if view != speaker.Table {
		r.TableType, r.Name = api.TableType_ADJ_IN, peer.String()
	}
	if view == speaker.Advertised {
		r.TableType = api.TableType_ADJ_OUT
	}
	var bad error
	err := e.server.ListPath(ctx, r, func(d *api.Destination) {
		for _, p := range d.Paths {
			path, err := fromPath(p)
			if err != nil {
				bad = err
				continue
			}
			yield(path)
		}
	})
	if err = errors.Join(err, bad); err != nil {
		return fmt.Errorf("gobgp: listing routes: %w", err)
	}
	return nil
}
