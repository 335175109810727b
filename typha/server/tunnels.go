package server

import (
	"context"
	"crypto/sha1" //nolint:gosec // the rule that all nodes compute MACs by, not a matter of security
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
)

// retryTunnels is how long after a failure a node's tunnel addresses are looked at again.
const retryTunnels = 10 * time.Second

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

func newNodes(store datastore.Client, a *alloc.Allocator, log *slog.Logger) *nodes {
	return &nodes{
		store: store, alloc: a, log: log, connected: func() []string { return nil },
		queue: make(chan struct{}, 1), pending: pendingNodes{names: map[string]struct{}{}},
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
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := datastore.Follow(ctx, s.store, "IPPool", datastore.FollowOptions{Logger: s.log}, func(datastore.Delta[*api.IPPool]) error {
			s.check(s.connected()...)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	group.Go(func() error { return s.work(ctx) })
	return group.Wait()
}

func (s *nodes) work(ctx context.Context) error {
	var retry <-chan time.Time
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
		for name := range s.pending.take() {
			if err := s.ensure(ctx, name); err != nil && ctx.Err() == nil {
				s.log.Warn("tunnel addresses of a node are not right, trying again", "node", name, "within", retryTunnels, "error", err)
				failed[name] = struct{}{}
			}
		}
		if len(failed) > 0 && retry == nil {
			retry = time.After(time.Duration(float64(retryTunnels) * (0.5 + rand.Float64()/2)))
		}
	}
}

func (s *nodes) ensure(ctx context.Context, name string) error {
	n, err := s.get(ctx, name)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil // not registered yet; Register sees to it
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
		n.Spec.VXLANTunnelMACAddr = vxlanMAC(n.Spec.VXLANTunnelMACAddr, n.Name, a)
	}
	if a, ok := got[alloc.TunnelVXLAN6]; ok {
		n.Spec.IPv6VXLANTunnelAddr = text(a)
		n.Spec.VXLANTunnelMACAddrV6 = vxlanMAC(n.Spec.VXLANTunnelMACAddrV6, n.Name+"-v6", a)
	}
}

// vxlanMAC is the Ethernet address of a VXLAN device: the stored one, else 66 and the first five bytes of the SHA-1 of
// the seed, which every implementation computes alike.
func vxlanMAC(stored, seed string, tunnel netip.Addr) string {
	if _, err := net.ParseMAC(stored); err == nil || !tunnel.IsValid() {
		return stored
	}
	sum := sha1.Sum([]byte(seed)) //nolint:gosec // see the import
	return fmt.Sprintf("66:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4])
}
