package state

import (
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// FirewallChanges name what the firewall follows from and has changed. What is named may be there, anew or as before, or
// gone.
type FirewallChanges struct {
	Config    bool                 // the configuration
	Settings  bool                 // pools, nodes, the kernel's abilities, which tunnels are received
	Hosts     bool                 // host endpoints, interfaces of the host
	Sets      map[string]SetChange // by id
	Policies  map[string]struct{}  // by id; profiles are among them
	Lists     map[string]struct{}  // by id
	Workloads map[string]struct{}  // as typha sees them, by id
	Local     map[string]struct{}  // endpoints by interface
}

// SetChange is what changed of a set.
type SetChange struct {
	// Whole tells that the set came as a whole, or went.
	Whole bool
	// Members that changed otherwise, and whether they are in the set now.
	Members map[view.Member]bool
}

// ChangedFirewall returns what changed since it was last called.
func (s *State) ChangedFirewall() FirewallChanges {
	c := s.firewall
	s.firewall = FirewallChanges{}
	return c
}

// FirewallChanged is what ChangedFirewall will return, for those who only look.
func (s *State) FirewallChanged() FirewallChanges { return s.firewall }

func note(keys *map[string]struct{}, key string) {
	if *keys == nil {
		*keys = map[string]struct{}{}
	}
	(*keys)[key] = struct{}{}
}

// WholeSet is a set with all its members, in order. They are not written to any more.
func (s *State) WholeSet(id string) (view.IPSet, bool) {
	set, ok := s.Sets[id]
	changed := s.members[id]
	if len(changed) == 0 {
		return set, ok
	}
	members := make([]view.Member, 0, len(set.Members)+len(changed))
	for _, m := range set.Members {
		if _, other := changed[m]; !other {
			members = append(members, m)
		}
	}
	for m, in := range changed {
		if in {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, view.Member.Compare)
	set.Members = members
	s.Sets[id] = set
	delete(s.members, id)
	return set, ok
}

// setSet takes a whole set, or its end.
func (s *State) setSet(id string, set *view.IPSet) {
	delete(s.members, id)
	delete(s.Sets, id)
	if set != nil {
		whole := *set
		for i := 1; i < len(whole.Members); i++ {
			if whole.Members[i-1].Compare(whole.Members[i]) >= 0 { // not in order, or twice
				whole.Members = slices.Compact(slices.SortedFunc(slices.Values(whole.Members), view.Member.Compare))
				break
			}
		}
		s.Sets[id] = whole
	}
	s.setChanged(id, SetChange{Whole: true})
}

func (s *State) setChanged(id string, c SetChange) {
	if s.firewall.Sets == nil {
		s.firewall.Sets = map[string]SetChange{}
	}
	s.firewall.Sets[id] = c
}

// changeSet applies a delta; the client has checked that it fits. Its cost is that of the delta, since a set may have a
// hundred thousand members of which a few change at a time: what differs from the set as it came is kept beside it, and
// brought together when it is a quarter of it.
func (s *State) changeSet(d view.IPSetDelta) {
	if _, there := s.Sets[d.ID]; !there {
		s.Sets[d.ID] = view.IPSet{ID: d.ID}
	}
	changed := s.members[d.ID]
	if changed == nil {
		changed = map[view.Member]bool{}
		s.members[d.ID] = changed
	}
	change := s.firewall.Sets[d.ID]
	if change.Members == nil {
		change.Members = map[view.Member]bool{}
	}
	for _, m := range d.Removed {
		changed[m], change.Members[m] = false, false
	}
	for _, m := range d.Added {
		changed[m], change.Members[m] = true, true
	}
	if !change.Whole {
		s.setChanged(d.ID, change)
	}
	const few = 64
	if len(changed) > few+len(s.Sets[d.ID].Members)/4 {
		s.WholeSet(d.ID)
	}
}

// Closed tells why nothing may pass an endpoint; nothing means that it is open.
func (s *State) Closed(e Endpoint) []string {
	return s.ClosedUnless(e, func(string) bool { return false })
}

// ClosedUnless is Closed for a caller who knows of some policy lists that they are complete, and spares looking them
// through.
func (s *State) ClosedUnless(e Endpoint, complete func(list string) bool) []string {
	w, ok := s.View(e)
	switch {
	case e.Leaving:
		return []string{"endpoint is being deleted"}
	case !ok:
		return []string{"typha has not sent this endpoint's policy"}
	case len(w.Incomplete) > 0:
		return w.Incomplete
	case complete(w.PolicyList):
		return nil
	}
	return s.ListLacks(w.PolicyList)
}

// ListLacks tells what is missing of a policy list: itself, or what it names.
func (s *State) ListLacks(id string) []string {
	list, ok := s.Lists[id]
	if !ok {
		return []string{"policy list " + id + " is not known"}
	}
	for _, id := range list.Profiles {
		if _, ok := s.Policies[id]; !ok {
			return []string{"profile " + id + " is not known"}
		}
	}
	for _, t := range list.Tiers {
		for _, id := range slices.Concat(t.Ingress, t.Egress) {
			if _, ok := s.Policies[id]; !ok && !desired.Staged(id) { // a staged one is never asked
				return []string{"policy " + id + " of tier " + t.Name + " is not known"}
			}
		}
	}
	return nil
}
