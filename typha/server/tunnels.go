package server

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/typha/cache"
)

// retryTunnels is how long after a failure a node's tunnel addresses are looked at again.
const retryTunnels = 10 * time.Second

// ensureAtOnce is of how many nodes the tunnel addresses are looked at at a time.
const ensureAtOnce = 8

// pendingNodes is a set of nodes to be looked at.
type pendingNodes struct {
	mu    sync.Mutex
	names map[string]struct{}
}

func (p *pendingNodes) add(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		p.names[n] = struct{}{}
	}
}

func (p *pendingNodes) take() map[string]struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.names
	p.names = map[string]struct{}{}
	return out
}

func newNodes(store datastore.Client, known *cache.Cache, a *alloc.Allocator, log *slog.Logger) *nodes {
	return &nodes{
		store: store, cache: known, alloc: a, log: log, connected: func() []string { return nil },
		queue: make(chan struct{}, 1), pending: pendingNodes{names: map[string]struct{}{}}, drift: newDrift(),
	}
}

// changed has the nodes looked at whose tunnel addresses may not be right any more. Of nodes that are connected elsewhere
// that is the other replica's business, unless they are gone.
func (s *nodes) changed(changes []cache.Change) {
	suspects, all := s.drift.look(changes)
	here := s.connected()
	if all {
		s.check(here...)
		return
	}
	if len(suspects) == 0 {
		return
	}
	for _, n := range here {
		if gone, is := suspects[n]; is && !gone {
			s.check(n)
		}
	}
	for n, gone := range suspects {
		if gone {
			s.check(n)
		}
	}
}

// check asks for a node's tunnel addresses to be looked at, soon.
func (s *nodes) check(names ...string) {
	s.pending.add(names...)
	select {
	case s.queue <- struct{}{}:
	default:
	}
}

// run keeps the tunnel addresses of the connected nodes as the pools want them.
func (s *nodes) run(ctx context.Context) error {
	var retry <-chan time.Time
	var mu sync.Mutex // guards failed
	failed := map[string]struct{}{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.queue:
		case <-retry:
			retry = nil
			for name := range failed {
				s.pending.add(name)
			}
			clear(failed)
		}
		var group errgroup.Group
		group.SetLimit(ensureAtOnce)
		for name := range s.pending.take() {
			group.Go(func() error {
				if err := s.ensure(ctx, name); err != nil && ctx.Err() == nil {
					s.log.Warn("tunnel addresses of a node are not right, trying again", "node", name, "within", retryTunnels, "error", err)
					mu.Lock()
					failed[name] = struct{}{}
					mu.Unlock()
				}
				return nil
			})
		}
		_ = group.Wait() // what fails is tried again
		if len(failed) > 0 && retry == nil {
			retry = time.After(time.Duration(float64(retryTunnels) * (0.5 + rand.Float64()/2)))
		}
	}
}

// joined has the tunnel addresses of a node looked at that has come, unless what is known says that they are right: all come at once
// after a restart of typha.
func (s *nodes) joined(name string) {
	if !s.fit(name) {
		s.check(name)
	}
}

// fit tells whether a node has the tunnel addresses that it is to have, by what is known.
func (s *nodes) fit(name string) bool {
	known := s.cache.Snapshot()
	n := known.Node(name)
	if !known.InSync() || n == nil {
		return false
	}
	at := func(cidr netip.Prefix) *api.IPAMBlock {
		b, _ := known.Get(blockKey(cidr)).(*api.IPAMBlock)
		return b
	}
	current := tunnelsOf(n)
	if !alloc.TunnelsFit(slices.Collect(known.Pools()), name, n.Labels, current, at) {
		return false
	}
	same := n.DeepCopy()
	setTunnels(same, current)
	return same.Spec.VXLANTunnelMACAddr == n.Spec.VXLANTunnelMACAddr && same.Spec.VXLANTunnelMACAddrV6 == n.Spec.VXLANTunnelMACAddrV6
}

func (s *nodes) ensure(ctx context.Context, name string) error {
	n, err := s.get(ctx, name)
	if errors.Is(err, datastore.ErrNotFound) {
		// Not registered yet, and Register sees to it; or deleted, and what it had nobody needs.
		return s.alloc.ReleaseTunnels(ctx, name)
	}
	if err == nil {
		_, err = s.ensureTunnels(ctx, n)
	}
	return err
}

// ensureTunnels gives a node the tunnel addresses that the pools want it to have, and takes those that they do not.
func (s *nodes) ensureTunnels(ctx context.Context, n *api.Node) (*api.Node, error) {
	got, err := s.alloc.EnsureTunnels(ctx, n.Name, tunnelsOf(n))
	if err != nil {
		return nil, err
	}
	return s.update(ctx, n.Name, func(n *api.Node) error {
		setTunnels(n, got)
		return nil
	})
}

// tunnelsOf lists the tunnels that a node can have, by the families of its addresses, with the addresses stored.
func tunnelsOf(n *api.Node) map[alloc.Tunnel]netip.Addr {
	bgp := api.NodeBGPSpec{}
	if n.Spec.BGP != nil {
		bgp = *n.Spec.BGP
	}
	parse := func(s string) netip.Addr {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Addr{} // not set, or of no use
		}
		return a
	}
	out := map[alloc.Tunnel]netip.Addr{}
	if bgp.IPv4Address != "" || bgp.IPv4IPIPTunnelAddr != "" || n.Spec.IPv4VXLANTunnelAddr != "" {
		out[alloc.TunnelIPIP] = parse(bgp.IPv4IPIPTunnelAddr)
		out[alloc.TunnelVXLAN] = parse(n.Spec.IPv4VXLANTunnelAddr)
	}
	if bgp.IPv6Address != "" || n.Spec.IPv6VXLANTunnelAddr != "" {
		out[alloc.TunnelVXLAN6] = parse(n.Spec.IPv6VXLANTunnelAddr)
	}
	return out
}

// setTunnels writes tunnel addresses into a Node. An Ethernet address that is stored wins over the computed one, and
// stays when the tunnel goes, so that the device is the same when it comes back.
func setTunnels(n *api.Node, got map[alloc.Tunnel]netip.Addr) {
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	if a, ok := got[alloc.TunnelIPIP]; ok && (n.Spec.BGP != nil || a.IsValid()) {
		bgp := api.NodeBGPSpec{}
		if n.Spec.BGP != nil {
			bgp = *n.Spec.BGP
		}
		bgp.IPv4IPIPTunnelAddr = text(a)
		if n.Spec.BGP = &bgp; bgp == (api.NodeBGPSpec{}) {
			n.Spec.BGP = nil // an empty one is not valid
		}
	}
	if a, ok := got[alloc.TunnelVXLAN]; ok {
		n.Spec.IPv4VXLANTunnelAddr = text(a)
		if a.IsValid() {
			n.Spec.VXLANTunnelMACAddr = n.VXLANMAC(false)
		}
	}
	if a, ok := got[alloc.TunnelVXLAN6]; ok {
		n.Spec.IPv6VXLANTunnelAddr = text(a)
		if a.IsValid() {
			n.Spec.VXLANTunnelMACAddrV6 = n.VXLANMAC(true)
		}
	}
}
