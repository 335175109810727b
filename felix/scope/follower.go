package scope

import (
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

// fewMembers is how many changes of a set are kept for one who has not asked for them yet; with more, the whole set is told.
const fewMembers = 1024

// Update is what a pod is to be told: one change, to be taken over as a whole.
type Update struct {
	Items  []view.Item // new or changed, in ascending order of kind
	Gone   []view.Key  // of no concern any more, in descending order of kind
	InSync bool        // with it everything is known for the first time
}

// Empty tells that there is nothing to tell.
func (u Update) Empty() bool { return len(u.Items) == 0 && len(u.Gone) == 0 && !u.InSync }

// Follower knows what one listener was told of a pod, and so what it is to be told next. What is kept for one who listens
// slowly does not grow with time: of each thing it is only whether it changed. A Follower is used by whoever owns the state.
type Follower struct {
	pod   Pod
	wants map[view.Key]*thing // what concerned the pod when last asked, and the pod itself
	whole bool                // everything was told once
}

// thing is something that concerns the pod.
type thing struct {
	told    bool
	changed bool                 // since it was told
	members map[view.Member]bool // of a set that changed in part: those that are in it now, and those that are not
}

// NewFollower returns a follower for one who was told nothing yet.
func NewFollower(pod Pod) *Follower {
	return &Follower{pod: pod, wants: map[view.Key]*thing{pod.key(): {}}}
}

// Note takes in what changed, and tells whether Next may have something to tell. Its cost is that of what concerns the pod.
func (f *Follower) Note(c state.FirewallChanges) (news bool) {
	for key, t := range f.wants {
		there := false
		switch key.Kind {
		case view.KindIPSet:
			var change state.SetChange
			if change, there = c.Sets[key.ID]; there {
				t.note(change)
			}
		case view.KindPolicy:
			_, there = c.Policies[key.ID]
		case view.KindPolicyList:
			_, there = c.Lists[key.ID]
		case view.KindWorkloadEndpoint:
			_, there = c.Workloads[key.ID]
		}
		if there && key.Kind != view.KindIPSet {
			t.changed = true
		}
		news = news || there
	}
	return news
}

// note takes in what changed of a set.
func (t *thing) note(c state.SetChange) {
	if !t.told || t.changed {
		return
	}
	if t.members == nil {
		t.members = make(map[view.Member]bool, len(c.Members))
	}
	maps.Copy(t.members, c.Members)
	if c.Whole || len(t.members) > fewMembers {
		t.changed, t.members = true, nil
	}
}

// Next returns what is to be told now, and takes it for told. Nothing is told before the node's view is whole and while
// something is missing of what applies to the pod, so that what was told is never a mixture.
func (f *Follower) Next(s *state.State) (u Update) {
	if !s.Synced {
		return Update{}
	}
	reached := Reach(s, f.pod)
	next := map[view.Key]*thing{f.pod.key(): {}}
	for _, key := range reached {
		if next[key] = f.wants[key]; next[key] == nil {
			next[key] = &thing{}
		}
	}
	if len(reached) > 0 && len(s.ListLacks(s.Workloads[f.pod.ID()].PolicyList)) > 0 {
		maps.Copy(f.wants, next) // what is missing wakes us when it comes
		return Update{}
	}
	for _, key := range reached {
		item, there := tell(s, key, next[key])
		switch {
		case there:
			u.Items = append(u.Items, item...)
			next[key] = &thing{told: true}
		case next[key].told:
			u.Gone = append(u.Gone, key)
			next[key] = &thing{}
		}
	}
	for key, t := range f.wants {
		if _, still := next[key]; t.told && (!still || len(reached) == 0) {
			u.Gone = append(u.Gone, key)
		}
	}
	slices.SortFunc(u.Gone, func(a, b view.Key) int { return compare(b, a) })
	f.wants = next
	u.InSync = len(reached) > 0 && !f.whole
	f.whole = f.whole || u.InSync
	return u
}

// tell returns what there is to say of a thing, and whether it is there at all.
func tell(s *state.State, key view.Key, t *thing) (news []view.Item, there bool) {
	var item view.Item
	switch key.Kind {
	case view.KindIPSet:
		if _, there := s.Sets[key.ID]; !there {
			return nil, false
		}
		if t.told && !t.changed {
			return difference(key.ID, t.members), true
		}
		set, _ := s.WholeSet(key.ID)
		return []view.Item{set}, true
	case view.KindPolicy:
		item, there = as(s.Policies, key.ID)
	case view.KindPolicyList:
		item, there = as(s.Lists, key.ID)
	case view.KindWorkloadEndpoint:
		item, there = as(s.Workloads, key.ID)
	}
	if !there || t.told && !t.changed {
		return nil, there
	}
	return []view.Item{item}, true
}

func as[T view.Item](all map[string]T, id string) (view.Item, bool) {
	item, there := all[id]
	return item, there
}

// difference is what changed of a set; nothing if nothing did.
func difference(id string, members map[view.Member]bool) []view.Item {
	if len(members) == 0 {
		return nil
	}
	d := view.IPSetDelta{ID: id}
	for m, in := range members {
		if in {
			d.Added = append(d.Added, m)
		} else {
			d.Removed = append(d.Removed, m)
		}
	}
	slices.SortFunc(d.Added, view.Member.Compare)
	slices.SortFunc(d.Removed, view.Member.Compare)
	return []view.Item{d}
}
