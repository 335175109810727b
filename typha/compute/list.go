package compute

import (
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// list is a policy list: that of a group of workloads or, of host endpoints, one shared by all to which the same applies.
type list struct {
	group    *group // nil: of host endpoints
	content  string // what it says, as a key; of host endpoints
	id       string
	entry    *views.Entry
	policies []string // ids of all policies and profiles it names, each once
	nodes    counter
}

// pass is one of the ways in which policies are applied to an endpoint's packets (spec §3.3).
type pass uint8

const (
	normal pass = iota
	untracked
	preDNAT
	forward
	passes // how many there are
)

// takes tells whether a policy belongs to the pass. It is sorted by the first flag that fits.
func (p pass) takes(v *view.Policy) bool {
	switch p {
	case untracked:
		return v.DoNotTrack
	case preDNAT:
		return v.PreDNAT && !v.DoNotTrack
	case forward:
		return v.ApplyOnForward && !v.DoNotTrack && !v.PreDNAT
	default:
		return !v.DoNotTrack && !v.PreDNAT
	}
}

// end is what ends a tier. What the first two passes do not decide is left to the later ones.
func (p pass) end(t tier) view.Action {
	if p == untracked || p == preDNAT {
		return view.Pass
	}
	return t.action
}

// applying are the policies that apply to an endpoint, in the order of evaluation.
func (e *Engine) applying(s *subject) []*policy {
	var all []*policy
	for _, sel := range s.matches {
		for p := range sel.policies {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(p, q *policy) int {
		if a, b := p.rules.item.Tier, q.rules.item.Tier; a != b {
			return e.tier(a).compare(e.tier(b))
		}
		return p.compare(q)
	})
	return all
}

// tierPolicies are the policies of one tier that take part in a pass, in order.
type tierPolicies struct {
	tier            tier
	ingress, egress []*policy
}

// inTiers sorts the policies of a pass into tiers. policies are in order.
func (e *Engine) inTiers(p pass, policies []*policy) []tierPolicies {
	var tiers []tierPolicies
	for _, q := range policies {
		ingress, egress := q.ingress, q.egress && p != preDNAT
		if !p.takes(&q.rules.item) || !ingress && !egress {
			continue
		}
		if n := len(tiers); n == 0 || tiers[n-1].tier.name != q.rules.item.Tier {
			tiers = append(tiers, tierPolicies{tier: e.tier(q.rules.item.Tier)})
		}
		t := &tiers[len(tiers)-1]
		if ingress {
			t.ingress = append(t.ingress, q)
		}
		if egress {
			t.egress = append(t.egress, q)
		}
	}
	return tiers
}

// listOf returns the list of what applies to a host endpoint in a pass, or nil if no policy does (in the normal pass there always
// is one: its profiles count too, and its being empty does). policies are in order, profiles known ones.
func (e *Engine) listOf(p pass, policies []*policy, profiles []string) *list {
	tiers := e.inTiers(p, policies)
	if len(tiers) == 0 && p != normal {
		return nil
	}
	// The content is written down so that equal lists give equal keys and others do not: no name holds a line feed.
	key := e.keyBuf[:0]
	word := func(kind byte, text string) {
		key = append(append(append(key, kind), text...), '\n')
	}
	for _, t := range tiers {
		word('0'+byte(p.end(t.tier)), t.tier.name)
		for _, q := range t.ingress {
			word('i', q.rules.item.ID)
		}
		for _, q := range t.egress {
			word('e', q.rules.item.ID)
		}
	}
	for _, name := range profiles {
		word('p', name)
	}
	e.keyBuf = key
	if l := e.lists[string(key)]; l != nil {
		return l
	}
	l := &list{content: string(key)}
	l.say(p, tiers, profiles)
	e.lists[l.content] = l
	return l
}

// needList counts one more endpoint of a node that has a list.
func (e *Engine) needList(l *list, node nodeID) {
	if !l.nodes.inc(node) {
		return
	}
	e.out.put(e.viewOf(node), l.entry)
	for _, id := range l.policies {
		e.needSlot(e.slot(id), node)
	}
}

// yieldList counts one less.
func (e *Engine) yieldList(l *list, node nodeID) {
	if !l.nodes.dec(node) {
		return
	}
	e.out.drop(e.viewOf(node), l.entry.Key)
	for _, id := range l.policies {
		e.yieldSlot(e.slots[id], node)
	}
	switch {
	case len(l.nodes) > 0:
	case l.group != nil:
		e.tidyGroup(l.group)
	default:
		delete(e.lists, l.content)
	}
}

func policyKey(id string) view.Key { return view.Key{Kind: view.KindPolicy, ID: id} }
