// Package bgp holds what a BGPFilter says once its text is read: rules over prefixes, communities and paths. confd reads
// resources into these nouns, bird decides by them, and whatever else runs filters is written from them.
//
// It refuses everything else: it neither knows routes nor judges rules.
package bgp

import (
	"fmt"
	"net/netip"
	"strings"
)

// Filter is a BGPFilter: four lists of rules, of which the first that matches decides.
type Filter struct {
	Name                               string
	Import4, Export4, Import6, Export6 []Rule
}

// Rules picks the list for a family and direction.
func (f *Filter) Rules(v6, export bool) []Rule {
	switch {
	case v6 && export:
		return f.Export6
	case v6:
		return f.Import6
	case export:
		return f.Export4
	default:
		return f.Import4
	}
}

// ListName is the name of the list for a family and direction in a BGPFilter: "importV4".
func ListName(v6, export bool) string {
	direction, family := "import", "V4"
	if export {
		direction = "export"
	}
	if v6 {
		family = "V6"
	}
	return direction + family
}

// Operator relates a route's prefix to a rule's.
type Operator uint8

// The operators.
const (
	NoPrefix Operator = iota // no prefix is given
	Equal
	NotEqual
	In
	NotIn
)

// SessionType restricts a rule to a kind of session.
type SessionType uint8

// The kinds of session.
const (
	AnySession SessionType = iota
	External               // eBGP
	Internal               // iBGP
)

// Rule is one rule; every criterion that is given must hold.
type Rule struct {
	Accept    bool
	Prefix    netip.Prefix
	Operator  Operator
	MinLength int // with In and NotIn: shortest length, 0 the prefix's own
	MaxLength int // with In and NotIn: longest length, 0 the family's
	// FromRemotePeers wants a route that came over BGP.
	FromRemotePeers bool
	// Interface is a shell-style pattern on the outgoing interface.
	Interface   string
	SessionType SessionType
	Community   *Community
	ASPrefix    []uint32 // left end of the path
	Priority    uint32   // kernel metric, carried by local preference; 0 any
	Operations  []Operation
}

// Operation changes an accepted route in one way: exactly one field is set.
type Operation struct {
	AddCommunity *Community
	Prepend      []uint32 // leftmost first
	SetPriority  uint32   // kernel metric, carried by local preference
}

// Lengths is the range of prefix lengths that an In or NotIn is about.
func (r *Rule) Lengths() (lo, hi int) {
	lo, hi = max(r.MinLength, r.Prefix.Bits()), r.Prefix.Addr().BitLen()
	if r.MaxLength != 0 {
		hi = min(hi, r.MaxLength)
	}
	return lo, hi
}

// MatchesPrefix tells whether a prefix is what the rule's operator wants.
func (r *Rule) MatchesPrefix(p netip.Prefix) bool {
	inside := func() bool {
		lo, hi := r.Lengths()
		return r.Prefix.Addr().BitLen() == p.Addr().BitLen() && r.Prefix.Contains(p.Addr()) && lo <= p.Bits() && p.Bits() <= hi
	}
	switch r.Operator {
	case Equal:
		return p == r.Prefix
	case NotEqual:
		return p != r.Prefix
	case In:
		return inside()
	case NotIn:
		return !inside()
	default:
		return true
	}
}

// String is the rule as a sentence.
func (r Rule) String() string {
	var when []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			when = append(when, fmt.Sprintf(format, args...))
		}
	}
	add(r.Operator != NoPrefix, "%s %s", map[Operator]string{Equal: "is", NotEqual: "is not", In: "in", NotIn: "not in"}[r.Operator], r.Prefix)
	add(r.MinLength != 0, "length from %d", r.MinLength)
	add(r.MaxLength != 0, "length to %d", r.MaxLength)
	add(r.FromRemotePeers, "from remote peers")
	add(r.Interface != "", "interface %s", r.Interface)
	add(r.SessionType == External, "eBGP")
	add(r.SessionType == Internal, "iBGP")
	if r.Community != nil {
		add(true, "community %s", r.Community)
	}
	add(len(r.ASPrefix) > 0, "path begins with %v", r.ASPrefix)
	add(r.Priority != 0, "priority %d", r.Priority)
	out := "reject"
	if r.Accept {
		out = "accept"
	}
	if len(when) > 0 {
		out += " if " + strings.Join(when, " and ")
	}
	for _, op := range r.Operations {
		switch {
		case op.AddCommunity != nil:
			out += ", add community " + op.AddCommunity.String()
		case len(op.Prepend) > 0:
			out += fmt.Sprintf(", prepend %v", op.Prepend)
		default:
			out += fmt.Sprintf(", set priority %d", op.SetPriority)
		}
	}
	return out
}
