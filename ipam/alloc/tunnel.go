package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// Tunnel is a kind of tunnel device that needs an address of its own. The value is what api.OwnerType holds.
type Tunnel string

// The tunnels.
const (
	TunnelIPIP       Tunnel = "ipipTunnelAddress"
	TunnelVXLAN      Tunnel = "vxlanTunnelAddress"
	TunnelVXLAN6     Tunnel = "vxlanV6TunnelAddress"
	TunnelWireGuard  Tunnel = "wireguardTunnelAddress"
	TunnelWireGuard6 Tunnel = "wireguardV6TunnelAddress"
)

// tunnels says for each kind what its handle begins with, its family, and which pools need it.
var tunnels = map[Tunnel]struct {
	handle string
	family int
	needed func(pool) bool
}{
	TunnelIPIP: {"ipip-tunnel-addr-", 4, func(p pool) bool {
		return p.Spec.IPIPMode != "" && p.Spec.IPIPMode != api.IPIPNever || p.carries(api.EncapsulationIPIP)
	}},
	TunnelVXLAN:      {"vxlan-tunnel-addr-", 4, usesVXLAN},
	TunnelVXLAN6:     {"vxlan-v6-tunnel-addr-", 6, usesVXLAN},
	TunnelWireGuard:  {"wireguard-tunnel-addr-", 4, func(pool) bool { return true }},
	TunnelWireGuard6: {"wireguard-v6-tunnel-addr-", 6, func(pool) bool { return true }},
}

func usesVXLAN(p pool) bool {
	return p.Spec.VXLANMode != "" && p.Spec.VXLANMode != api.VXLANNever || p.carries(api.EncapsulationVXLAN)
}

// carries tells whether some node may still send packets to the pool in this way, although the pool's mode does not say
// so any more.
func (p pool) carries(e api.Encapsulation) bool {
	return p.Status != nil && p.Status.Transport != nil && slices.Contains(p.Status.Transport.Receive, e)
}

// Handle is the fixed handle of a node's tunnel address.
func (t Tunnel) Handle(node string) string { return tunnels[t].handle + node }

// EnsureTunnels makes sure that a node has an address for each of the given tunnels, and returns them. current holds the
// addresses that are in use now (as the Node says; the zero Addr for none). One that is the node's and in a fit pool is
// kept; an old one without owner is registered; else the one that the tunnel's handle has in a fit pool is taken, so that
// a Node that was edited gets its address back; else a new one is assigned, and what the handle had is released. A tunnel
// that no pool needs gets the zero Addr, and its old address is released. While a pool's mode changes
// (api.PoolTransport), the tunnels of both are needed.
//
// It is all or nothing as far as new addresses go: if one tunnel fails, those assigned in this call are released. A
// WireGuard tunnel should be asked for only while the node has a key.
func (a *Allocator) EnsureTunnels(ctx context.Context, node string, current map[Tunnel]netip.Addr) (map[Tunnel]netip.Addr, error) {
	o, err := a.begin(ctx)
	if err != nil {
		return nil, err
	}
	labels, err := a.nodeLabels(ctx, node)
	if err != nil {
		return nil, err
	}
	all, err := a.pools(ctx)
	if err != nil {
		return nil, err
	}
	out := map[Tunnel]netip.Addr{}
	var assigned []Tunnel
	for _, t := range []Tunnel{TunnelIPIP, TunnelVXLAN, TunnelVXLAN6, TunnelWireGuard, TunnelWireGuard6} {
		now, asked := current[t]
		if !asked {
			continue
		}
		addr, fresh, err := o.ensureTunnel(ctx, node, t, now.Unmap(), fitFor(t, enabled(all), labels))
		if err != nil {
			err = fmt.Errorf("address of tunnel %s on node %s: %w", t, node, err)
			ctx, cancel := forCleanup(ctx)
			defer cancel()
			for _, t := range assigned {
				err = errors.Join(err, a.releaseTunnel(ctx, node, t))
			}
			return nil, err
		}
		if fresh {
			assigned = append(assigned, t)
		}
		out[t] = addr
	}
	return out, nil
}

// ReleaseTunnels releases the addresses of all of a node's tunnels.
func (a *Allocator) ReleaseTunnels(ctx context.Context, node string) error {
	var errs []error
	for t := range tunnels {
		errs = append(errs, a.releaseTunnel(ctx, node, t))
	}
	return errors.Join(errs...)
}

func (a *Allocator) releaseTunnel(ctx context.Context, node string, t Tunnel) error {
	_, err := a.ReleaseByHandle(ctx, t.Handle(node))
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return err
}

// TunnelNeeds tells for a node's labels whether the pools want the node to have a tunnel.
func TunnelNeeds(pools []*api.IPPool) func(t Tunnel, labels map[string]string) bool {
	all := opened(pools)
	return func(t Tunnel, labels map[string]string) bool { return len(fitFor(t, all, labels)) > 0 }
}

// TunnelsFit tells whether EnsureTunnels would leave a node's addresses as they are, as far as can be told from pools and blocks
// that may be a moment old. What a tunnel that no pool needs has been left with is not looked for.
func TunnelsFit(pools []*api.IPPool, node string, labels map[string]string, current map[Tunnel]netip.Addr, at func(block netip.Prefix) *api.IPAMBlock) bool {
	all := opened(pools)
	for t, a := range current {
		fit := fitFor(t, all, labels)
		if len(fit) == 0 && !a.IsValid() {
			continue
		}
		p, inFit := containing(fit, a)
		if !inFit {
			return false
		}
		o := at(p.blockOf(a))
		if o == nil {
			return false
		}
		b, err := block.Of(o)
		if err != nil {
			return false
		}
		if has, _ := b.Lookup(a); has.Owner[api.OwnerNode] != node || has.Owner[api.OwnerType] != string(t) {
			return false
		}
	}
	return true
}

// opened are the pools that can be read and are not disabled.
func opened(pools []*api.IPPool) (all []pool) {
	for _, obj := range pools {
		if p, err := openPool(obj); err == nil {
			all = append(all, p)
		}
	}
	return enabled(all)
}

// fitFor picks the pools that need a tunnel on the node and may give it an address.
func fitFor(t Tunnel, fit []pool, labels map[string]string) []pool {
	var out []pool
	for _, p := range fit {
		if family(p.cidr.Addr()) == tunnels[t].family && tunnels[t].needed(p) && p.allows(api.UseTunnel) && p.selectsNode(labels) {
			out = append(out, p)
		}
	}
	return out
}

// ensureTunnel returns the tunnel's address, and whether it was assigned just now.
func (o op) ensureTunnel(ctx context.Context, node string, t Tunnel, current netip.Addr, fit []pool) (netip.Addr, bool, error) {
	if len(fit) == 0 {
		return netip.Addr{}, false, o.dropTunnel(ctx, node, t, current)
	}
	mine := map[string]string{api.OwnerNode: node, api.OwnerType: string(t)}
	if current.IsValid() {
		has, err := o.Address(ctx, current)
		_, inFit := containing(fit, current)
		switch {
		case err != nil && !errors.Is(err, ErrNotAssigned) && !errors.Is(err, ErrCooling):
			return netip.Addr{}, false, err
		case err != nil:
		case has.Owner[api.OwnerNode] == node && has.Owner[api.OwnerType] == string(t):
			if inFit {
				return current, false, nil
			}
			// By itself, for the case that its handle is lost.
			if _, err := o.Release(ctx, block.Release{Addr: current, Handle: has.Handle, Sequence: &has.Sequence}); err != nil {
				return netip.Addr{}, false, err
			}
		case len(has.Owner) == 0 && has.Handle == "":
			// Assigned before addresses had owners; nothing but a tunnel ever had none.
			done, err := o.adopt(ctx, node, t, has, mine)
			if err != nil || done {
				return current, done, err
			}
		}
	}
	had, err := o.byHandle(ctx, node, t, fit)
	if err != nil || had.IsValid() {
		return had, false, err
	}
	names := make([]string, len(fit))
	for i, p := range fit {
		names[i] = p.Name
	}
	got, err := o.AssignAll(ctx, Request{
		Node: node, Family: tunnels[t].family, Count: 1, Handle: t.Handle(node), Attributes: mine, Use: api.UseTunnel, Pools: names,
	})
	if err != nil {
		return netip.Addr{}, false, err
	}
	return got[0].Addrs[0].Addr(), true, nil
}

// byHandle returns the address that a tunnel's handle has in a fit pool, and releases whatever else it has.
func (o op) byHandle(ctx context.Context, node string, t Tunnel, fit []pool) (netip.Addr, error) {
	list, err := o.ByHandle(ctx, t.Handle(node))
	if err != nil {
		return netip.Addr{}, err
	}
	keep := slices.IndexFunc(list, func(p netip.Prefix) bool {
		_, ok := containing(fit, p.Addr())
		return ok
	})
	if keep < 0 {
		return netip.Addr{}, o.releaseTunnel(ctx, node, t)
	}
	var rest []block.Release
	for i, p := range list {
		if i != keep {
			rest = append(rest, block.Release{Addr: p.Addr(), Handle: t.Handle(node)})
		}
	}
	if len(rest) > 0 {
		_, err = o.Release(ctx, rest...)
	}
	return list[keep].Addr(), err
}

// adopt registers an address that has neither handle nor owner as the tunnel's. It returns false if somebody else was
// faster to take it.
func (o op) adopt(ctx context.Context, node string, t Tunnel, has block.Allocation, mine map[string]string) (bool, error) {
	if _, err := o.Release(ctx, block.Release{Addr: has.Addr, Sequence: &has.Sequence}); err != nil {
		return false, err
	}
	err := o.AssignIP(ctx, Specific{Addr: has.Addr, Node: node, Handle: t.Handle(node), Attributes: mine})
	if _, taken := errors.AsType[*block.TakenError](err); taken {
		return false, nil
	}
	return err == nil, err
}

// dropTunnel releases the address of a tunnel that is not needed any more: by its handle, and an old one that has none.
func (o op) dropTunnel(ctx context.Context, node string, t Tunnel, current netip.Addr) error {
	if err := o.releaseTunnel(ctx, node, t); err != nil || !current.IsValid() {
		return err
	}
	has, err := o.Address(ctx, current)
	if errors.Is(err, ErrNotAssigned) || errors.Is(err, ErrCooling) {
		return nil
	}
	if err != nil {
		return err
	}
	if has.Handle == t.Handle(node) || (has.Handle == "" && len(has.Owner) == 0) {
		_, err = o.Release(ctx, block.Release{Addr: current, Handle: has.Handle, Sequence: &has.Sequence})
	}
	return err
}
