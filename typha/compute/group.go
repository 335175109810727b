package compute

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// group is the workloads, of all nodes, that no policy tells apart: they have the same values of all labels that selectors of
// policies look at, and the same profiles. They share a policy list, whose id is made of these values and not of what applies:
// a policy that comes to apply to them changes one list, and no endpoint.
type group struct {
	key     string
	members map[*subject]struct{}
	list    *list
}

// groups sort workloads into groups.
type groups struct {
	by       map[string]*group
	mentions map[string]int      // by how many selectors of policies labels are looked at
	moved    map[string]struct{} // labels that began or ceased to be looked at since the last flush
	dirty    map[*group]struct{}
	buf      []byte
}

func newGroups() *groups {
	return &groups{by: map[string]*group{}, mentions: map[string]int{}, moved: map[string]struct{}{}, dirty: map[*group]struct{}{}}
}

// mention counts one selector of policies more, or less.
func (g *groups) mention(s *selector.Selector, by int) {
	for _, key := range s.Keys() {
		was := g.mentions[key]
		if g.mentions[key] = was + by; was+by == 0 {
			delete(g.mentions, key)
		}
		if was == 0 || was+by == 0 {
			g.moved[key] = struct{}{}
		}
	}
}

// key writes down what makes a workload's group. known are its profiles that are known.
func (g *groups) key(s *subject, known []string) string {
	var labels [][2]string
	s.each(func(key, value string) {
		if g.mentions[key] > 0 {
			labels = append(labels, [2]string{key, value})
		}
	})
	slices.SortFunc(labels, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	buf := g.buf[:0]
	word := func(text string) {
		buf = binary.AppendUvarint(buf, uint64(len(text)))
		buf = append(buf, text...)
	}
	buf = binary.AppendUvarint(buf, uint64(len(labels)))
	for _, l := range labels {
		word(l[0])
		word(l[1])
	}
	for _, name := range known {
		word(name)
	}
	g.buf = buf
	return string(buf)
}

// groupOf moves a workload into its group, and returns that.
func (e *Engine) groupOf(s *subject, known []string) *group {
	key := e.groups.key(s, known)
	if s.group != nil && s.group.key == key {
		return s.group
	}
	e.leaveGroup(s)
	g := e.groups.by[key]
	if g == nil {
		sum := sha256.Sum256([]byte(key))
		g = &group{key: key, members: map[*subject]struct{}{}, list: &list{id: hex.EncodeToString(sum[:16])}}
		g.list.group = g
		g.list.say(normal, e.inTiers(normal, e.applying(s)), known)
		e.groups.by[key] = g
	} else {
		// Those who are in it may all be about to leave, as they are no longer what its key says. Then policies that came since
		// have found nobody in it.
		e.groups.dirty[g] = struct{}{}
	}
	g.members[s] = struct{}{}
	s.group = g
	return g
}

// leaveGroup takes a subject out of its group.
func (e *Engine) leaveGroup(s *subject) {
	if s.group != nil {
		delete(s.group.members, s)
		e.tidyGroup(s.group)
		s.group = nil
	}
}

// tidyGroup forgets a group that has no members, and whose list no node has.
func (e *Engine) tidyGroup(g *group) {
	if len(g.members) == 0 && len(g.list.nodes) == 0 {
		delete(e.groups.by, g.key)
		delete(e.groups.dirty, g)
	}
}

// touchList has the list of what applies to a subject computed anew.
func (e *Engine) touchList(s *subject) {
	switch {
	case s.group != nil:
		e.groups.dirty[s.group] = struct{}{}
	case s.endpoint != nil: // of a host, or not in a group yet
		e.dirtyEndpoints[s] = struct{}{}
	}
}

// regroup has the workloads computed anew that have labels which began or ceased to be looked at.
func (e *Engine) regroup() {
	if len(e.groups.moved) == 0 {
		return
	}
	for _, s := range e.subjects {
		if s.endpoint == nil || s.group == nil {
			continue
		}
		for key := range e.groups.moved {
			if _, has := s.Get(key); has {
				e.touch(s)
				break
			}
		}
	}
	clear(e.groups.moved)
}

// flushGroups computes the lists of dirty groups. It comes after the endpoints, when all members of a group are alike.
func (e *Engine) flushGroups() {
	for g := range e.groups.dirty {
		for s := range g.members { // any of them
			e.flushGroup(g, s)
			break
		}
	}
	clear(e.groups.dirty)
}

func (e *Engine) flushGroup(g *group, s *subject) {
	known, _ := profilesOf(s)
	was := *g.list
	g.list.say(normal, e.inTiers(normal, e.applying(s)), known)
	if g.list.entry.Version == was.entry.Version {
		g.list.entry = was.entry
		return
	}
	for _, u := range g.list.nodes {
		e.out.put(e.viewOf(u.node), g.list.entry)
		for _, id := range g.list.policies { // before those are let go that it named
			e.needSlot(e.slot(id), u.node)
		}
		for _, id := range was.policies {
			e.yieldSlot(e.slots[id], u.node)
		}
	}
}

// say has a list say what applies.
func (l *list) say(p pass, tiers []tierPolicies, profiles []string) {
	item := view.PolicyList{ID: l.id}
	l.policies = nil
	name := func(policies []*policy) (ids []string) {
		for _, q := range policies {
			ids = append(ids, q.rules.item.ID)
		}
		l.policies = append(l.policies, ids...)
		return ids
	}
	for _, t := range tiers {
		item.Tiers = append(item.Tiers, view.TierPolicies{
			Name: t.tier.name, DefaultAction: p.end(t.tier), Ingress: name(t.ingress), Egress: name(t.egress),
		})
	}
	for _, profile := range profiles {
		item.Profiles = append(item.Profiles, profileID(profile))
	}
	l.policies = append(l.policies, item.Profiles...)
	slices.Sort(l.policies)
	l.policies = slices.Compact(l.policies)
	if item.ID == "" { // of the content
		item.ID = view.VersionOf(item).String()
		l.id = item.ID
	}
	l.entry = views.NewEntry(item)
}
