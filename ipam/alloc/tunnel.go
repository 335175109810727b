package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

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
	needed func(api.IPPoolSpec) bool
}{
	TunnelIPIP:       {"ipip-tunnel-addr-", 4, func(p api.IPPoolSpec) bool { return p.IPIPMode != "" && p.IPIPMode != api.IPIPNever }},
	TunnelVXLAN:      {"vxlan-tunnel-addr-", 4, usesVXLAN},
	TunnelVXLAN6:     {"vxlan-v6-tunnel-addr-", 6, usesVXLAN},
	TunnelWireGuard:  {"wireguard-tunnel-addr-", 4, func(api.IPPoolSpec) bool { return true }},
	TunnelWireGuard6: {"wireguard-v6-tunnel-addr-", 6, func(api.IPPoolSpec) bool { return true }},
}

func usesVXLAN(p api.IPPoolSpec) bool { return p.VXLANMode != "" && p.VXLANMode != api.VXLANNever }

// Handle is the fixed handle of a node's tunnel address.
func (t Tunnel) Handle(node string) string { return tunnels[t].handle + node }

// EnsureTunnels makes sure that a node has an address for each of the given tunnels, and returns them. current holds the
// addresses that are in use now (as the Node says; the zero Addr for none). One that is the node's and in a fit pool is
// kept; an old one without owner is registered; else a new one is assigned, and what the tunnel's handle had is released.
// A tunnel that no pool needs gets the zero Addr, and its old address is released.
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

// fitFor picks the pools that need a tunnel on the node and may give it an address.
func fitFor(t Tunnel, fit []pool, labels map[string]string) []pool {
	var out []pool
	for _, p := range fit {
		if family(p.cidr.Addr()) == tunnels[t].family && tunnels[t].needed(p.Spec) && p.allows(api.UseTunnel) && p.selectsNode(labels) {
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
	keepOld := false // somebody else has the address
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
		case len(has.Owner) == 0 && has.Handle == "":
			// Assigned before addresses had owners; nothing but a tunnel ever had none.
			done, err := o.adopt(ctx, node, t, has, mine)
			if err != nil || done {
				return current, done, err
			}
		default:
			keepOld = has.Handle != t.Handle(node)
		}
	}
	if !keepOld {
		if err := o.releaseTunnel(ctx, node, t); err != nil {
			return netip.Addr{}, false, err
		}
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
