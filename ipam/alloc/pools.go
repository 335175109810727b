package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// pool is an api.IPPool taken apart.
type pool struct {
	*api.IPPool
	cidr       netip.Prefix
	bits       int                // prefix length of its blocks
	nodes      *selector.Selector // nil: all
	namespaces *selector.Selector // nil: all
}

// pools lists all pools in name order. Those that cannot be read are logged and left out.
func (a *Allocator) pools(ctx context.Context) ([]pool, error) {
	all, err := list[*api.IPPool](ctx, a.ds, kindPool, "")
	if err != nil {
		return nil, fmt.Errorf("list of IP pools: %w", err)
	}
	out := make([]pool, 0, len(all))
	for _, obj := range all {
		p, err := openPool(obj)
		if err != nil {
			a.log.Warn("leaving out a pool", "pool", obj.Name, "error", err)
			continue
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(x, y pool) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

func openPool(obj *api.IPPool) (pool, error) {
	cidr, err := netip.ParsePrefix(obj.Spec.CIDR)
	if err != nil {
		return pool{}, fmt.Errorf("spec.cidr: %w", err)
	}
	p := pool{IPPool: obj, cidr: cidr.Masked(), bits: obj.Spec.BlockSize}
	if p.bits == 0 {
		p.bits = api.DefaultBlockSize4
		if !cidr.Addr().Is4() {
			p.bits = api.DefaultBlockSize6
		}
	}
	if p.bits < cidr.Bits() || p.bits > cidr.Addr().BitLen() || cidr.Addr().BitLen()-p.bits > 16 {
		return pool{}, fmt.Errorf("spec.blockSize %d does not fit spec.cidr %s", p.bits, cidr)
	}
	if p.nodes, err = parseSelector(obj.Spec.NodeSelector); err != nil {
		return pool{}, fmt.Errorf("spec.nodeSelector: %w", err)
	}
	if p.namespaces, err = parseSelector(obj.Spec.NamespaceSelector); err != nil {
		return pool{}, fmt.Errorf("spec.namespaceSelector: %w", err)
	}
	return p, nil
}

func parseSelector(s string) (*selector.Selector, error) {
	if s == "" {
		return nil, nil
	}
	return selector.Parse(s)
}

// enabled tells whether new addresses may be taken from the pool.
func (p pool) enabled() bool {
	if p.Spec.Disabled || p.DeletionTimestamp != nil {
		return false
	}
	if p.Status != nil {
		for _, c := range p.Status.Conditions {
			// Whether the pool is disabled its spec says; the condition only follows.
			if c.Type == api.ConditionAllocatable && c.Status == "False" && c.Reason != api.ReasonPoolDisabled {
				return false
			}
		}
	}
	return true
}

func (p pool) selectsNode(labels map[string]string) bool {
	return p.nodes == nil || p.nodes.Matches(labels)
}

func (p pool) automatic() bool {
	return p.Spec.AssignmentMode == nil || *p.Spec.AssignmentMode != api.AssignManual
}

func (p pool) allows(use api.IPPoolUse) bool {
	if len(p.Spec.AllowedUses) == 0 {
		return use != api.UseLoadBalancer
	}
	return slices.Contains(p.Spec.AllowedUses, use)
}

// blockOf is the block position of an address of the pool.
func (p pool) blockOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, p.bits).Masked() }

// containing returns the pool that an address is in.
func containing(pools []pool, a netip.Addr) (pool, bool) {
	i := slices.IndexFunc(pools, func(p pool) bool { return p.cidr.Contains(a) })
	if i < 0 {
		return pool{}, false
	}
	return pools[i], true
}

func enabled(pools []pool) []pool {
	return slices.DeleteFunc(slices.Clone(pools), func(p pool) bool { return !p.enabled() })
}

// choose picks the pools for a request out of the enabled ones: those it names, in its order and whatever their
// selectors and mode say, else the automatic ones that select the node and the namespace. Both must allow the use, and
// not be refused.
func choose(fit []pool, r Request, node map[string]string) ([]pool, error) {
	fit = slices.DeleteFunc(slices.Clone(fit), func(p pool) bool { return family(p.cidr.Addr()) != r.Family })
	if len(fit) == 0 {
		return nil, fmt.Errorf("%w: there is no enabled IPv%d pool; create one with calicoctl", ErrNoPool, r.Family)
	}
	var chosen []pool
	var passed []string // why others were passed over
	if len(r.Pools) > 0 {
		for _, name := range r.Pools {
			p, err := requested(fit, name, r.Family)
			if err != nil {
				return nil, err
			}
			chosen = append(chosen, p)
		}
	} else {
		for _, p := range fit {
			switch {
			case !p.automatic():
				passed = append(passed, fmt.Sprintf("%s is for requests by name only", p.Name))
			case !p.selectsNode(node):
				passed = append(passed, fmt.Sprintf("nodeSelector %s of %s does not match", p.nodes, p.Name))
			case p.namespaces != nil && !p.namespaces.Matches(r.NamespaceLabels):
				passed = append(passed, fmt.Sprintf("namespaceSelector %s of %s does not match", p.namespaces, p.Name))
			default:
				chosen = append(chosen, p)
			}
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%w: no configured Calico pools for node %s: %s", ErrNoPool, r.Node, strings.Join(passed, "; "))
	}
	allowed := slices.DeleteFunc(chosen, func(p pool) bool { return !p.allows(r.Use) })
	if len(allowed) == 0 {
		return nil, fmt.Errorf("%w, no pools match the required use (%s)", ErrNoPool, r.Use)
	}
	var refused error
	usable := slices.DeleteFunc(allowed, func(p pool) bool {
		err := r.refuses(p)
		if refused == nil {
			refused = err
		}
		return err != nil
	})
	if len(usable) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrNoPool, refused)
	}
	return usable, nil
}

// refuses says why the caller does not want a pool to be used; nil if it does.
func (r Request) refuses(p pool) error {
	if r.Refuse == nil {
		return nil
	}
	return r.Refuse(p.IPPool)
}

// requested finds an enabled pool by name or CIDR.
func requested(fit []pool, name string, family int) (pool, error) {
	cidr, err := netip.ParsePrefix(name)
	for _, p := range fit {
		if p.Name == name || (err == nil && p.cidr == cidr.Masked()) {
			return p, nil
		}
	}
	if err == nil && cidr.Addr().Is4() != (family == 4) {
		return pool{}, fmt.Errorf("%w: pool %s was given for IPv%d addresses, but is of the other family", ErrNoPool, name, family)
	}
	return pool{}, fmt.Errorf("%w: the given pool (%s) does not exist, or is not enabled", ErrNoPool, name)
}

// reserved collects all IPReservations. Bad entries are logged and left out.
func (a *Allocator) reserved(ctx context.Context) (block.Reserved, error) {
	all, err := list[*api.IPReservation](ctx, a.ds, kindReservation, "")
	if err != nil {
		return block.Reserved{}, fmt.Errorf("failed to look up reserved IPs: %w", err)
	}
	var prefixes []netip.Prefix
	for _, obj := range all {
		for _, text := range obj.Spec.ReservedCIDRs {
			p, err := netip.ParsePrefix(text)
			if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
				p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
			}
			if err != nil {
				a.log.Warn("leaving out a reservation", "reservation", obj.Name, "error", err)
				continue
			}
			prefixes = append(prefixes, p)
		}
	}
	return block.NewReserved(prefixes...), nil
}

// nodeLabels reads the labels of a node.
func (a *Allocator) nodeLabels(ctx context.Context, node string) (map[string]string, error) {
	n, err := get[*api.Node](ctx, a.ds, api.Key{Kind: kindNode, Name: node})
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, fmt.Errorf("node %s is not registered, so no pool can be chosen for it; start calico-node there: %w", node, err)
	}
	if err != nil {
		return nil, err
	}
	return n.Labels, nil
}
