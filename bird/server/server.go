// Package server serves bird.v1 on a unix socket: it turns wire messages into calls of the speaker, and keeps on disk what
// was applied, so that bird starts with it.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/bird/speaker"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// defaultDrain is the time between announcing that routes will go and their withdrawal.
const defaultDrain = 30 * time.Second

// Server implements bird.v1.
type Server struct {
	birdv1.UnimplementedBirdServiceServer

	log      *slog.Logger
	speaker  *speaker.Speaker
	saved    *Saved
	instance string
	software string
	level    *slog.LevelVar                // nil: given at the start, for good
	applied  atomic.Pointer[birdv1.Config] // what was saved last
}

// New returns a server of the speaker. instance names this run of bird; software is its version, for people. level is set to
// what configurations say about the log, unless the start gave another than the ordinary one.
func New(log *slog.Logger, level *slog.LevelVar, s *speaker.Speaker, saved *Saved, instance, software string) *Server {
	if level.Level() != slog.LevelInfo {
		level = nil
	}
	return &Server{log: log, level: level, speaker: s, saved: saved, instance: instance, software: software}
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) { birdv1.RegisterBirdServiceServer(g, s) }

// Resume makes the speaker what it was when the process before this one ended.
func (s *Server) Resume() {
	routes, err := s.saved.Routes()
	if err != nil {
		s.log.Warn("own routes of before the restart are lost; felix brings them again", "error", err)
	}
	s.speaker.Restore(routes)
	m, err := s.saved.Config()
	if err != nil {
		s.log.Warn("the saved configuration cannot be used; confd brings it again", "error", err)
		return
	}
	if m == nil {
		return
	}
	if _, err := s.apply(m); err != nil {
		s.log.Warn("the saved configuration does not run", "error", err)
	}
}

func (s *Server) apply(m *birdv1.Config) (speaker.Changes, error) {
	c, err := readConfig(m)
	if err != nil {
		return speaker.Changes{}, errors.Join(speaker.ErrInvalid, err)
	}
	changes, err := s.speaker.Apply(c)
	level, given := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn}[c.LogLevel]
	if given && s.level != nil && !errors.Is(err, speaker.ErrInvalid) {
		s.level.Set(level)
	}
	return changes, err
}

// Apply makes a configuration the running one.
func (s *Server) Apply(_ context.Context, r *birdv1.ApplyRequest) (*birdv1.ApplyResponse, error) {
	changes, err := s.apply(r.GetConfig())
	if errors.Is(err, speaker.ErrInvalid) {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err == nil && proto.Equal(r.GetConfig(), s.applied.Load()) {
		return &birdv1.ApplyResponse{Generation: r.GetConfig().GetGeneration()}, nil // repeated, to be sure
	}
	// From here on it is the configuration, whether or not all of it runs yet.
	if saveErr := s.saved.SetConfig(r.GetConfig()); saveErr != nil {
		return nil, status.Errorf(codes.Internal, "applied, but a restart would lose it: %v", saveErr)
	}
	s.applied.Store(r.GetConfig())
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "not all of it runs, bird tries again: %v", err)
	}
	s.log.Info("applied", "generation", r.GetConfig().GetGeneration(), "added", changes.Added, "removed", changes.Removed,
		"restarted", changes.Restarted, "refreshed", changes.Refreshed)
	return &birdv1.ApplyResponse{
		Generation: r.GetConfig().GetGeneration(), Added: changes.Added, Removed: changes.Removed,
		Restarted: changes.Restarted, Refreshed: changes.Refreshed,
	}, nil
}

// Peers lists the sessions.
func (s *Server) Peers(_ context.Context, r *birdv1.PeersRequest) (*birdv1.PeersResponse, error) {
	list, err := s.speaker.Peers(r.GetPeer())
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if r.GetPeer() != "" && len(list) == 0 {
		return nil, status.Errorf(codes.NotFound, "there is no peer %q; ask for all to see their names", r.GetPeer())
	}
	st := s.speaker.Status()
	out := &birdv1.PeersResponse{
		Generation: st.Generation, RouterId: st.RouterID.AsSlice(), AsNumber: st.ASNumber, Started: toTime(st.Started),
		Configured: toTime(st.Configured), Software: s.software, Drain: st.Drain.String(), Warnings: st.Warnings,
	}
	for _, p := range list {
		out.Peers = append(out.Peers, toPeer(p))
	}
	return out, nil
}

// Watch streams changes of sessions.
func (s *Server) Watch(_ *birdv1.WatchRequest, stream grpc.ServerStreamingServer[birdv1.WatchResponse]) error {
	w := s.speaker.WatchSessions()
	defer w.Close()
	for first := true; ; first = false {
		if err := s.sendChanged(w.Take(), stream); err != nil {
			return err
		}
		if first {
			if err := stream.Send(&birdv1.WatchResponse{SnapshotEnd: true}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-w.Changed():
		}
	}
}

func (s *Server) sendChanged(changed []netip.Addr, stream grpc.ServerStreamingServer[birdv1.WatchResponse]) error {
	if len(changed) == 0 {
		return nil
	}
	there := map[netip.Addr]*birdv1.PeerState{}
	for _, p := range s.speaker.Sessions("") {
		if p.ShadowedBy == "" {
			there[p.Peer.Address] = toPeer(p)
		}
	}
	for _, a := range changed {
		p := there[a]
		if p == nil {
			p = &birdv1.PeerState{Address: a.AsSlice()}
		}
		if err := stream.Send(&birdv1.WatchResponse{Peer: p}); err != nil {
			return err
		}
	}
	return nil
}

// Drain takes the node out of service, or puts it back.
func (s *Server) Drain(ctx context.Context, r *birdv1.DrainRequest) (*birdv1.DrainResponse, error) {
	if r.GetCancel() {
		if err := s.speaker.Undrain(); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return &birdv1.DrainResponse{}, nil
	}
	wait := defaultDrain
	if r.GetWait() != nil {
		if wait = r.GetWait().AsDuration(); r.GetWait().CheckValid() != nil || wait < 0 || wait > time.Hour {
			return nil, status.Error(codes.InvalidArgument, "wait: give 0 to 1h")
		}
	}
	if r.GetDetach() {
		begun, stop := context.WithCancel(ctx)
		stop() // the draining goes on without us
		ctx = begun
	}
	if err := s.speaker.Drain(ctx, wait); err != nil && !r.GetDetach() {
		return nil, status.FromContextError(err).Err()
	}
	return &birdv1.DrainResponse{}, nil
}

// Show lists routes.
func (s *Server) Show(r *birdv1.ShowRequest, stream grpc.ServerStreamingServer[birdv1.ShowResponse]) error {
	looks := map[birdv1.RouteView]speaker.Look{
		birdv1.RouteView_ROUTE_VIEW_UNSPECIFIED: speaker.LookTable, birdv1.RouteView_ROUTE_VIEW_RECEIVED: speaker.LookReceived,
		birdv1.RouteView_ROUTE_VIEW_ACCEPTED: speaker.LookAccepted, birdv1.RouteView_ROUTE_VIEW_REJECTED: speaker.LookRejected,
		birdv1.RouteView_ROUTE_VIEW_ADVERTISED: speaker.LookAdvertised, birdv1.RouteView_ROUTE_VIEW_WITHHELD: speaker.LookWithheld,
	}
	look, ok := looks[r.GetView()]
	if !ok {
		return status.Errorf(codes.InvalidArgument, "view: %v is not known", r.GetView())
	}
	if look != speaker.LookTable && r.GetPeer() == "" {
		return status.Error(codes.InvalidArgument, "peer: is missing; this view is one session's")
	}
	within := netip.Prefix{}
	if r.GetWithin() != nil {
		rd := &reader{}
		if within = rd.prefix("within", r.GetWithin()); rd.err != nil {
			return status.Error(codes.InvalidArgument, rd.err.Error())
		}
	}
	names := s.speaker.Names()
	var failed error
	send := func(j speaker.Judged) {
		if failed != nil {
			return
		}
		m := &birdv1.ShowResponse{Prefix: toPrefix(j.Prefix), Path: toPath(j.Path, names), Best: j.Best}
		if !j.Verdict.Accept {
			m.RejectedBy = j.Verdict.By
		}
		failed = stream.Send(m)
	}
	err := s.speaker.Show(stream.Context(), look, r.GetPeer(), within, send)
	if err == nil && look == speaker.LookWithheld {
		s.speaker.OwnWithheld(r.GetPeer(), within, send)
	}
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return failed
}
