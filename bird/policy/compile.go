package policy

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api/bgp"
)

// The engine forgets what it has told a peer, so after a change of policy it cannot take back what is no longer allowed,
// except when the route itself changes from allowed to forbidden. So the decision to export is written on the route, as
// tags: large communities of a reserved AS number that never leave this node. Own routes get theirs from Tags; learned
// routes get theirs on import. The export side only reads tags, and a route whose tags changed is re-evaluated before and
// after, which is what yields the withdrawal.
const (
	// TagAdmin is the AS number of tags, which RFC 7300 reserves.
	TagAdmin = 1<<32 - 1

	tagGeneral  = 0 // second part of tags that concern every session; others have the id of a filter class there
	tagInternal = 1 // tagGeneral: the default decision allows iBGP
	tagExternal = 2 // tagGeneral: the default decision allows eBGP
	tagDecided  = 3 // tagGeneral: an import filter has accepted
	tagReject   = 0 // of a class: its filters reject
)

// shutdownPreference is what GRACEFUL_SHUTDOWN makes of local preference: the lowest but 0, which engines read as unset.
const shutdownPreference = 1

var anyTag = fmt.Sprintf("^%d:", uint32(TagAdmin))

func tag(class, value uint32) Community {
	return Community{Large: true, Parts: [3]uint32{TagAdmin, class, value}}
}

func generalTag(internal bool) Community {
	if internal {
		return tag(tagGeneral, tagInternal)
	}
	return tag(tagGeneral, tagExternal)
}

// IsTag tells whether a community is one of bird's own marks.
func IsTag(c Community) bool { return c.Large && c.Parts[0] == TagAdmin }

// LetsOut tells whether a community is a mark by which a route may go out to any session. Without one no program lets it out.
func LetsOut(c Community) bool {
	return IsTag(c) && c.Parts[2] != tagReject && c != refused && c != ofWorkload
}

// class is the sessions on which the same filters mean the same.
type class struct {
	id       uint32
	v6       bool
	internal bool
	local    uint32 // AS shown, for prepending
	filters  []*bgp.Filter
	next     NextHopMode
	members  []Peer
}

// classes groups peers by the filters that have rules in a direction. Peers without such filters are in none. The id
// follows from the content, so that it stays when other classes come and go.
func (c *Config) classes(peers []Peer, export bool) []class {
	byKey := map[string]*class{}
	var order []string
	for _, p := range peers {
		k := class{v6: p.Address.Is6(), internal: p.Internal(c), local: p.Local(c)}
		words := []string{fmt.Sprintf("%t %t %t %d %d", export, k.v6, k.internal, k.local, p.NextHop)}
		k.next = p.NextHop
		for _, name := range p.Filters {
			if f := c.filterNamed(name); f != nil && len(f.Rules(k.v6, export)) > 0 {
				k.filters = append(k.filters, f)
				words = append(words, name)
			}
		}
		if len(k.filters) == 0 {
			continue
		}
		key := strings.Join(words, " ")
		if byKey[key] == nil {
			h := fnv.New32a()
			h.Write([]byte(key))
			k.id = max(h.Sum32(), 1) // 0 is tagGeneral
			byKey[key] = &k
			order = append(order, key)
		}
		byKey[key].members = append(byKey[key].members, p)
	}
	slices.Sort(order)
	out := make([]class, len(order))
	for i, key := range order {
		out[i] = *byKey[key]
	}
	return out
}

// outcome numbers what a rule does to an accepted route; equal operations have equal numbers. It is never tagReject.
func outcome(ops []bgp.Operation) uint32 {
	h := fnv.New32a()
	for _, op := range ops {
		if op.AddCommunity != nil {
			fmt.Fprint(h, "c", *op.AddCommunity)
		}
		fmt.Fprint(h, "p", op.Prepend, op.SetPriority)
	}
	return max(h.Sum32(), tagReject+1)
}

// Tagger decides about own routes. It does once what is the same for all of them.
type Tagger struct {
	config  *Config
	classes []class
}

// Tagger returns the decider of a configuration.
func (c *Config) Tagger() *Tagger { return &Tagger{config: c, classes: c.classes(c.Active(), true)} }

// Tags decides to whom an own route goes and says it in tags; none means that it goes to nobody.
func (t *Tagger) Tags(rt Route) []Community {
	var out []Community
	for _, internal := range []bool{true, false} {
		if t.config.exportDefault(rt, internal).Accept {
			out = append(out, generalTag(internal))
		}
	}
	allowed := len(out) > 0
	for _, k := range t.classes {
		if k.v6 != rt.Prefix.Addr().Is6() {
			continue
		}
		if v, ok := t.config.filter(&k.members[0], rt, true); ok {
			value := uint32(tagReject)
			if v.Accept {
				value, allowed = outcome(v.Operations), true
			}
			out = append(out, tag(k.id, value))
		}
	}
	if !allowed {
		return nil
	}
	return out
}

// Compile makes the program.
func (c *Config) Compile(ctx Context) Program {
	k := &compiler{c: c, sets: map[string]Set{}}
	peers := c.Active()
	exports := c.classes(peers, true)
	k.set(Set{Kind: LargeCommunitySet, Name: "tags", Patterns: []string{anyTag}})
	k.importProgram(peers, exports, ctx)
	k.exportProgram(peers, exports, ctx)
	names := make([]string, 0, len(k.sets))
	for name := range k.sets {
		names = append(names, name)
	}
	slices.Sort(names)
	p := Program{Import: k.imports, Export: k.exports}
	for _, name := range names {
		p.Sets = append(p.Sets, k.sets[name])
	}
	return p
}

type compiler struct {
	c                *Config
	sets             map[string]Set
	imports, exports []Statement
}

// set declares a set and returns the condition on it.
func (k *compiler) set(s Set) Match {
	k.sets[s.Name] = s
	return Match{Set: s.Name}
}

func (k *compiler) tagged(t Community) Match {
	return k.set(Set{Kind: LargeCommunitySet, Name: "tag " + t.String(), Patterns: []string{"^" + t.String() + "$"}})
}

func (k *compiler) neighbors(name string, members []Peer) Match {
	s := Set{Kind: NeighborSet, Name: "peers " + name}
	for _, p := range members {
		s.Neighbors = append(s.Neighbors, netip.PrefixFrom(p.Address, p.Address.BitLen()))
	}
	return k.set(s)
}

// anyNeighbor holds for every learned route, and for no own one.
func (k *compiler) anyNeighbor() Match {
	return k.set(Set{Kind: NeighborSet, Name: "peers", Neighbors: []netip.Prefix{everything(false), everything(true)}})
}

func (k *compiler) importProgram(peers []Peer, exports []class, ctx Context) {
	add := func(s Statement) { k.imports = append(k.imports, s) }
	add(Statement{Name: "strip forged tags", Neighbor: k.anyNeighbor(), LargeCommunity: Match{Set: "tags"}, RemoveLargeCommunities: anyTag})
	add(Statement{Name: "own next hop", NextHops: k.c.OwnAddresses(), Action: Reject})
	sorted := k.roles(peers)
	k.demoteCopies(sorted, ctx.Reflected)
	if len(ctx.Unreachable) > 0 {
		add(Statement{Name: "unreachable next hop", NextHops: ctx.Unreachable, Action: Reject})
	}
	add(Statement{
		Name:       "graceful shutdown",
		Community:  k.set(Set{Kind: CommunitySet, Name: "graceful shutdown", Patterns: []string{"^" + gracefulShutdown.String() + "$"}}),
		Preference: shutdownPreference,
	})
	decided := tag(tagGeneral, tagDecided)
	for _, cl := range k.c.classes(peers, false) {
		who := k.neighbors(fmt.Sprintf("import %d", cl.id), cl.members)
		undecided := k.tagged(decided)
		undecided.Invert = true
		for _, f := range cl.filters {
			for i, r := range f.Rules(cl.v6, false) {
				when, ok := k.conditions(&r, where(f.Name, cl.v6, false, i), cl.internal)
				if !ok {
					continue
				}
				when.Name = fmt.Sprintf("%s class %d", when.Name, cl.id)
				when.Neighbor, when.LargeCommunity = who, undecided
				if r.Community != nil && r.Community.Large { // the one condition on large communities is taken
					when = k.viaMark(&k.imports, when, *r.Community)
				}
				k.decide(when, &r, decided, cl.id)
			}
		}
	}
	k.ofWorkloads(peers, decided)
	if ctx.Drain != Drained && k.passesOn(peers) {
		k.tagLearned(exports)
		k.splitHorizon(sorted, exports)
	}
	add(Statement{Name: "done", LargeCommunity: k.tagged(decided), RemoveLargeCommunities: "^" + decided.String() + "$"})
}

// ofWorkloads refuses what pods announce and no filter has accepted, since any pod could draw the cluster's traffic so; what
// remains is marked.
func (k *compiler) ofWorkloads(peers []Peer, decided Community) {
	var pods []Peer
	for _, p := range peers {
		if p.Type == PeerLocalWorkload {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		return
	}
	who, undecided := k.neighbors("workloads", pods), k.tagged(decided)
	undecided.Invert = true
	k.imports = append(k.imports,
		Statement{Name: "not accepted of workloads", Neighbor: who, LargeCommunity: undecided, Action: Reject},
		Statement{Name: "workloads", Neighbor: who, AddCommunities: []Community{ofWorkload}})
}

// passesOn tells whether any session can be sent routes that were learned: eBGP, or a reflector's.
func (k *compiler) passesOn(peers []Peer) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool { return !p.Internal(k.c) || k.c.Reflects() })
}

// decide emits the statements of a rule whose conditions are given: what it changes, and then the mark or the rejection.
func (k *compiler) decide(when Statement, r *bgp.Rule, mark Community, id uint32) {
	if !r.Accept {
		when.Action = Reject
		k.imports = append(k.imports, when)
		return
	}
	// The conditions must hold for each statement of the rule, so the mark comes first and is what the rest looks at.
	name := when.Name
	step := tag(id, outcome(r.Operations))
	when.AddCommunities = []Community{step}
	k.imports = append(k.imports, when)
	k.imports = append(k.imports, k.operations(name, Statement{LargeCommunity: k.tagged(step)}, r.Operations, false, 0)...)
	k.imports = append(k.imports, Statement{
		Name: name + " accepted", LargeCommunity: k.tagged(step),
		AddCommunities: []Community{mark},
	}, Statement{
		Name: name + " marked", LargeCommunity: k.tagged(step),
		RemoveLargeCommunities: "^" + step.String() + "$",
	})
}

// viaMark lets a statement have two conditions on large communities: its own, which is that a set does not match, and one
// more. A mark is put on routes that have the community, taken off where the set matches, and read by the statement.
func (k *compiler) viaMark(out *[]Statement, when Statement, large Community) Statement {
	h := fnv.New32a()
	h.Write([]byte(when.Name))
	mark := tag(tagGeneral, h.Sum32()|1<<31)
	has := k.set(Set{Kind: LargeCommunitySet, Name: "large " + large.String(), Patterns: []string{"^" + large.String() + "$"}})
	*out = append(*out, Statement{
		Name: when.Name + " community", Neighbor: when.Neighbor, LargeCommunity: has, AddCommunities: []Community{mark},
	}, Statement{
		Name: when.Name + " too late", Neighbor: when.Neighbor, LargeCommunity: Match{Set: when.LargeCommunity.Set},
		RemoveLargeCommunities: "^" + mark.String() + "$",
	})
	when.LargeCommunity = k.tagged(mark)
	return when
}

// conditions turns a rule's criteria into conditions; ok is false if learned routes never match it.
func (k *compiler) conditions(r *bgp.Rule, name string, internal bool) (s Statement, ok bool) {
	if ownOnly(r) || r.SessionType == bgp.External && internal || r.SessionType == bgp.Internal && !internal {
		return Statement{}, false
	}
	s.Name = name
	if r.Operator != bgp.NoPrefix {
		lo, hi := r.Lengths()
		if r.Operator == bgp.Equal || r.Operator == bgp.NotEqual {
			lo, hi = r.Prefix.Bits(), r.Prefix.Bits()
		}
		s.Prefix = k.set(Set{Kind: PrefixSet, Name: "prefix " + name, Prefixes: []PrefixRange{{r.Prefix, lo, hi}}})
		s.Prefix.Invert = r.Operator == bgp.NotEqual || r.Operator == bgp.NotIn
	}
	if r.Community != nil && !r.Community.Large {
		s.Community = k.set(Set{Kind: CommunitySet, Name: "community " + r.Community.String(), Patterns: []string{"^" + r.Community.String() + "$"}})
	}
	if len(r.ASPrefix) > 0 {
		numbers := make([]string, len(r.ASPrefix))
		for i, as := range r.ASPrefix {
			numbers[i] = strconv.FormatUint(uint64(as), 10)
		}
		pattern := "^" + strings.Join(numbers, "_") + "_"
		s.ASPath = k.set(Set{Kind: ASPathSet, Name: "path " + pattern, Patterns: []string{pattern}})
	}
	return s, true
}

// operations are the statements that change a route on which the conditions of when hold. On eBGP export the engine has put
// the local AS in front before, where the peer wants to see it: so it is put in front once more after a foreign one.
func (k *compiler) operations(name string, when Statement, ops []bgp.Operation, export bool, local uint32) []Statement {
	var out []Statement
	step := func(change func(*Statement)) {
		s := when
		s.Name = fmt.Sprintf("%s operation %d", name, len(out))
		change(&s)
		out = append(out, s)
	}
	for _, op := range ops {
		switch {
		case op.AddCommunity != nil:
			step(func(s *Statement) { s.AddCommunities = []Community{*op.AddCommunity} })
		case op.SetPriority != 0:
			step(func(s *Statement) { s.Preference = PreferenceOf(op.SetPriority) })
		default:
			path := op.Prepend
			if export && local != 0 && len(path) > 0 && path[0] != local {
				path = append([]uint32{local}, path...)
			}
			for _, run := range slices.Backward(runs(path)) {
				step(func(s *Statement) { s.Prepend, s.PrependTimes = run.as, run.times })
			}
		}
	}
	return out
}

type run struct{ as, times uint32 }

func runs(path []uint32) []run {
	var out []run
	for _, as := range path {
		if n := len(out); n > 0 && out[n-1].as == as {
			out[n-1].times++
			continue
		}
		out = append(out, run{as, 1})
	}
	return out
}

// everything is the whole address space of a family.
func everything(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func prefixes(list []netip.Prefix, v6 bool, exact bool) []PrefixRange {
	var out []PrefixRange
	for _, p := range list {
		if p.Addr().Is6() != v6 {
			continue
		}
		r := PrefixRange{p, p.Bits(), p.Addr().BitLen()}
		if exact {
			r.Max = p.Bits()
		}
		out = append(out, r)
	}
	return out
}
