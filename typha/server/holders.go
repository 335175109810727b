package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/typha/cache"
)

// holders tells to which node each of the addresses is allocated; those that are not allocated are left out. What the
// cache says yes to needs no reading; the rest may be newer than the cache, so the datastore is asked, once for each
// block.
func (s *Server) holders(ctx context.Context, addresses []netip.Addr) (map[netip.Addr]string, error) {
	out := map[netip.Addr]string{}
	if len(addresses) == 0 {
		return out, nil
	}
	pools, err := s.poolBlocks(ctx)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Cache.Snapshot()
	blocks := map[netip.Prefix]block.Block{} // nothing is changed in them: their objects are shared
	var ask []netip.Addr
	for _, a := range addresses {
		p, ok := poolOf(pools, a)
		cidr := p.blockOf(a)
		if !ok {
			if cidr, ok = blockAround(now, a); !ok {
				continue
			}
		}
		b, known := blocks[cidr]
		if o, ok := now.Get(blockKey(cidr)).(*api.IPAMBlock); ok && !known {
			if b, err = block.Of(o.DeepCopy()); err == nil {
				blocks[cidr] = b
			}
		}
		if b.IPAMBlock == nil {
			ask = append(ask, a)
			continue
		}
		if has, ok := b.Lookup(a); ok && !has.Cooling() && has.Owner[api.OwnerNode] != "" {
			out[a] = has.Owner[api.OwnerNode]
			continue
		}
		ask = append(ask, a)
	}
	found, err := s.lookup(ctx, ask)
	for a, f := range found {
		out[a] = f.node()
	}
	return out, err
}

// blockAround is the block of the cache that an address lies in. When a pool is deleted pods keep their addresses, and blocks tell
// whose they are.
func blockAround(now *cache.Snapshot, a netip.Addr) (netip.Prefix, bool) {
	const sizes = 13 // from /20 to /32, and from /116 to /128
	for i := range sizes {
		if cidr := netip.PrefixFrom(a, a.BitLen()-i).Masked(); now.Get(blockKey(cidr)) != nil {
			return cidr, true
		}
	}
	return netip.Prefix{}, false
}

func blockKey(cidr netip.Prefix) api.Key {
	return api.Key{Kind: "IPAMBlock", Name: api.BlockName(cidr)}
}

// poolBlocks is a pool's range and the prefix length of its blocks.
type poolBlocks struct {
	name string
	cidr netip.Prefix
	bits int
}

// blockOf is the block that an address of the pool lies in.
func (p poolBlocks) blockOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, p.bits).Masked() }

// poolBlocks lists the pools: those of the cache, or if it has none yet those of the datastore.
func (s *Server) poolBlocks(ctx context.Context) ([]poolBlocks, error) {
	var out []poolBlocks
	for p := range s.cfg.Cache.Snapshot().Pools() {
		out = appendPool(out, p)
	}
	if len(out) > 0 {
		return out, nil
	}
	return s.storedPools(ctx)
}

// storedPools lists the pools of the datastore.
func (s *Server) storedPools(ctx context.Context) ([]poolBlocks, error) {
	var out []poolBlocks
	l, err := s.cfg.Datastore.List(ctx, "IPPool", datastore.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("pools: %w", err)
	}
	for _, o := range l.Items {
		out = appendPool(out, o.(*api.IPPool))
	}
	return out, nil
}

func appendPool(list []poolBlocks, p *api.IPPool) []poolBlocks {
	cidr, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return list
	}
	full := p.DeepCopy() // the object is shared, and what is stored may lack defaults
	full.Default()
	return append(list, poolBlocks{name: p.Name, cidr: cidr.Masked(), bits: full.Spec.BlockSize})
}

// poolFinder finds the pools of addresses: among those of the cache, and once among those of the datastore, which may be newer.
type poolFinder struct {
	server *Server
	pools  []poolBlocks
	stored bool
}

func (s *Server) poolFinder(ctx context.Context) (*poolFinder, error) {
	pools, err := s.poolBlocks(ctx)
	return &poolFinder{server: s, pools: pools}, err
}

// of is the pool of an address; ok is false if there is none.
func (f *poolFinder) of(ctx context.Context, a netip.Addr) (p poolBlocks, ok bool, err error) {
	if p, ok = poolOf(f.pools, a); ok || f.stored {
		return p, ok, nil
	}
	if f.pools, err = f.server.storedPools(ctx); err != nil {
		return p, false, err
	}
	f.stored = true
	p, ok = poolOf(f.pools, a)
	return p, ok, nil
}

// poolOf is the pool of an address.
func poolOf(pools []poolBlocks, a netip.Addr) (poolBlocks, bool) {
	i := slices.IndexFunc(pools, func(p poolBlocks) bool { return p.cidr.Contains(a) })
	if i < 0 {
		return poolBlocks{}, false
	}
	return pools[i], true
}
