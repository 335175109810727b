package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Filter is a BGPFilter: four lists of rules, of which the first that matches decides.
type Filter struct {
	Name                               string
	Import4, Export4, Import6, Export6 []Rule
}

// rules picks the list for a family and direction.
func (f *Filter) rules(v6, export bool) []Rule {
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
	// Interface is a shell-style pattern. It is known of the node's own routes only; learned ones never match.
	Interface   string
	SessionType SessionType
	Community   *Community
	ASPrefix    []uint32 // left end of the path
	// Priority is the kernel metric, 0 any. The engine cannot compare it, so it holds for the node's own routes only.
	Priority   uint32
	Operations []Operation
}

// lengths is the range of prefix lengths that an In or NotIn is about.
func (r *Rule) lengths() (lo, hi int) {
	lo, hi = max(r.MinLength, r.Prefix.Bits()), r.Prefix.Addr().BitLen()
	if r.MaxLength != 0 {
		hi = min(hi, r.MaxLength)
	}
	return lo, hi
}

// ownOnly tells that the rule asks for what is known of the node's own routes only.
func (r *Rule) ownOnly() bool { return r.Interface != "" || r.Priority != 0 }

// Operation changes an accepted route in one way: exactly one field is set.
type Operation struct {
	AddCommunity *Community
	Prepend      []uint32 // leftmost first
	SetPriority  uint32   // kernel metric, carried by local preference
}

// Matches tells whether every criterion holds for the route on a session of the given kind.
func (r *Rule) Matches(rt *Route, internal bool) bool {
	switch {
	case !r.matchesPrefix(rt.Prefix),
		r.FromRemotePeers && !rt.Learned,
		r.SessionType == External && internal, r.SessionType == Internal && !internal,
		rt.Learned && r.ownOnly(),
		r.Interface != "" && !matchPattern(r.Interface, rt.Interface),
		r.Community != nil && !slices.Contains(rt.Communities, *r.Community),
		len(r.ASPrefix) > len(rt.ASPath) || !slices.Equal(r.ASPrefix, rt.ASPath[:len(r.ASPrefix)]),
		r.Priority != 0 && rt.Preference != PreferenceOf(r.Priority):
		return false
	}
	return true
}

func (r *Rule) matchesPrefix(p netip.Prefix) bool {
	inside := func() bool {
		lo, hi := r.lengths()
		return contains(r.Prefix, p) && lo <= p.Bits() && p.Bits() <= hi
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

// apply makes the route what the operations say.
func apply(rt Route, ops []Operation) Route {
	for _, op := range ops {
		switch {
		case op.AddCommunity != nil:
			rt.Communities = append(slices.Clip(rt.Communities), *op.AddCommunity)
		case len(op.Prepend) > 0:
			rt.ASPath = append(slices.Clone(op.Prepend), rt.ASPath...)
		case op.SetPriority != 0:
			rt.Preference = PreferenceOf(op.SetPriority)
		}
	}
	return rt
}

// matchPattern is shell-style matching of a name: * stands for any characters, ? for one.
func matchPattern(pattern, name string) bool {
	for pattern != "" {
		switch {
		case pattern[0] == '*':
			for i := 0; i <= len(name); i++ {
				if matchPattern(pattern[1:], name[i:]) {
					return true
				}
			}
			return false
		case name == "" || pattern[0] != '?' && pattern[0] != name[0]:
			return false
		}
		pattern, name = pattern[1:], name[1:]
	}
	return name == ""
}

// contains tells whether inner lies in outer or is it.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Addr().BitLen() == inner.Addr().BitLen() && outer.Contains(inner.Addr())
}

func within(ranges []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return contains(r, p) })
}

// where names a rule as operators know it: "BGPFilter(x).importV4[1]".
func where(filter string, v6, export bool, index int) string {
	direction, family := "import", "V4"
	if export {
		direction = "export"
	}
	if v6 {
		family = "V6"
	}
	return fmt.Sprintf("BGPFilter(%s).%s%s[%d]", filter, direction, family, index)
}
