package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/typha/cache"
)

// nodes writes what the datastore holds of nodes.
type nodes struct {
	store datastore.Client
	cache *cache.Cache
	// kubernetes says that nodes are those of Kubernetes, which kubelet makes.
	kubernetes bool
	alloc      *alloc.Allocator
	log        *slog.Logger
	connected  func() []string // names of the nodes connected to this replica
	queue      chan struct{}   // has room for one: there are nodes to check
	pending    pendingNodes
	drift      *drift
}

// writeAttempts bounds the attempts to change a Node that others change too.
const writeAttempts = 20

func (s *nodes) get(ctx context.Context, name string) (*api.Node, error) {
	o, err := s.store.Get(ctx, api.Key{Kind: "Node", Name: name})
	if err != nil {
		return nil, err
	}
	return o.(*api.Node), nil
}

// update changes a Node. change sees the newest state, perhaps several times; what changes nothing is not written.
func (s *nodes) update(ctx context.Context, name string, change func(*api.Node) error) (*api.Node, error) {
	var err error
	for range writeAttempts {
		var stored *api.Node
		if stored, err = s.get(ctx, name); err != nil {
			return nil, err
		}
		changed := stored.DeepCopy()
		if err := change(changed); err != nil {
			return nil, err
		}
		if apiequality.Semantic.DeepEqual(stored, changed) {
			return stored, nil
		}
		var written api.Object
		if written, err = s.store.Update(ctx, changed); err == nil {
			return written.(*api.Node), nil
		}
		if !errors.Is(err, datastore.ErrConflict) {
			return nil, err
		}
	}
	return nil, err
}

// register creates or updates a node's Node, and gives it tunnel addresses.
func (s *nodes) register(ctx context.Context, r registration) (*api.Node, error) {
	if err := s.checkOthers(ctx, r); err != nil {
		return nil, err
	}
	node, err := s.update(ctx, r.name, func(n *api.Node) error {
		r.applyTo(n)
		return nil
	})
	if errors.Is(err, datastore.ErrNotFound) && s.kubernetes {
		return nil, status.Errorf(codes.NotFound, "there is no node %q in Kubernetes; this node's name (NODENAME) must be that with which its kubelet has registered", r.name)
	}
	if errors.Is(err, datastore.ErrNotFound) {
		fresh := newNode(r.name)
		r.applyTo(fresh)
		var o api.Object
		o, err = s.store.Create(ctx, fresh)
		switch {
		case errors.Is(err, datastore.ErrExists): // by another replica, a moment ago
			node, err = s.update(ctx, r.name, func(n *api.Node) error {
				r.applyTo(n)
				return nil
			})
		case err == nil:
			node = o.(*api.Node)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("registering node %s: %w", r.name, err)
	}
	tunneled, err := s.ensureTunnels(ctx, node)
	if err != nil {
		// The node can do without for now; whatever stood in the way is looked at again when a pool changes.
		s.log.Warn("node has no tunnel addresses yet", "node", r.name, "error", err)
		s.check(r.name)
		return node, nil
	}
	return tunneled, nil
}

// checkOthers refuses addresses that another node has, and the names of other nodes: what is said of the Kubernetes node that a node
// refers to is said of its own.
func (s *nodes) checkOthers(ctx context.Context, r registration) error {
	if r.skipCheck && len(r.orchRefs) == 0 {
		return nil
	}
	l, err := s.store.List(ctx, "Node", datastore.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range l.Items {
		other := o.(*api.Node)
		if other.Name == r.name {
			continue
		}
		for _, ref := range r.orchRefs {
			if ref.NodeName == other.Name || slices.Contains(other.Spec.OrchRefs, ref) {
				return refuse(refusedTaken, codes.AlreadyExists, "node %s of %s is what node %s stands for; let this node refer to its own (CALICO_K8S_NODE_REF), or delete node %s if it is gone",
					ref.NodeName, ref.Orchestrator, other.Name, other.Name)
			}
		}
		if r.skipCheck || other.Spec.BGP == nil {
			continue
		}
		for _, address := range []netip.Prefix{r.ipv4, r.ipv6} {
			if address.IsValid() && (hasAddress(other.Spec.BGP.IPv4Address, address) || hasAddress(other.Spec.BGP.IPv6Address, address)) {
				return refuse(refusedTaken, codes.AlreadyExists, "node %s has address %s already; give this node another one (IP, IP6 or the "+
					"autodetection method), or delete node %s if it is gone", other.Name, address.Addr(), other.Name)
			}
		}
	}
	return nil
}

func hasAddress(stored string, p netip.Prefix) bool {
	if other, err := netip.ParsePrefix(stored); err == nil {
		return other.Addr() == p.Addr()
	}
	other, err := netip.ParseAddr(stored)
	return err == nil && other == p.Addr()
}

// proposePools creates the proposed pools of families that have none, and returns their names.
func (s *nodes) proposePools(ctx context.Context, proposals []*api.IPPool) ([]string, error) {
	if len(proposals) == 0 {
		return nil, nil
	}
	have, err := s.poolFamilies(ctx)
	if err != nil {
		return nil, err
	}
	var created []string
	for _, p := range proposals {
		cidr, err := netip.ParsePrefix(p.Spec.CIDR)
		if err != nil {
			return created, status.Errorf(codes.InvalidArgument, "proposed pool %s: cidr %q is not a network", p.Name, p.Spec.CIDR)
		}
		if have[cidr.Addr().Is4()] {
			continue
		}
		_, err = s.store.Create(ctx, p.DeepCopy())
		if err != nil {
			// Another node that starts at the same time may have been faster.
			again, listErr := s.poolFamilies(ctx)
			if listErr != nil || !again[cidr.Addr().Is4()] {
				return created, fmt.Errorf("proposed pool %s: %w", p.Name, err)
			}
			continue
		}
		s.log.Info("created a default pool", "pool", p.Name, "cidr", p.Spec.CIDR)
		created = append(created, p.Name)
	}
	return created, nil
}

// poolFamilies tells of which families there are pools: true stands for IPv4.
func (s *nodes) poolFamilies(ctx context.Context) (map[bool]bool, error) {
	l, err := s.store.List(ctx, "IPPool", datastore.ListOptions{})
	if err != nil {
		return nil, err
	}
	have := map[bool]bool{}
	for _, o := range l.Items {
		if cidr, err := netip.ParsePrefix(o.(*api.IPPool).Spec.CIDR); err == nil {
			have[cidr.Addr().Is4()] = true
		}
	}
	return have, nil
}
