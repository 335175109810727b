package policysync

import (
	"context"
	"sync/atomic"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/scope"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// What one pod may take of felix.
const (
	maxConnections = 8
	maxStreams     = 4 // that tell policy; a proxy has one, and another while it is replaced
	maxCalls       = 16
	maxRequest     = 64 << 10 // bytes
)

// door is a pod's socket and who serves there.
type door struct {
	felixv1.UnimplementedPolicySyncServiceServer

	pod     scope.Pod
	agent   Agent
	counts  *counts
	streams atomic.Int32

	socket *socket
	server *grpc.Server
	done   chan struct{} // closed when nobody serves any more
}

// openDoor opens the socket of a pod's directory and serves the pod there.
func openDoor(directory string, pod scope.Pod, agent Agent, counts *counts) (*door, error) {
	s, err := openSocket(directory)
	if err != nil {
		return nil, err
	}
	d := &door{
		pod: pod, agent: agent, counts: counts, socket: s, done: make(chan struct{}),
		server: rpc.NewServer(nil, grpc.MaxConcurrentStreams(maxCalls), grpc.MaxRecvMsgSize(maxRequest)),
	}
	felixv1.RegisterPolicySyncServiceServer(d.server, d)
	go func() {
		defer close(d.done)
		_ = d.server.Serve(netutil.LimitListener(s.listener, maxConnections)) // it ends when the server is stopped
	}()
	return d, nil
}

// close ends all streams, and the socket.
func (d *door) close() error {
	d.server.Stop()
	<-d.done
	return d.socket.Close()
}

// Sync tells the pod what concerns it.
func (d *door) Sync(_ *felixv1.SyncRequest, stream grpc.ServerStreamingServer[felixv1.SyncResponse]) error {
	if d.streams.Add(1) > maxStreams {
		d.streams.Add(-1)
		return status.Errorf(codes.ResourceExhausted, "pod %s/%s has %d streams already; end one of them", d.pod.Namespace, d.pod.Name, maxStreams)
	}
	defer d.streams.Add(-1)
	d.counts.streams.Add(1)
	defer d.counts.streams.Add(-1)
	ctx := stream.Context()
	news := make(chan struct{}, 1)
	wake := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	follower := scope.NewFollower(d.pod)
	stop := d.agent.Follow(ctx, follower, wake)
	defer stop()
	for wake(); ; {
		select {
		case <-ctx.Done():
			return statusOf(ctx.Err())
		case <-news:
		}
		update, err := d.agent.Next(ctx, follower)
		if err != nil {
			return statusOf(err)
		}
		for part, err := range parts(update) {
			if err != nil {
				return status.Error(codes.Internal, err.Error())
			}
			if err := stream.Send(part); err != nil {
				return err
			}
		}
	}
}

// Report counts what the pod's proxy decided.
func (d *door) Report(ctx context.Context, req *felixv1.ReportRequest) (*felixv1.ReportResponse, error) {
	rules, err := d.agent.Deciders(ctx, d.pod)
	if err != nil {
		return nil, statusOf(err)
	}
	var allowed, denied uint64
	for _, decision := range req.GetDecisions() {
		if n, ok := rules[decision.GetPolicy()]; !ok || decision.GetRule() < 0 || int(decision.GetRule()) >= n {
			return nil, status.Errorf(codes.InvalidArgument, "decisions: ingress rule %d of %q does not apply to pod %s/%s; report what Sync has told",
				decision.GetRule(), decision.GetPolicy(), d.pod.Namespace, d.pod.Name)
		}
		allowed, denied = allowed+decision.GetAllowed(), denied+decision.GetDenied()
	}
	d.counts.allowed.Add(allowed)
	d.counts.denied.Add(denied)
	return &felixv1.ReportResponse{}, nil
}

// statusOf gives an error of the agent, or of a context, its code.
func statusOf(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.FromContextError(err).Err()
}
