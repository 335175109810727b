package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// AllPaths tells whether the peer is sent every path to a prefix that it may have (RFC 7911), and not the best alone, if it
// takes them. A reflector's peers are: each chooses by its own lights then, and spreads over those that are equally good. So
// is one that is told the next hops of others. Elsewhere this node is the next hop, and one path says all.
//
// Sessions of the mesh are not: what goes over them has one source, but for services, by which no node routes.
func (p *Peer) AllPaths(c *Config) bool {
	switch {
	case p.Switches(c):
		return false
	case p.NextHop == NextHopKeep:
		return true
	}
	return p.Internal(c) && c.Reflects() && p.NextHop == NextHopAuto
}

// Exported lists the prefixes inside which the default decision lets routes out.
func (c *Config) Exported() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range c.Export.Pools {
		out = append(out, p.Prefix)
	}
	for _, o := range c.Originate {
		out = append(out, o.Prefix)
	}
	return slices.Concat(out, c.Export.OwnBlocks, c.Export.ServiceRanges)
}

func (k *compiler) allPaths(peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return !p.AllPaths(k.c) })
}

// takeBack ends the export of what nothing has let out, to peers that are sent all paths. Without filters the prefix alone
// decides, and it must have been let out once; a filter may have let out anything.
func (k *compiler) takeBack(peers []Peer, exports []class, ctx Context, add func(...Statement)) {
	plain := k.allPaths(peers)
	for _, cl := range exports {
		all := k.allPaths(cl.members)
		if len(all) == 0 {
			continue
		}
		add(Statement{Name: fmt.Sprintf("take back class %d", cl.id), Neighbor: k.neighbors(fmt.Sprintf("all paths %d", cl.id), all), Action: TakeBack})
		plain = slices.DeleteFunc(plain, func(p Peer) bool {
			return slices.ContainsFunc(all, func(o Peer) bool { return o.Address == p.Address })
		})
	}
	if len(plain) == 0 {
		return
	}
	for _, v6 := range []bool{false, true} {
		if ranges := prefixes(ctx.LetOut, v6, false); len(ranges) > 0 {
			name := "let out once " + familyName(v6)
			add(Statement{
				Name: "take back " + familyName(v6), Neighbor: k.neighbors("all paths", plain),
				Prefix: k.set(Set{Kind: PrefixSet, Name: name, Prefixes: ranges}), Action: TakeBack,
			})
		}
	}
}
