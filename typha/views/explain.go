package views

import (
	"fmt"
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// Reason is why an item is in a view.
type Reason struct {
	By   view.Key // the item of the same view that needs it; the zero value if the view's kind alone is the reason
	Text string   // in words
}

// Explain tells why a view holds an item: all items of the view that name it, in order, or that every view of the kind
// has it. It returns nil if the view does not hold it. The chain from a set to an endpoint is found by explaining what
// was returned. It costs a walk over the scope's own items, which is a question for people, not for loops.
func (s *Store) Explain(name Scope, k view.Key) []Reason {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.get(name, k)
	if e == nil {
		return nil
	}
	if s.common[name.View].get(k) != nil {
		return []Reason{{Text: fmt.Sprintf("every %s view has it", name.View)}}
	}
	var reasons []Reason
	for _, other := range s.scopes[name].entries.list {
		for _, how := range mentions(other.Item(), k) {
			reasons = append(reasons, Reason{By: other.Key, Text: how})
		}
	}
	if len(reasons) == 0 {
		reasons = append(reasons, Reason{Text: fmt.Sprintf("it belongs to node %s", name.Node)})
	}
	slices.SortFunc(reasons, func(a, b Reason) int { return CompareKeys(a.By, b.By) })
	return reasons
}

// mentions tells in words how an item names another.
func mentions(it view.Item, k view.Key) []string {
	var how []string
	say := func(format string, args ...any) { how = append(how, fmt.Sprintf(format, args...)) }
	switch it := it.(type) {
	case view.WorkloadEndpoint:
		if k == (view.Key{Kind: view.KindPolicyList, ID: it.PolicyList}) {
			say("applies to workload endpoint %s", it.ID)
		}
	case view.HostEndpoint:
		for _, pass := range []struct{ name, id string }{
			{"normal", it.Normal}, {"untracked", it.Untracked}, {"pre-DNAT", it.PreDNAT}, {"forward", it.Forward},
		} {
			if pass.id != "" && k == (view.Key{Kind: view.KindPolicyList, ID: pass.id}) {
				say("applies to host endpoint %s, %s pass", it.Name, pass.name)
			}
		}
	case view.PolicyList:
		if k.Kind != view.KindPolicy {
			break
		}
		for _, t := range it.Tiers {
			if slices.Contains(t.Ingress, k.ID) || slices.Contains(t.Egress, k.ID) {
				say("in tier %s of the list", t.Name)
			}
		}
		if slices.Contains(it.Profiles, k.ID) {
			say("a profile of the list")
		}
	case view.Policy:
		if k.Kind != view.KindIPSet {
			break
		}
		for direction, rules := range map[string][]view.Rule{"ingress": it.Ingress, "egress": it.Egress} {
			for i, r := range rules {
				if names(r.Source, k.ID) || names(r.Destination, k.ID) {
					say("%s rule %d of the policy", direction, i+1)
				}
			}
		}
		slices.Sort(how)
	}
	return how
}

// names tells whether one side of a rule uses a set.
func names(m view.Match, id string) bool {
	for _, sets := range [][]string{m.Sets, m.NotSets, m.IPPortSets, m.NamedPorts, m.NotNamedPorts} {
		if slices.Contains(sets, id) {
			return true
		}
	}
	return false
}
