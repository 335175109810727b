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
	have     map[view.Key]view.Version // of a client that names all that it has
	digests  *view.Digests             // of one that does not
	software string
}

// resumes tells whether the client has something to build on.
func (g *greeting) resumes() bool { return len(g.have) > 0 || g.digests != nil }

// Sync opens a view and follows it until the client goes or the server stops.
func (s syncService) Sync(stream typhav1.SyncService_SyncServer) error {
	leave, err := s.turnstile.pass(stream.Context())
	if err != nil {
		return err
	}
	defer leave()
	hello, err := inTime(s.cfg.HelloWait, "hello", func() (greeting, error) { return readHello(stream) })
	if err != nil {
		return err
	}
	if err := s.reach(stream.Context(), hello.point); err != nil {
		return err
	}
	resumed := hello.resumes()
	s.metrics.resumed.WithLabelValues(fmt.Sprint(resumed)).Inc()
	c := newSession(s.Server, stream, hello)
	c.leave = leave
	c.sub, err = s.open(stream, hello, c.wake)
	hello = greeting{} // what it has would else be held for as long as the stream lasts
	if err != nil {
		return err
	}
	defer c.sub.Close()
	c.say(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Welcome{Welcome: &typhav1.Welcome{
		Software: daemon.Version(), Resumed: resumed, Capabilities: s.capabilities(),
	}}})
	c.say(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: s.replicaList()}})
	s.log.Info("client connected", "view", c.scope, "software", c.status.GetSoftware(), "resumed", resumed)
	s.sessions.add(c)
	err = c.run()
	s.sessions.remove(c)
	s.log.Info("client gone", "view", c.scope, "error", err)
	return err
}

// open opens the view of a client, and asks it what it has where its digests are not the view's.
func (s syncService) open(stream typhav1.SyncService_SyncServer, hello greeting, wake func()) (*views.Subscription, error) {
	if hello.digests == nil {
		return s.cfg.Views.Subscribe(hello.scope, hello.have, wake), nil
	}
	sub, differing := s.cfg.Views.Resume(hello.scope, hello.digests, wake)
	if len(differing) == 0 {
		return sub, nil
	}
	have, err := s.ask(stream, differing)
	if err != nil {
		sub.Close()
		return nil, err
	}
	sub.Named(have)
	return sub, nil
}

// ask asks a client what it has in some parts.
func (s syncService) ask(stream typhav1.SyncService_SyncServer, parts []uint8) (map[view.Key]view.Version, error) {
	if err := stream.Send(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Name{Name: &typhav1.Name{Parts: parts}}}); err != nil {
		return nil, err
	}
	return inTime(s.cfg.HelloWait, "answer to what it has", func() (map[view.Key]view.Version, error) { return readNamed(stream) })
}

// capabilities are what this typha does beyond version 1 of the protocol.
func (s *Server) capabilities() (list []string) {
	if s.cfg.Pods {
		list = append(list, wire.CapabilityPods)
	}
	return list
}

// inTime reads what a client has its time for. Whoever gives up leaves the reader to the stream, which ends it.
func inTime[T any](wait time.Duration, what string, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-late.C:
		var none T
		return none, refuse(refusedInvalid, codes.DeadlineExceeded, "no whole %s came within %v", what, wait)
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
			if g.digests, err = view.DigestsOf(hello.GetDigests()); err != nil {
				return greeting{}, status.Errorf(codes.InvalidArgument, "hello: %v", err)
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

// readNamed reads the parts of an answer to what a client has.
func readNamed(stream typhav1.SyncService_SyncServer) (map[view.Key]view.Version, error) {
	have := map[view.Key]view.Version{}
	for size := 0; ; {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if size += proto.Size(m); size > maxHello {
			return nil, refuse(refusedOversized, codes.ResourceExhausted, "what a client has may take %d bytes in all", maxHello)
		}
		named := m.GetNamed()
		if named == nil {
			return nil, status.Error(codes.InvalidArgument, "a client that is asked what it has says that before all else")
		}
		if err := takeHave(have, named.GetHave()); err != nil {
			return nil, err
		}
		if !named.GetMore() {
			return have, nil
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
