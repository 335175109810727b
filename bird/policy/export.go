package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// tagLearned emits the statements that write the export decision on learned routes. The tags of the default decision and
// those of each filter class are independent of each other.
func (k *compiler) tagLearned(exports []class) {
	for _, cl := range exports {
		undecided := k.set(Set{
			Kind: LargeCommunitySet, Name: fmt.Sprintf("class %d", cl.id),
			Patterns: []string{fmt.Sprintf("^%d:%d:", uint32(TagAdmin), cl.id)},
		})
		undecided.Invert = true
		for _, f := range cl.filters {
			for i, r := range f.Rules(cl.v6, true) {
				when, ok := k.conditions(&r, where(f.Name, cl.v6, true, i), cl.internal)
				if !ok {
					continue
				}
				when.Name = fmt.Sprintf("%s class %d", when.Name, cl.id)
				if when.Prefix.Set == "" { // a set of prefixes, also an inverted one, matches its own family only
					when.Prefix = k.family(cl.v6)
				}
				when.Neighbor, when.LargeCommunity = k.anyNeighbor(), undecided
				if r.Community != nil && r.Community.Large {
					when = k.viaMark(&k.imports, when, *r.Community)
				}
				value := uint32(tagReject)
				if r.Accept {
					value = outcome(r.Operations)
				}
				when.AddCommunities = []Community{tag(cl.id, value)}
				k.imports = append(k.imports, when)
			}
		}
	}
	for _, v6 := range []bool{false, true} {
		k.tagDefault(v6)
	}
}

// tagDefault emits the default export decision for learned routes of a family: the first set that has the prefix decides.
func (k *compiler) tagDefault(v6 bool) {
	var disabled, pools, originated []netip.Prefix
	for _, p := range k.c.Export.Pools {
		if p.DisableExport {
			disabled = append(disabled, p.Prefix)
		}
		pools = append(pools, p.Prefix)
	}
	for _, o := range k.c.Originate {
		originated = append(originated, o.Prefix)
	}
	var services []netip.Prefix
	if k.c.Reflects() {
		services = k.c.Export.ServiceRanges
	}
	undecided := k.set(Set{
		Kind: LargeCommunitySet, Name: "general",
		Patterns: []string{fmt.Sprintf("^%d:%d:[%d%d]$", uint32(TagAdmin), tagGeneral, tagInternal, tagExternal), "^" + refused.String() + "$"},
	})
	undecided.Invert = true
	yes := []Community{generalTag(true), generalTag(false)}
	no := []Community{refused}
	for _, step := range []struct {
		name   string
		list   []netip.Prefix
		exact  bool
		result []Community
	}{
		{"pools not exported", disabled, false, no},
		{"own blocks", k.c.Export.OwnBlocks, true, yes},
		{"inside own blocks", k.c.Export.OwnBlocks, false, no},
		{"originated", originated, true, yes},
		{"service ranges", services, false, yes},
		{"pools", pools, false, yes},
	} {
		if ranges := prefixes(step.list, v6, step.exact); len(ranges) > 0 {
			name := fmt.Sprintf("%s %s", step.name, familyName(v6))
			k.imports = append(k.imports, Statement{
				Name: name, Neighbor: k.anyNeighbor(), Prefix: k.set(Set{Kind: PrefixSet, Name: name, Prefixes: ranges}),
				LargeCommunity: undecided, AddCommunities: step.result,
			})
		}
	}
}

// refused marks a learned route that the default decision keeps back.
var refused = tag(tagGeneral, 4)

// ofWorkload marks a route learned from a pod of this node. Its next hop is the pod, to which others go by this node.
var ofWorkload = tag(tagGeneral, 6)

// TakenBack is for engines to mark a path with that they take back (see TakeBack).
var TakenBack = tag(tagGeneral, 5)

func (k *compiler) family(v6 bool) Match {
	return k.set(Set{Kind: PrefixSet, Name: familyName(v6), Prefixes: prefixes([]netip.Prefix{everything(v6)}, v6, false)})
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// exportProgram reads the tags: what filters decided first, then the default decision.
func (k *compiler) exportProgram(peers []Peer, exports []class, ctx Context) {
	add := func(s ...Statement) { k.exports = append(k.exports, s...) }
	if ctx.Drain != InService {
		add(Statement{Name: "draining", AddCommunities: []Community{gracefulShutdown}})
	}
	if slices.ContainsFunc(peers, func(p Peer) bool { return p.Type == PeerLocalWorkload }) {
		add(Statement{Name: "learned from workloads", LargeCommunity: k.tagged(ofWorkload), NextHop: NextHopSelf})
	}
	for _, cl := range exports {
		who := k.neighbors(fmt.Sprintf("export %d", cl.id), cl.members)
		local := cl.local
		if cl.internal {
			local = 0
		}
		done := map[uint32]bool{}
		for _, f := range cl.filters {
			for i, r := range f.Rules(cl.v6, true) {
				o := outcome(r.Operations)
				if !r.Accept || done[o] {
					continue
				}
				done[o] = true
				when := Statement{Neighbor: who, LargeCommunity: k.tagged(tag(cl.id, o))}
				name := fmt.Sprintf("%s class %d", where(f.Name, cl.v6, true, i), cl.id)
				add(k.operations(name, when, r.Operations, true, local)...)
				when.Name = name
				add(accept(when, cl.next))
			}
		}
		rejected := k.tagged(tag(cl.id, tagReject))
		if all := k.allPaths(cl.members); len(all) > 0 {
			add(Statement{
				Name: fmt.Sprintf("filters take back class %d", cl.id), Neighbor: k.neighbors(fmt.Sprintf("all paths %d", cl.id), all),
				LargeCommunity: rejected, Action: TakeBack,
			})
		}
		add(Statement{
			Name: fmt.Sprintf("filters reject class %d", cl.id), Neighbor: who,
			LargeCommunity: rejected, Action: Reject,
		})
	}
	for _, v6 := range []bool{false, true} {
		for i, a := range k.c.Export.Advertisements {
			if a.Prefix.Addr().Is6() == v6 {
				name := fmt.Sprintf("advertisement %d", i)
				ranges := prefixes([]netip.Prefix{a.Prefix}, v6, false)
				add(Statement{Name: name, Prefix: k.set(Set{Kind: PrefixSet, Name: name, Prefixes: ranges}), AddCommunities: a.Communities})
			}
		}
	}
	k.defaults(peers, add)
	k.takeBack(peers, exports, ctx, add)
}

// defaults lets the default decision's routes out, to each kind of session by its own tag and next-hop mode.
func (k *compiler) defaults(peers []Peer, add func(...Statement)) {
	type kind struct {
		internal, mesh bool
		next           NextHopMode
	}
	groups := map[kind][]Peer{}
	for _, p := range peers {
		g := kind{p.Internal(k.c), p.Switches(k.c), p.NextHop}
		groups[g] = append(groups[g], p)
	}
	for _, to := range []struct {
		name           string
		internal, mesh bool
	}{{"mesh", true, true}, {"internal", true, false}, {"external", false, false}} {
		for _, next := range []NextHopMode{NextHopAuto, NextHopSelf, NextHopKeep} {
			members := groups[kind{to.internal, to.mesh, next}]
			if len(members) == 0 {
				continue
			}
			name := fmt.Sprintf("default %s %d", to.name, next)
			s := Statement{Name: name, LargeCommunity: k.readable(to.internal, to.mesh)}
			if len(groups) > 1 { // a single group needs no list of its members
				s.Neighbor = k.neighbors(name, members)
			}
			add(accept(s, next))
		}
	}
}

// accept ends an export: tags stay here.
func accept(s Statement, next NextHopMode) Statement {
	s.RemoveLargeCommunities, s.NextHop, s.Action = anyTag, next, Accept
	return s
}

// Warnings lists what of the resources the configuration does not follow, and what of it the engine cannot do, for people.
func (c *Config) Warnings() []string {
	out := slices.Clone(c.Notes)
	for _, f := range c.Filters {
		for _, list := range []struct{ v6, export bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
			for i, r := range f.Rules(list.v6, list.export) {
				if ownOnly(&r) {
					out = append(out, where(f.Name, list.v6, list.export, i)+
						": interface and priority are compared for this node's own routes only; routes from peers never match this rule")
				}
			}
		}
	}
	slices.Sort(out)
	return out
}
