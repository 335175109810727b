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
func (p pool) enabled() bool { return p.closed() == "" }

// closed says why no new addresses may be taken from the pool; empty if they may.
func (p pool) closed() string {
	switch {
	case p.Spec.Disabled:
		return "it is disabled"
	case p.DeletionTimestamp != nil:
		return "it is being deleted"
	case p.Status == nil:
		return ""
	}
	for _, c := range p.Status.Conditions {
		// Whether the pool is disabled its spec says; the condition only follows.
		if c.Type == api.ConditionAllocatable && c.Status == "False" && c.Reason != api.ReasonPoolDisabled {
			return fmt.Sprintf("it is not allocatable (%s: %s)", c.Reason, c.Message)
		}
	}
	return ""
}

func (p pool) selectsNode(labels map[string]string) bool {
	return p.nodes == nil || p.nodes.Matches(labels)
}

func (p pool) automatic() bool {
	return p.Spec.AssignmentMode == nil || *p.Spec.AssignmentMode != api.AssignManual
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

// reserved collects all IPReservations. Bad entries are logged and left out.
func (a *Allocator) reserved(ctx context.Context) (block.Reserved, error) {
	all, err := list[*api.IPReservation](ctx, a.ds, kindReservation, "")
	if err != nil {
		return block.Reserved{}, fmt.Errorf("failed to look up reserved IPs: %w", err)
	}
	set, bad := block.ReadReserved(all)
	for _, err := range bad {
		a.log.Warn("leaving out an entry of a reservation", "error", err)
	}
	return set, nil
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
