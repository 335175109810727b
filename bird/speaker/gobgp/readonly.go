package gobgp

import (
	"context"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// RegisterAPI serves gobgp's own API, as far as it only looks, so that the stock gobgp command works. Every other method is
// refused: confd owns the configuration. Passwords are left out.
func (e *Engine) RegisterAPI(g grpc.ServiceRegistrar) {
	api.RegisterGobgpApiServer(g, &readOnly{engine: e})
}

type readOnly struct {
	api.UnimplementedGobgpApiServer
	engine *Engine
}

// list runs one of gobgp's listings into a stream, and ends with the first error of either.
func list[M any](stream interface {
	Context() context.Context
	Send(M) error
}, run func(ctx context.Context, yield func(M)) error,
) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	var failed error
	err := run(ctx, func(m M) {
		if failed == nil {
			if failed = stream.Send(m); failed != nil {
				cancel()
			}
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

func (r *readOnly) GetBgp(ctx context.Context, q *api.GetBgpRequest) (*api.GetBgpResponse, error) {
	return r.engine.server.GetBgp(ctx, q)
}

func (r *readOnly) GetTable(ctx context.Context, q *api.GetTableRequest) (*api.GetTableResponse, error) {
	return r.engine.server.GetTable(ctx, q)
}

func (r *readOnly) ListPeer(q *api.ListPeerRequest, s api.GobgpApi_ListPeerServer) error {
	return list(s, func(ctx context.Context, yield func(*api.ListPeerResponse)) error {
		return r.engine.server.ListPeer(ctx, q, func(p *api.Peer) {
			if p.GetConf().GetAuthPassword() != "" {
				p.Conf.AuthPassword = "redacted"
			}
			if up := r.engine.upSince(address(p.GetState().GetNeighborAddress())); !up.IsZero() && p.GetTimers().GetState() != nil {
				p.Timers.State.Uptime = timestamppb.New(up) // gobgp was made to forget it: see connection
			}
			yield(&api.ListPeerResponse{Peer: p})
		})
	})
}

// upSince is when a session came up; zero if it is not up.
func (e *Engine) upSince(a netip.Addr) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.rests[a]; r != nil {
		return r.up
	}
	return time.Time{}
}

func (r *readOnly) ListPath(q *api.ListPathRequest, s api.GobgpApi_ListPathServer) error {
	return list(s, func(ctx context.Context, yield func(*api.ListPathResponse)) error {
		return r.engine.server.ListPath(ctx, q, func(d *api.Destination) { yield(&api.ListPathResponse{Destination: d}) })
	})
}

func (r *readOnly) ListDefinedSet(q *api.ListDefinedSetRequest, s api.GobgpApi_ListDefinedSetServer) error {
	return list(s, func(ctx context.Context, yield func(*api.ListDefinedSetResponse)) error {
		return r.engine.server.ListDefinedSet(ctx, q, func(d *api.DefinedSet) { yield(&api.ListDefinedSetResponse{DefinedSet: d}) })
	})
}

func (r *readOnly) ListStatement(q *api.ListStatementRequest, s api.GobgpApi_ListStatementServer) error {
	return list(s, func(ctx context.Context, yield func(*api.ListStatementResponse)) error {
		return r.engine.server.ListStatement(ctx, q, func(st *api.Statement) { yield(&api.ListStatementResponse{Statement: st}) })
	})
}

func (r *readOnly) ListPolicy(q *api.ListPolicyRequest, s api.GobgpApi_ListPolicyServer) error {
	return list(s, func(ctx context.Context, yield func(*api.ListPolicyResponse)) error {
		return r.engine.server.ListPolicy(ctx, q, func(p *api.Policy) { yield(&api.ListPolicyResponse{Policy: p}) })
	})
}

func (r *readOnly) ListPolicyAssignment(q *api.ListPolicyAssignmentRequest, s api.GobgpApi_ListPolicyAssignmentServer) error {
	return list(s, func(ctx context.Context, yield func(*api.ListPolicyAssignmentResponse)) error {
		return r.engine.server.ListPolicyAssignment(ctx, q, func(a *api.PolicyAssignment) {
			yield(&api.ListPolicyAssignmentResponse{Assignment: a})
		})
	})
}

// WatchEvent streams until the caller leaves.
func (r *readOnly) WatchEvent(q *api.WatchEventRequest, s api.GobgpApi_WatchEventServer) error {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	err := r.engine.server.WatchEvent(ctx, q, func(e *api.WatchEventResponse) {
		if s.Send(e) != nil {
			cancel()
		}
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
