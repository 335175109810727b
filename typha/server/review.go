package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/datastore"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/cache"
)

// Review tells what the node has reserved, and of what it is to let go.
func (s ipamService) Review(ctx context.Context, m *typhav1.ReviewRequest) (*typhav1.ReviewResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	n, err := s.nodes.get(ctx, node)
	switch {
	case errors.Is(err, datastore.ErrNotFound) && m.GetEpoch() != 0:
		return nil, status.Errorf(codes.FailedPrecondition, "node %s is not registered (any more)", node)
	case errors.Is(err, datastore.ErrNotFound):
		return nil, status.Errorf(codes.NotFound, "node %s is not registered; register it before it takes warm addresses", node)
	case err != nil:
		return nil, storeError(err)
	}
	answer := &typhav1.ReviewResponse{Epoch: n.IPAMEpoch()}
	if answer.Epoch == 0 || answer.Epoch != m.GetEpoch() {
		return answer, nil
	}
	if err := s.tidy(ctx, n); err != nil {
		return nil, err
	}
	cfg, err := s.cfg.Alloc.Configuration(ctx)
	if err != nil {
		return nil, allocError(err)
	}
	answer.CooldownSeconds = uint32(cfg.IPCooldownSeconds)
	list, err := s.cfg.Alloc.ByHandle(ctx, warmHandle(node, answer.Epoch))
	if err != nil {
		return nil, allocError(err)
	}
	var addrs []netip.Addr
	for _, p := range list {
		addrs = append(addrs, p.Addr())
	}
	found, err := s.lookup(ctx, addrs)
	if err != nil {
		return nil, allocError(err)
	}
	fit := s.fitness(n)
	for _, a := range addrs {
		f, ok := found[a]
		if !ok || f.Handle != warmHandle(node, answer.Epoch) {
			continue // settled since it was listed
		}
		w := &typhav1.WarmAddress{Address: a.AsSlice(), Sequence: f.Sequence}
		w.Unfit, w.ByNameOnly = fit(a, f)
		answer.Addresses = append(answer.Addresses, w)
	}
	return answer, nil
}

// fitness tells why a warm address of a node should not go to a pod, or only to one that names its pool.
func (s *Server) fitness(n *api.Node) func(netip.Addr, allocation) (unfit, byName string) {
	now := s.cfg.Cache.Snapshot()
	pools := map[string]*api.IPPool{}
	for p := range now.Pools() {
		pools[p.Name] = p
	}
	var reserved []netip.Prefix
	for r := range cache.All[*api.IPReservation](now, "IPReservation") {
		for _, text := range r.Spec.ReservedCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				reserved = append(reserved, p)
			} else if a, err := netip.ParseAddr(text); err == nil {
				reserved = append(reserved, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	refuse, full, choosy := s.refuse(n.Name), s.fullness(), byNamespace(now, n)
	return func(a netip.Addr, f allocation) (unfit, byName string) {
		p := pools[f.pool]
		switch {
		case p == nil:
			return "no pool has it any more", ""
		case unusable(p) != "":
			return unusable(p), ""
		case slices.ContainsFunc(reserved, func(r netip.Prefix) bool { return r.Contains(a) }):
			return "an IPReservation has it", ""
		case f.affinity != string(api.AffinityHost)+":"+n.Name:
			return fmt.Sprintf("block %s is not the node's any more", f.block), ""
		case full.short(p):
			return fmt.Sprintf("pool %s is nearly full", p.Name), ""
		}
		if refuse != nil {
			if err := refuse(p); err != nil {
				return err.Error(), ""
			}
		}
		return "", cmp.Or(declines(p, n), choosy(p))
	}
}

// byNamespace tells why pods of a node that name no pool get no warm addresses of a pool: where a pool of the family is for certain
// namespaces, which one serves a pod depends on its namespace, and a warm address is chosen before there is a pod. n is nil if the node
// is not known here (yet).
func byNamespace(now *cache.Snapshot, n *api.Node) func(*api.IPPool) string {
	choosy := map[bool]*api.IPPool{} // one of each family
	for p := range now.Pools() {
		if first := choosy[isIPv6(p)]; choosesNamespaces(p) && declines(p, n) == "" && (first == nil || p.Name < first.Name) {
			choosy[isIPv6(p)] = p
		}
	}
	return func(p *api.IPPool) string {
		by := choosy[isIPv6(p)]
		if choosesNamespaces(p) {
			by = p
		}
		if by == nil {
			return ""
		}
		return fmt.Sprintf("pool %s is for namespaces with %s, so which pool serves a pod depends on its namespace", by.Name, by.Spec.NamespaceSelector)
	}
}

// declines says why a pool serves no pod of a node that does not name it.
func declines(p *api.IPPool, n *api.Node) string {
	switch {
	case unusable(p) != "":
		return unusable(p)
	case p.Spec.AssignmentMode != nil && *p.Spec.AssignmentMode == api.AssignManual:
		return fmt.Sprintf("pool %s is for requests by name only", p.Name)
	case n == nil || p.Spec.NodeSelector == "":
		return ""
	}
	if sel, err := selector.Parse(p.Spec.NodeSelector); err != nil || !sel.Matches(n.Labels) {
		return fmt.Sprintf("pool %s is for nodes with %s", p.Name, p.Spec.NodeSelector)
	}
	return ""
}

// unusable says why no pod gets new addresses of a pool.
func unusable(p *api.IPPool) string {
	switch {
	case p.Spec.Disabled || p.DeletionTimestamp != nil:
		return fmt.Sprintf("pool %s is disabled", p.Name)
	case len(p.Spec.AllowedUses) > 0 && !slices.Contains(p.Spec.AllowedUses, api.UseWorkload):
		return fmt.Sprintf("pool %s is not for workloads", p.Name)
	}
	return ""
}

// choosesNamespaces tells whether a pool does not serve the pods of all namespaces.
func choosesNamespaces(p *api.IPPool) bool {
	return p.Spec.NamespaceSelector != "" && p.Spec.NamespaceSelector != "all()"
}

func isIPv6(p *api.IPPool) bool { return strings.Contains(p.Spec.CIDR, ":") }

// shortShare is the part of a pool that must be free for nodes to keep addresses of it in reserve.
const shortShare = 1.0 / 16

// fullness tells which pools are nearly full.
type fullness struct {
	at   time.Time
	free map[string]float64 // share of a pool's addresses that nobody has, by name
}

func (f fullness) short(p *api.IPPool) bool {
	free, known := f.free[p.Name]
	return known && free < shortShare
}

// fullnessEvery is how often it is computed, whoever asks.
const fullnessEvery = time.Second

// lastFullness is the one computed last.
type lastFullness struct {
	mu   sync.Mutex // guards last
	last fullness
}

// fullness goes through the blocks of the cache.
func (s *Server) fullness() fullness {
	s.full.mu.Lock()
	defer s.full.mu.Unlock()
	if time.Since(s.full.last.at) < fullnessEvery {
		return s.full.last
	}
	now := s.cfg.Cache.Snapshot()
	type pool struct {
		name string
		cidr netip.Prefix
		used int
	}
	var pools []*pool
	for p := range now.Pools() {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil {
			pools = append(pools, &pool{name: p.Name, cidr: cidr.Masked()})
		}
	}
	for o := range cache.All[*api.IPAMBlock](now, "IPAMBlock") {
		cidr, err := netip.ParsePrefix(o.Spec.CIDR)
		if err != nil {
			continue
		}
		if i := slices.IndexFunc(pools, func(p *pool) bool { return p.cidr.Contains(cidr.Addr()) }); i >= 0 {
			pools[i].used += len(o.Spec.Allocations) - len(o.Spec.Unallocated)
		}
	}
	s.full.last = fullness{at: time.Now(), free: map[string]float64{}}
	for _, p := range pools {
		total := math.Pow(2, float64(p.cidr.Addr().BitLen()-p.cidr.Bits()))
		s.full.last.free[p.name] = 1 - float64(p.used)/total
	}
	return s.full.last
}
