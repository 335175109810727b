package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// NodeNetwork tells Kubernetes whether nodes have a network.
type NodeNetwork interface {
	// SetUnavailable writes the condition NetworkUnavailable of a Kubernetes node, if it says something else. A node that is
	// not there is no error.
	SetUnavailable(ctx context.Context, node string, unavailable bool, reason, message string) error
}

// The words of the condition, as users of Calico know them.
const (
	reasonUp    = "CalicoIsUp"
	messageUp   = "Calico is running on this node"
	reasonDown  = "CalicoIsDown"
	messageDown = "Calico is shutting down on this node"
)

const (
	// networkRetry is how long after a failure the condition is written again.
	networkRetry = 5 * time.Second
	// networkWrites is of how many nodes it is written at a time.
	networkWrites = 8
)

// network says of nodes whose felix is in sync that they have a network. The scheduler gives pods to no node before.
type network struct {
	to    NodeNetwork // nil where there is no Kubernetes
	cache *cache.Cache
	log   *slog.Logger
	news  chan struct{} // has room for one

	mu sync.Mutex          // guards up
	up map[string]struct{} // nodes of which it is to be said
}

func newNetwork(cfg Config, log *slog.Logger) *network {
	return &network{to: cfg.NodeNetwork, cache: cfg.Cache, log: log, news: make(chan struct{}, 1), up: map[string]struct{}{}}
}

// inSync notes that a node's felix has programmed its whole view.
func (n *network) inSync(nodes ...string) {
	if n.to == nil || len(nodes) == 0 {
		return
	}
	n.mu.Lock()
	for _, name := range nodes {
		n.up[name] = struct{}{}
	}
	n.mu.Unlock()
	poke(n.news)
}

func (n *network) run(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.news:
		case <-again:
		}
		again = nil
		if failed := n.writeAll(ctx); len(failed) > 0 {
			n.inSync(failed...)
			again = time.After(networkRetry)
			<-n.news // not before its time
		}
	}
}

// writeAll says of all nodes that wait for it that they are up, and returns those of which it could not.
func (n *network) writeAll(ctx context.Context) (failed []string) {
	n.mu.Lock()
	names := n.up
	n.up = map[string]struct{}{}
	n.mu.Unlock()
	var mu sync.Mutex // guards failed and last
	var last error
	var group errgroup.Group
	group.SetLimit(networkWrites)
	for name := range names {
		group.Go(func() error {
			if err := n.to.SetUnavailable(ctx, n.kubernetes(name), false, reasonUp, messageUp); err != nil && ctx.Err() == nil {
				mu.Lock()
				failed, last = append(failed, name), err
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // what fails is in failed
	if last != nil {
		n.log.Warn("Kubernetes is not told yet that nodes have a network, trying again", "nodes", len(failed), "one", failed[0], "after", networkRetry, "error", last)
	}
	return failed
}

// kubernetes is what Kubernetes calls a node.
func (n *network) kubernetes(name string) string {
	if o, ok := n.cache.Snapshot().Get(api.Key{Kind: "Node", Name: name}).(*api.Node); ok {
		for _, ref := range o.Spec.OrchRefs {
			if ref.Orchestrator == api.OrchestratorKubernetes && ref.NodeName != "" {
				return ref.NodeName
			}
		}
	}
	return name
}

// Leave tells Kubernetes that the calling node has no network.
func (s nodesService) Leave(ctx context.Context, _ *typhav1.LeaveRequest) (*typhav1.LeaveResponse, error) {
	name, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	n := s.network
	if n.to == nil {
		return &typhav1.LeaveResponse{}, nil
	}
	n.mu.Lock()
	delete(n.up, name)
	n.mu.Unlock()
	if err := n.to.SetUnavailable(ctx, n.kubernetes(name), true, reasonDown, messageDown); err != nil {
		return nil, status.Errorf(codes.Unavailable, "Kubernetes cannot be told that node %s has no network: %v", name, err)
	}
	s.log.Info("a node's felix is about to end", "node", name)
	return &typhav1.LeaveResponse{}, nil
}

// firstApplied notes that a client has applied its first batch, which is its whole view. The caller holds no lock.
func (s *session) firstApplied() {
	if s.scope.View == views.NodeView {
		s.server.network.inSync(s.scope.Node)
	}
}
