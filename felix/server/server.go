// Package server serves felix.v1 on a unix socket: the CNI verbs, IPAM for other plugins, and what felix knows. It holds
// no network state of its own: it orders the steps of an endpoint's life (design: "The life of an endpoint") and leaves
// each to whoever owns it.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/ipam/lease"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// defaultPolicyWait is how long ADD waits for a pod's policy before it starts closed.
const defaultPolicyWait = 2 * time.Second

// Agent is the loop that programs the node.
type Agent interface {
	// Asked is what typha says that the pod of an endpoint asks for; nil if typha says nothing of it.
	Asked(ctx context.Context, e state.Endpoint) (*view.AddressRequest, error)
	// Expect tells typha of an endpoint that is being made, so that its policy is known when it is there. It does not wait.
	Expect(ctx context.Context, e state.Endpoint)
	// Foreseen returns when the policy of an endpoint that is being made is known, or when ctx ends.
	Foreseen(ctx context.Context, e state.Endpoint)
	// SetLocal records an endpoint and returns when it is programmed: rules first, routes last.
	SetLocal(ctx context.Context, e state.Endpoint) error
	// DeleteLocal forgets an endpoint and returns when its route and rules are out of the kernel.
	DeleteLocal(ctx context.Context, iface string) error
	// Forgotten returns when no connection is left of addresses that a deleted endpoint had.
	Forgotten(ctx context.Context, addrs []netip.Addr) error
	// Verify reads the kernel anew, and tells what of an endpoint is not there as wanted.
	Verify(ctx context.Context, e state.Endpoint) error
	// PodCIDRs are the ranges that Kubernetes gave to the node.
	PodCIDRs(ctx context.Context) ([]netip.Prefix, error)
	// WaitOpen returns when the endpoint's policy is known and programmed, or says what is missing when ctx ends.
	WaitOpen(ctx context.Context, iface string) error
	// Local returns the endpoints that are recorded, by interface.
	Local(ctx context.Context) (map[string]state.Endpoint, error)
	// PodMTU is the MTU for new pods.
	PodMTU(ctx context.Context) (int, error)
	// Serves tells why a pod with these addresses, and with these that float, would not be reached by them; nil if it would be.
	Serves(ctx context.Context, addrs, floating []netip.Addr) error
	// Dump returns desired beside actual state.
	Dump(ctx context.Context) ([]Difference, error)
	// Applied tells what applies to the endpoint of an interface.
	Applied(ctx context.Context, iface string) (Applied, error)
	// Hosts are the host endpoints of the node, by name.
	Hosts(ctx context.Context) ([]Host, error)
	// Explain traces an object of the kernel, as Dump names it, to what caused it.
	Explain(ctx context.Context, section, key string) ([]Reason, error)
	// Ready tells whether pods can be wired, and if not why.
	Ready() []string
}

// Difference is one object of the kernel, as wanted and as it is.
type Difference struct {
	Section, Key, Desired, Actual, Error string
}

// Pods makes and removes the interfaces of pods.
type Pods interface {
	// Reach tells why a network namespace cannot be entered; nil if it can.
	Reach(netns string) error
	// Wire makes the pair and sets the pod's side up. It is idempotent, and leaves nothing behind if it fails.
	Wire(ctx context.Context, e state.Endpoint, podInterface string) error
	// Unwire removes the pair; what is not there is no error.
	Unwire(ctx context.Context, e state.Endpoint, podInterface string) error
	// Check compares the pair with the endpoint and names the first difference.
	Check(ctx context.Context, e state.Endpoint, podInterface string) error
}

// IPAM hands out addresses of the cluster.
type IPAM interface {
	// Assign gives all the addresses that are asked for, or none. Another process would know of it; when sure has returned without an
	// error another boot of the host would too. Until then nothing may come of it that a reboot would not end.
	Assign(ctx context.Context, want Want) (addrs []netip.Addr, sure func() error, err error)
	// Release frees the addresses of a handle.
	Release(ctx context.Context, handle string) error
}

// Want is a request for addresses.
type Want struct {
	Handle     string
	Attributes map[string]string
	Namespace  string
	IPv4, IPv6 bool
	Pools4     []string
	Pools6     []string
	Fixed      netip.Addr // one specific address instead; invalid: none
}

// Records keeps endpoints over restarts.
type Records interface {
	Save(name string, e state.Endpoint) error
	Delete(name string) error
}

// Reserve is what the node holds of addresses.
type Reserve interface {
	Slots() map[netip.Addr]lease.Slot
}

// Releases queues handles whose addresses are to be freed, durably, and frees them when that can be done.
type Releases interface {
	// Add queues a handle. That is done in any case; an error tells that it would be forgotten if felix ended now.
	Add(handle string) error
	// Clear ends an earlier use of a handle, of which the end was never told since felix ended before: nobody has its addresses.
	// It waits a while for them to be free.
	Clear(ctx context.Context, handle string)
	// Cancel takes back what was queued, as the handle is used again; it waits for a release under way.
	Cancel(ctx context.Context, handle string) error
}

// Server carries out the calls.
type Server struct {
	felixv1.UnimplementedCniServiceServer
	felixv1.UnimplementedIpamServiceServer
	felixv1.UnimplementedStateServiceServer
	felixv1.UnimplementedCheckServiceServer

	Agent    Agent
	Pods     Pods
	Checks   Checks
	IPAM     IPAM
	Counters dataplane.Counters // nil: nothing is counted
	Records  Records
	Releases Releases
	Reserve  Reserve // nil: there is none
	Log      *slog.Logger
	Software string

	locks keyed // one call at a time for each interface
}

// Register adds the services to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	s.registerPlugins(g)
	felixv1.RegisterStateServiceServer(g, s)
	felixv1.RegisterCheckServiceServer(g, s)
}

// registerPlugins adds what plugins call.
func (s *Server) registerPlugins(g grpc.ServiceRegistrar) {
	felixv1.RegisterCniServiceServer(g, s)
	felixv1.RegisterIpamServiceServer(g, s)
}

// Status says whether Add would work.
func (s *Server) Status(context.Context, *felixv1.StatusRequest) (*felixv1.StatusResponse, error) {
	reasons := s.Agent.Ready()
	return &felixv1.StatusResponse{Ready: len(reasons) == 0, Reasons: reasons, Software: s.Software}, nil
}

// Node tells what a network configuration may leave to the node.
func (s *Server) Node(ctx context.Context, _ *felixv1.NodeRequest) (*felixv1.NodeResponse, error) {
	cidrs, err := s.Agent.PodCIDRs(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &felixv1.NodeResponse{}
	for _, c := range cidrs {
		resp.PodCidrs = append(resp.PodCidrs, c.String())
	}
	return resp, nil
}

// keyed is a set of mutexes by name.
type keyed struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// lock waits for the name to be free and takes it; the returned function gives it back.
func (k *keyed) lock(ctx context.Context, name string) (func(), error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		busy, taken := k.held[name]
		if !taken {
			mine := make(chan struct{})
			k.held[name] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("another call for %s is still under way: %w", name, ctx.Err())
		}
	}
}

// statusOf gives an error the code that the plugin turns into a CNI error.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

// undo is a stack of steps to take back.
type undo []func(context.Context) error

func (u *undo) push(step func(context.Context) error) { *u = append(*u, step) }

// run takes the steps back, last first, and goes on when one fails.
func (u undo) run(ctx context.Context) error {
	var errs []error
	for _, step := range slices.Backward(u) {
		errs = append(errs, step(ctx))
	}
	return errors.Join(errs...)
}

// Run serves on a unix socket until ctx ends.
func (s *Server) Run(ctx context.Context, socket string) error {
	l, err := rpc.ListenUnix(socket)
	if err != nil {
		return err
	}
	g := rpc.NewServer(nil)
	s.Register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	return g.Serve(l)
}

// RunPlugins serves CNI plugins on a unix socket of their own until ctx ends: each makes one call, which gRPC would be too dear for.
func (s *Server) RunPlugins(ctx context.Context, socket string) error {
	l, err := rpc.ListenUnix(socket)
	if err != nil {
		return err
	}
	b, err := rpc.NewBrief()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.registerPlugins(b)
	stop := context.AfterFunc(ctx, b.Stop)
	defer stop()
	return b.Serve(l)
}
