package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Program is what an engine runs on every route: statements in order, over named sets. A statement whose conditions all
// hold applies its actions; one with an Action other than Continue also ends the evaluation. A route that no statement
// ends is accepted on import and rejected on export.
//
// Engines apply it at three points: Import to what peers send, before the best path is chosen; Export to best paths, for
// each peer. Own routes bring their tags along (Tags); a condition on neighbors is what keeps a statement off them.
type Program struct {
	Sets   []Set
	Import []Statement
	Export []Statement
}

// SetKind is what a set holds.
type SetKind uint8

// The kinds of set.
const (
	PrefixSet         SetKind = iota + 1 // Prefixes
	NeighborSet                          // Neighbors
	CommunitySet                         // Patterns on "aa:nn"
	LargeCommunitySet                    // Patterns on "aa:nn:mm"
	ASPathSet                            // Patterns on the path, _ standing for its ends and gaps
)

// Set is a named set. Sets never are empty.
type Set struct {
	Kind      SetKind
	Name      string
	Prefixes  []PrefixRange
	Neighbors []netip.Prefix
	Patterns  []string
}

// PrefixRange is every prefix inside Prefix that has a length from Min to Max.
type PrefixRange struct {
	Prefix   netip.Prefix
	Min, Max int
}

// Match is a condition on a set; the empty name is no condition.
type Match struct {
	Set    string
	Invert bool
}

// Action ends an evaluation, or not.
type Action uint8

// The actions.
const (
	Continue Action = iota
	Accept
	Reject
	// TakeBack rejects, and takes back what the engine may have told the peer of the route before. It is for peers that are
	// sent all paths: for them engines do not notice that a path which they may no longer have is one that they were sent.
	TakeBack
)

// Statement is one step of a Program.
type Statement struct {
	Name string

	// Conditions.
	Prefix, Neighbor, Community, LargeCommunity, ASPath Match
	NextHops                                            []netip.Addr // one of these; empty is no condition

	// Actions.
	AddCommunities         []Community
	RemoveLargeCommunities string // pattern
	Prepend, PrependTimes  uint32 // AS number and how often
	Preference             uint32 // 0 leaves it
	MED                    uint32 // 0 leaves it
	NextHop                NextHopMode
	Action                 Action
}

// String is one line for each set and statement: for golden tests and for people.
func (p Program) String() string {
	var b strings.Builder
	for _, s := range p.Sets {
		fmt.Fprintln(&b, s)
	}
	for _, part := range []struct {
		name       string
		statements []Statement
	}{{"import", p.Import}, {"export", p.Export}} {
		fmt.Fprintf(&b, "%s:\n", part.name)
		for _, s := range part.statements {
			fmt.Fprintln(&b, " ", s)
		}
	}
	return b.String()
}

// String is the set on one line.
func (s Set) String() string {
	var items []string
	for _, p := range s.Prefixes {
		items = append(items, fmt.Sprintf("%s{%d,%d}", p.Prefix, p.Min, p.Max))
	}
	for _, n := range s.Neighbors {
		items = append(items, n.String())
	}
	return fmt.Sprintf("set %s = %s", s.Name, strings.Join(append(items, s.Patterns...), " "))
}

// String is the statement on one line.
func (s Statement) String() string {
	var when, then []string
	for what, m := range ordered(s) {
		if m.Set != "" {
			not := ""
			if m.Invert {
				not = "not "
			}
			when = append(when, what+" "+not+"in "+m.Set)
		}
	}
	if len(s.NextHops) > 0 {
		when = append(when, fmt.Sprintf("next hop in %v", s.NextHops))
	}
	if len(s.AddCommunities) > 0 {
		then = append(then, fmt.Sprintf("add %v", s.AddCommunities))
	}
	if s.RemoveLargeCommunities != "" {
		then = append(then, "remove "+s.RemoveLargeCommunities)
	}
	if s.PrependTimes > 0 {
		then = append(then, fmt.Sprintf("prepend %d x%d", s.Prepend, s.PrependTimes))
	}
	if s.Preference != 0 {
		then = append(then, fmt.Sprintf("preference %d", s.Preference))
	}
	if s.MED != 0 {
		then = append(then, fmt.Sprintf("MED %d", s.MED))
	}
	if s.NextHop != NextHopAuto {
		then = append(then, "next hop "+map[NextHopMode]string{NextHopSelf: "self", NextHopKeep: "keep"}[s.NextHop])
	}
	if s.Action != Continue {
		then = append(then, map[Action]string{Accept: "accept", Reject: "reject", TakeBack: "take back"}[s.Action])
	}
	if len(when) == 0 {
		when = []string{"always"}
	}
	return fmt.Sprintf("%s: if %s: %s", s.Name, strings.Join(when, " and "), strings.Join(then, ", "))
}

func ordered(s Statement) func(func(string, Match) bool) {
	return func(yield func(string, Match) bool) {
		for _, c := range []struct {
			what string
			m    Match
		}{{"neighbor", s.Neighbor}, {"prefix", s.Prefix}, {"community", s.Community}, {"tag", s.LargeCommunity}, {"path", s.ASPath}} {
			if !yield(c.what, c.m) {
				return
			}
		}
	}
}

// SameFor tells whether two programs treat a peer alike in a direction: the statements that can concern it are equal, with
// the sets they look at.
func SameFor(a, b Program, peer netip.Addr, export bool) bool {
	return slices.Equal(a.concerning(peer, export), b.concerning(peer, export))
}

func (p *Program) concerning(peer netip.Addr, export bool) []string {
	sets := map[string]Set{}
	for _, s := range p.Sets {
		sets[s.Name] = s
	}
	statements := p.Import
	if export {
		statements = p.Export
	}
	var out []string
	for _, s := range statements {
		if s.Neighbor.Set != "" {
			if !slices.ContainsFunc(sets[s.Neighbor.Set].Neighbors, func(p netip.Prefix) bool { return p.Contains(peer) }) {
				continue
			}
			s.Neighbor = Match{}
		}
		out = append(out, s.String())
		for _, m := range ordered(s) {
			if m.Set != "" {
				out = append(out, sets[m.Set].String())
			}
		}
	}
	return out
}
