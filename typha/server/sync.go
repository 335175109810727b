package server

import (
	"context"
	"fmt"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/daemon"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

// A hello may name maxHave items, and sources of a checkpoint, in maxHello bytes: no view is as large, and memory is not the
// client's to fill.
const (
	maxHave    = 1 << 20
	maxHello   = 64 << 20
	maxSources = 1024
)

// syncService serves views.
type syncService struct {
	typhav1.UnimplementedSyncServiceServer
	*Server
}

// greeting is a whole hello.
type greeting struct {
	scope    views.Scope
	point    view.Checkpoint
	have     map[view.Key]view.Version
	software string
}

// Sync opens a view and follows it until the client goes or the server stops.
func (s syncService) Sync(stream typhav1.SyncService_SyncServer) error {
	leave, err := s.turnstile.pass(stream.Context())
	if err != nil {
		return err
	}
	defer leave()
	hello, err := s.awaitHello(stream)
	if err != nil {
		return err
	}
	if err := s.reach(stream.Context(), hello.point); err != nil {
		return err
	}
	have := hello.have
	hello.have = nil // or it would be held for as long as the stream lasts
	resumed := len(have) > 0
	s.metrics.resumed.WithLabelValues(fmt.Sprint(resumed)).Inc()
	c := newSession(s.Server, stream, hello)
	c.leave = leave
	c.say(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Welcome{Welcome: &typhav1.Welcome{
		Software: daemon.Version(), Resumed: resumed, Capabilities: s.capabilities(),
	}}})
	c.say(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: s.replicaList()}})
	s.log.Info("client connected", "view", hello.scope, "software", hello.software, "resumed", resumed)
	s.sessions.add(c)
	err = c.run(have)
	s.sessions.remove(c)
	s.log.Info("client gone", "view", hello.scope, "error", err)
	return err
}

// capabilities are what this typha does beyond version 1 of the protocol.
func (s *Server) capabilities() (list []string) {
	if s.cfg.Pods {
		list = append(list, wire.CapabilityPods)
	}
	return list
}

// awaitHello reads a hello, for which a client has its time. Whoever gives up leaves the reader to the stream, which ends it.
func (s *Server) awaitHello(stream typhav1.SyncService_SyncServer) (greeting, error) {
	type result struct {
		hello greeting
		err   error
	}
	read := make(chan result, 1)
	go func() {
		hello, err := readHello(stream)
		read <- result{hello, err}
	}()
	late := time.NewTimer(s.cfg.HelloWait)
	defer late.Stop()
	select {
	case r := <-read:
		return r.hello, r.err
	case <-late.C:
		return greeting{}, refuse(refusedInvalid, codes.DeadlineExceeded, "no whole hello came within %v", s.cfg.HelloWait)
	}
}

// readHello reads the parts of a hello.
func readHello(stream typhav1.SyncService_SyncServer) (greeting, error) {
	node, err := callingNode(stream.Context())
	if err != nil {
		return greeting{}, err
	}
	var g greeting
	size := 0
	for part := 1; ; part++ {
		m, err := stream.Recv()
		if err != nil {
			return greeting{}, err
		}
		if size += proto.Size(m); size > maxHello {
			return greeting{}, refuse(refusedOversized, codes.ResourceExhausted, "a hello may have %d bytes in all", maxHello)
		}
		hello := m.GetHello()
		if hello == nil {
			return greeting{}, status.Error(codes.InvalidArgument, "a stream begins with a hello")
		}
		if part == 1 {
			if hello.GetNode() != node {
				return greeting{}, status.Errorf(codes.PermissionDenied,
					"the certificate is for node %q, which cannot ask for the view of node %q", node, hello.GetNode())
			}
			kind, err := viewKind(hello.GetView())
			if err != nil {
				return greeting{}, err
			}
			if n := len(hello.GetCheckpoint().GetRevisions()); n > maxSources {
				return greeting{}, status.Errorf(codes.InvalidArgument, "the checkpoint has %d sources; at most %d are known", n, maxSources)
			}
			g = greeting{
				scope: views.Scope{Node: node, View: kind}, point: wire.DecodeCheckpoint(hello.GetCheckpoint()),
				have: map[view.Key]view.Version{}, software: shortened(hello.GetSoftware(), longestText),
			}
		}
		if err := takeHave(g.have, hello.GetHave()); err != nil {
			return greeting{}, err
		}
		if !hello.GetMore() {
			return g, nil
		}
	}
}

// takeHave notes what a client says it has. Items of kinds that this version does not know are left out: it never sends
// them, and the client that got them from a newer replica keeps them until it is back there.
func takeHave(have map[view.Key]view.Version, list []*typhav1.Have) error {
	for _, h := range list {
		k, ok := wire.DecodeKey(h.GetKey())
		if !ok {
			continue
		}
		v, err := wire.DecodeVersion(h.GetVersion())
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "have of item %q: %v", k.ID, err)
		}
		have[k] = v
	}
	if len(have) > maxHave {
		return refuse(refusedOversized, codes.ResourceExhausted, "a hello may name at most %d items", maxHave)
	}
	return nil
}

func viewKind(v typhav1.View) (views.ViewKind, error) {
	switch v {
	case typhav1.View_VIEW_NODE:
		return views.NodeView, nil
	case typhav1.View_VIEW_BGP:
		return views.BGPView, nil
	}
	return 0, status.Errorf(codes.InvalidArgument, "there is no view %d; ask for VIEW_NODE or VIEW_BGP", v)
}

// reach waits until this replica has all that a client has seen: nobody is ever served the past. A replica that does not
// get there in time sends the client elsewhere, and so does one that has not read the datastore yet, if there is an elsewhere.
func (s *Server) reach(ctx context.Context, seen view.Checkpoint) error {
	var deadline <-chan time.Time // runs from when this replica knows anything at all
	var reading <-chan time.Time  // runs until then
	if len(s.replicas.addresses()) > 1 {
		reading = time.After(s.cfg.CheckpointWait)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for look := 0; ; look++ {
		own, inSync := s.cfg.Views.Checkpoint()
		if !inSync && len(seen) == 0 && reading == nil {
			return nil // there is nowhere else to go
		}
		if inSync {
			if _, here := seen[s.source()]; here || len(seen) == 0 || s.cfg.Views.Reached(common(seen, own)) {
				return nil
			}
			if deadline == nil {
				deadline, reading = time.After(s.cfg.CheckpointWait), nil
			}
			if look%50 == 0 { // a kind of which nothing was heard lately may be complete all the same
				datastore.Prompt(s.cfg.Datastore)
			}
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-deadline:
			return s.tooFarBehind(own, seen)
		case <-reading:
			return status.Error(codes.Unavailable, "this replica has not read the datastore yet; use another one, and see its readiness for why")
		case <-tick.C:
		}
	}
}

// source is a source of checkpoints of its own: it tells that the client saw them here. This replica only moves forward,
// so it has all that it ever served, and the client needs no waiting for kinds of which nothing was heard lately.
func (s *Server) source() string { return "typha/" + s.instance }

// stamped is a checkpoint with this replica's source.
func (s *Server) stamped(point view.Checkpoint) view.Checkpoint {
	out := view.Checkpoint{s.source(): 1}
	maps.Copy(out, point)
	return out
}

// common is the part of a checkpoint that this replica can judge: sources that it does not have are other replicas, or
// those of another datastore.
func common(seen, own view.Checkpoint) view.Checkpoint {
	out := view.Checkpoint{}
	for source, revision := range seen {
		if _, ok := own[source]; ok {
			out[source] = revision
		}
	}
	return out
}

func (s *Server) tooFarBehind(own, seen view.Checkpoint) error {
	st := status.Newf(codes.FailedPrecondition, "this replica is at %v and does not catch up with %v, which the client has seen; "+
		"use another replica (if the datastore was restored from a backup, remove the client's saved view)", own, common(seen, own))
	if with, err := st.WithDetails(s.replicaList()); err == nil {
		st = with
	}
	return st.Err()
}

// stopWaves is in how many waves a stopping server sends its clients away, so that they do not all come to the others at
// once.
const stopWaves = 10

// sendAway asks all clients to use another replica, and gives them time to. Where there is no other they stay, and find
// this one again when it is back.
func (s *Server) sendAway() {
	others := s.replicaList().GetReplicas()
	if len(others) < 2 {
		return
	}
	elsewhere := &typhav1.Replicas{Move: true, Replicas: others[1:]}
	move := &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: elsewhere}}
	all := s.sessions.all()
	pause := time.NewTicker(s.cfg.StopWait / stopWaves)
	defer pause.Stop()
	for wave := range stopWaves {
		for i := wave; i < len(all); i += stopWaves {
			all[i].say(move)
		}
		if s.sessions.size() == 0 {
			return
		}
		<-pause.C
	}
}
