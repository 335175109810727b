package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/muslin-net/muslin/confd/bird2"
	"github.com/muslin-net/muslin/confd/render"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// Timing of the stand-in: how often BIRD is looked at for those who watch, how long a drain waits if nothing is said, and at most.
const (
	watchEvery   = 5 * time.Second
	defaultDrain = 30 * time.Second
	longestDrain = time.Hour
)

// Standin serves what our bird serves to operators, for a BIRD 2 in its place: it asks that, and puts its answers in bird's
// terms. It is given nothing to do by this way, and has nothing to tell felix: Apply and Routes are not served.
type Standin struct {
	birdv1.UnimplementedBirdServiceServer
	log  *slog.Logger
	bird *BIRD2

	mu    sync.Mutex    // guards the following
	timer *time.Timer   // ends a drain; nil without one
	done  chan struct{} // closed when that is over
}

// NewStandin answers for a BIRD.
func NewStandin(log *slog.Logger, b *BIRD2) *Standin { return &Standin{log: log, bird: b} }

// Peers lists the sessions. What BIRD does not tell, as histories and flaps, is left out.
func (s *Standin) Peers(ctx context.Context, r *birdv1.PeersRequest) (*birdv1.PeersResponse, error) {
	c, drain := s.bird.running()
	out := &birdv1.PeersResponse{Generation: s.generation(), Drain: drain.String()}
	if c != nil {
		out.RouterId, out.AsNumber, out.Warnings = c.RouterID.AsSlice(), uint32(c.ASNumber), c.Warnings
	}
	if out.GetGeneration() == 0 { // no BIRD runs that would have read it
		return out, nil
	}
	take := func(line string) {
		version, isVersion := strings.CutPrefix(line, "BIRD ")
		moment := func(words string) *timestamppb.Timestamp {
			_, text, _ := strings.Cut(line, words)
			if t, err := time.ParseInLocation(bird2.TimeFormat, strings.TrimSpace(text), time.Local); err == nil {
				return timestamppb.New(t)
			}
			return nil
		}
		switch {
		case isVersion:
			out.Software = "BIRD " + version
		case strings.Contains(line, "Last reboot on"):
			out.Started = moment("Last reboot on")
		case strings.Contains(line, "Last reconfiguration on"):
			out.Configured = moment("Last reconfiguration on")
		}
	}
	if err := s.bird.ask(ctx, "show status", take); err != nil {
		return nil, away(err)
	}
	list, err := s.peers(ctx, c)
	if err != nil {
		return nil, err
	}
	if r.GetPeer() != "" {
		list = slices.DeleteFunc(list, func(p *birdv1.PeerState) bool { return !is(p, r.GetPeer()) })
		if len(list) == 0 {
			return nil, status.Errorf(codes.NotFound, "there is no peer %q; ask for all to see their names", r.GetPeer())
		}
	}
	out.Peers = list
	return out, nil
}

// generation is that of the file, which lasts over restarts of confd: when it was written. 0 says that there is none.
func (s *Standin) generation() uint64 {
	info, err := os.Stat(s.bird.File)
	if err != nil {
		return 0
	}
	return uint64(info.ModTime().UnixMilli())
}

// is tells whether a peer has a name or address.
func is(p *birdv1.PeerState, who string) bool {
	a, _ := netip.AddrFromSlice(p.GetAddress())
	return p.GetName() == who || a.String() == who
}

// away turns an error of BIRD's into a status.
func away(err error) error {
	if errors.Is(err, ErrRefused) {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}

// peers are BIRD's sessions, and those of the configuration that have none.
func (s *Standin) peers(ctx context.Context, c *render.Config) ([]*birdv1.PeerState, error) {
	read := bird2.Sessions{Zone: time.Local}
	if err := s.bird.ask(ctx, "show protocols all", read.Take); err != nil {
		return nil, away(err)
	}
	watched := map[netip.Addr]string{}
	if err := s.bird.ask(ctx, "show bfd sessions", func(line string) {
		// Address, interface, state, since in two words, interval and timeout in seconds.
		if f := strings.Fields(line); len(f) == 7 {
			if a, err := netip.ParseAddr(f[0]); err == nil {
				watched[a] = fmt.Sprintf("%s, every %s s, gone after %s s", strings.ToLower(f[2]), f[5], f[6])
			}
		}
	}); err != nil && !errors.Is(err, ErrRefused) { // it refuses where no peer has BFD
		return nil, away(err)
	}
	var configured []render.Peer
	shadowed := map[string]string{}
	if c != nil {
		configured = c.Peers
		_, shadowed = bird2.Resolve(c.Peers)
	}
	byName := map[string]render.Peer{}
	for _, p := range configured {
		byName[p.Name] = p
	}
	var list []*birdv1.PeerState
	for _, one := range read.List {
		p := sessionOf(one)
		if known, ok := byName[one.Name]; ok {
			p.Passive, p.WaitingFor, p.Port = known.Passive, known.WaitingFor, uint32(known.Port)
		}
		p.Bfd = watched[one.Address]
		list = append(list, p)
	}
	for _, p := range configured {
		if by, ok := shadowed[p.Name]; ok {
			list = append(list, &birdv1.PeerState{
				Name: p.Name, Type: birdv1.PeerType(p.Type), Source: p.Source, Address: p.Address.AsSlice(), AsNumber: uint32(p.ASNumber),
				State: birdv1.SessionState_SESSION_STATE_DOWN, ShadowedBy: by + " of " + byName[by].Source,
			})
		}
	}
	slices.SortStableFunc(list, func(a, b *birdv1.PeerState) int {
		x, _ := netip.AddrFromSlice(a.GetAddress())
		y, _ := netip.AddrFromSlice(b.GetAddress())
		return cmp.Or(x.Compare(y), strings.Compare(a.GetShadowedBy(), b.GetShadowedBy()))
	})
	return list, nil
}

func sessionOf(one bird2.Session) *birdv1.PeerState {
	states := map[string]birdv1.SessionState{
		"Idle": birdv1.SessionState_SESSION_STATE_IDLE, "Connect": birdv1.SessionState_SESSION_STATE_CONNECT,
		"Active": birdv1.SessionState_SESSION_STATE_ACTIVE, "Passive": birdv1.SessionState_SESSION_STATE_ACTIVE,
		"OpenSent": birdv1.SessionState_SESSION_STATE_OPEN_SENT, "OpenConfirm": birdv1.SessionState_SESSION_STATE_OPEN_CONFIRM,
		"Established": birdv1.SessionState_SESSION_STATE_ESTABLISHED, "Close": birdv1.SessionState_SESSION_STATE_IDLE,
		"Down": birdv1.SessionState_SESSION_STATE_DOWN,
	}
	p := &birdv1.PeerState{
		Name: one.Name, Source: one.Description, Address: one.Address.AsSlice(), AsNumber: one.ASNumber, LocalAsNumber: one.LocalAS,
		State: states[one.State], LastError: one.LastError, Passive: one.State == "Passive", Received: one.Accepted + one.Filtered, Accepted: one.Accepted,
		Advertised: one.Exported, Restarting: one.Restarting,
	}
	if !one.Since.IsZero() {
		p.Since = timestamppb.New(one.Since)
	}
	if one.Source.IsValid() {
		p.LocalAddress = one.Source.AsSlice()
	}
	for prefix, kind := range map[string]birdv1.PeerType{
		"Mesh_": birdv1.PeerType_PEER_TYPE_MESH, "Global_": birdv1.PeerType_PEER_TYPE_GLOBAL, "Node_": birdv1.PeerType_PEER_TYPE_NODE,
		"Local_Workload_": birdv1.PeerType_PEER_TYPE_LOCAL_WORKLOAD,
	} {
		if strings.HasPrefix(one.Name, prefix) {
			p.Type = kind
		}
	}
	return p
}

// Show lists what BIRD can tell of routes: its table, and what it accepted of a peer or advertises to it, and what not.
func (s *Standin) Show(r *birdv1.ShowRequest, stream grpc.ServerStreamingServer[birdv1.ShowResponse]) error {
	ctx := stream.Context()
	c, _ := s.bird.running()
	peers, err := s.peers(ctx, c)
	if err != nil {
		return err
	}
	var name string
	if r.GetPeer() != "" {
		i := slices.IndexFunc(peers, func(p *birdv1.PeerState) bool { return is(p, r.GetPeer()) && p.GetShadowedBy() == "" })
		if i < 0 {
			return status.Errorf(codes.NotFound, "there is no session %q; ask for all peers to see their names", r.GetPeer())
		}
		name = peers[i].GetName()
	}
	command, why, err := question(r.GetView(), name, s.bird.Socket)
	if err != nil {
		return err
	}
	within := netip.Prefix{}
	if r.GetWithin() != nil {
		a, _ := netip.AddrFromSlice(r.GetWithin().GetAddress())
		if within = netip.PrefixFrom(a, int(r.GetWithin().GetLength())); !within.IsValid() {
			return status.Error(codes.InvalidArgument, "within: is no prefix")
		}
	}
	byName := map[string]*birdv1.PeerState{}
	for _, p := range peers {
		byName[p.GetName()] = p
	}
	var failed error
	read := bird2.Routes{Yield: func(one bird2.Route) {
		inside := !within.IsValid() || within.Bits() <= one.Prefix.Bits() && within.Contains(one.Prefix.Addr())
		if failed == nil && inside {
			failed = stream.Send(routeOf(one, byName[one.Protocol], why))
		}
	}}
	if err := s.bird.ask(ctx, command, read.Take); err != nil {
		return away(err)
	}
	read.End()
	return failed
}

// question is how BIRD is asked for a view of a session; why is what has rejected the routes of it.
func question(view birdv1.RouteView, session, socket string) (command, why string, err error) {
	const all, unknown = "show route all", "a filter (BIRD 2 does not tell which)"
	if view == birdv1.RouteView_ROUTE_VIEW_UNSPECIFIED {
		return all, "", nil
	}
	if session == "" {
		return "", "", status.Error(codes.InvalidArgument, "peer: is missing; this view is one session's")
	}
	switch view {
	case birdv1.RouteView_ROUTE_VIEW_ACCEPTED:
		return fmt.Sprintf("show route protocol '%s' all", session), "", nil
	case birdv1.RouteView_ROUTE_VIEW_ADVERTISED:
		return fmt.Sprintf("show route export '%s' all", session), "", nil
	case birdv1.RouteView_ROUTE_VIEW_REJECTED:
		return fmt.Sprintf("show route filtered protocol '%s' all", session), unknown, nil
	case birdv1.RouteView_ROUTE_VIEW_WITHHELD:
		return fmt.Sprintf("show route noexport '%s' all", session), unknown, nil
	}
	return "", "", status.Errorf(codes.Unimplemented, "the node runs BIRD 2, which does not keep what a peer sent as it was sent; "+
		"see accepted and rejected, or on the node birdc -s %s show route protocol %s", socket, session)
}

// routeOf has the session that a route came from, nil if it is this node's, and what has rejected it.
func routeOf(one bird2.Route, from *birdv1.PeerState, why string) *birdv1.ShowResponse {
	path := &birdv1.Path{
		LocalPreference: one.Preference, Metric: one.Metric, AsPath: one.ASPath, Communities: one.Communities, Med: one.MED, Origin: one.Origin,
	}
	if one.NextHop.IsValid() {
		path.NextHop = one.NextHop.AsSlice()
	}
	if from != nil {
		path.Peer, path.PeerAddress, path.Stale = from.GetName(), from.GetAddress(), from.GetRestarting()
	}
	return &birdv1.ShowResponse{
		Prefix: &birdv1.Prefix{Address: one.Prefix.Addr().AsSlice(), Length: uint32(one.Prefix.Bits())}, Path: path, Best: one.Best,
		RejectedBy: why,
	}
}

// Watch looks at BIRD's sessions now and then, and tells those that changed.
func (s *Standin) Watch(_ *birdv1.WatchRequest, stream grpc.ServerStreamingServer[birdv1.WatchResponse]) error {
	ctx := stream.Context()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	told := map[string]*birdv1.PeerState{}
	for first := true; ; first = false {
		if err := s.tell(ctx, told, stream); err != nil {
			return err
		}
		if first {
			if err := stream.Send(&birdv1.WatchResponse{SnapshotEnd: true}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-tick.C:
		}
	}
}

// tell sends the sessions that are not as they were told, and those that are gone.
func (s *Standin) tell(ctx context.Context, told map[string]*birdv1.PeerState, stream grpc.ServerStreamingServer[birdv1.WatchResponse]) error {
	c, _ := s.bird.running()
	peers, err := s.peers(ctx, c)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, p := range peers {
		if p.GetShadowedBy() != "" {
			continue
		}
		p.Received, p.Accepted, p.Advertised = 0, 0, 0 // routes are not counted for it
		key := string(p.GetAddress())
		there[key] = true
		if was := told[key]; was != nil && was.GetState() == p.GetState() && was.GetLastError() == p.GetLastError() &&
			was.GetWaitingFor() == p.GetWaitingFor() && was.GetName() == p.GetName() && was.GetSince().AsTime().Equal(p.GetSince().AsTime()) {
			continue
		}
		told[key] = p
		if err := stream.Send(&birdv1.WatchResponse{Peer: p}); err != nil {
			return err
		}
	}
	for key := range told {
		if !there[key] {
			delete(told, key)
			if err := stream.Send(&birdv1.WatchResponse{Peer: &birdv1.PeerState{Address: []byte(key)}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Drain takes the node out of service, or puts it back; a restart of confd puts it back, too.
func (s *Standin) Drain(ctx context.Context, r *birdv1.DrainRequest) (*birdv1.DrainResponse, error) {
	if r.GetCancel() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.endDrain()
		return &birdv1.DrainResponse{}, s.step(ctx, bird2.InService)
	}
	wait := defaultDrain
	if r.GetWait() != nil {
		if wait = r.GetWait().AsDuration(); r.GetWait().CheckValid() != nil || wait < 0 || wait > longestDrain {
			return nil, status.Error(codes.InvalidArgument, "wait: give 0 to 1h")
		}
	}
	done, err := s.beginDrain(ctx, wait)
	if err != nil || r.GetDetach() {
		return &birdv1.DrainResponse{}, err
	}
	select {
	case <-done:
		return &birdv1.DrainResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (s *Standin) beginDrain(ctx context.Context, wait time.Duration) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endDrain()
	_, drain := s.bird.running()
	if err := s.step(ctx, max(drain, bird2.Draining)); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	s.done = done
	s.timer = time.AfterFunc(wait, func() { s.drained(done) })
	return done, nil
}

// drained ends a drain, unless it was taken back or begun anew meanwhile. It goes on trying.
func (s *Standin) drained(done chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done != done {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := s.step(ctx, bird2.Drained); err != nil {
		s.log.Warn("the node's routes are not withdrawn yet, trying again", "error", err)
		s.timer = time.AfterFunc(retryFirst, func() { s.drained(done) })
		return
	}
	s.endDrain()
}

// endDrain ends the wait of a drain that is under way, and releases whoever asked for it.
func (s *Standin) endDrain() {
	if s.done != nil {
		s.timer.Stop()
		close(s.done)
		s.done = nil
	}
}

func (s *Standin) step(ctx context.Context, d bird2.Drain) error {
	if err := s.bird.Drain(ctx, d); err != nil {
		return away(err)
	}
	s.log.Info("drain", "state", d)
	return nil
}
