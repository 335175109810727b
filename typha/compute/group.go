package compute

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// group is the workloads, of all nodes, that no policy tells apart: of what selectors of policies ask the same is true of them,
// and they have the same profiles. They share a policy list, whose id is made of these and not of what applies: a policy that comes
// to apply to them changes one list, and no endpoint. One that asks something new moves the workloads of which it is true to other
// groups, and no others.
type group struct {
	key     string
	members subjects
	list    *list
}

// groups sort workloads into groups.
type groups struct {
	by    map[string]*group
	asked map[selector.Condition]*question
	other map[string]map[selector.Condition]*question // those that do not ask for a value, by label
	moved map[selector.Condition]bool                 // those that began or ceased to be asked since the last flush, and whether they were before
	dirty map[*group]struct{}
	hold  []string
	buf   []byte
}

// question is a condition that selectors of policies ask.
type question struct {
	text  string
	times int // how many selectors ask it
}

func newGroups() *groups {
	return &groups{
		by: map[string]*group{}, asked: map[selector.Condition]*question{}, other: map[string]map[selector.Condition]*question{},
		moved: map[selector.Condition]bool{}, dirty: map[*group]struct{}{},
	}
}

// ask counts one selector of policies more.
func (g *groups) ask(s *selector.Selector) {
	for _, c := range s.Conditions() {
		q := g.asked[c]
		if q == nil {
			q = &question{text: c.String()}
			g.asked[c] = q
			g.move(c, false)
			if !c.IsEquals() {
				if g.other[c.Key()] == nil {
					g.other[c.Key()] = map[selector.Condition]*question{}
				}
				g.other[c.Key()][c] = q
			}
		}
		q.times++
	}
}

// drop counts one less.
func (g *groups) drop(s *selector.Selector) {
	for _, c := range s.Conditions() {
		q := g.asked[c]
		if q.times--; q.times > 0 {
			continue
		}
		delete(g.asked, c)
		g.move(c, true)
		if !c.IsEquals() {
			if delete(g.other[c.Key()], c); len(g.other[c.Key()]) == 0 {
				delete(g.other, c.Key())
			}
		}
	}
}

func (g *groups) move(c selector.Condition, was bool) {
	if _, noted := g.moved[c]; !noted {
		g.moved[c] = was
	}
}

// key writes down what makes a workload's group. known are its profiles that are known.
func (g *groups) key(s *subject, known []string) string {
	hold := g.hold[:0]
	s.each(func(key, value string) {
		if q := g.asked[selector.Equals(key, value)]; q != nil {
			hold = append(hold, q.text)
		}
		for c, q := range g.other[key] {
			if c.Holds(s) {
				hold = append(hold, q.text)
			}
		}
	})
	slices.Sort(hold)
	buf := g.buf[:0]
	word := func(text string) {
		buf = binary.AppendUvarint(buf, uint64(len(text)))
		buf = append(buf, text...)
	}
	buf = binary.AppendUvarint(buf, uint64(len(hold)))
	for _, text := range hold {
		word(text)
	}
	for _, name := range known {
		word(name)
	}
	g.hold, g.buf = hold, buf
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
		g = &group{key: key, list: &list{id: hex.EncodeToString(sum[:16])}}
		g.list.group = g
		g.list.say(normal, e.inTiers(normal, e.applying(s)), known)
		e.groups.by[key] = g
	} else {
		// Those who are in it may all be about to leave, as they are no longer what its key says. Then policies that came since
		// have found nobody in it.
		e.groups.dirty[g] = struct{}{}
	}
	g.members.add(s)
	s.group = g
	return g
}

// leaveGroup takes a subject out of its group.
func (e *Engine) leaveGroup(s *subject) {
	if s.group != nil {
		s.group.members.remove(s)
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

// regroup has the workloads computed anew of which something is true that began or ceased to be asked.
func (e *Engine) regroup() {
	maps.DeleteFunc(e.groups.moved, func(c selector.Condition, was bool) bool { return was == (e.groups.asked[c] != nil) })
	if len(e.groups.moved) == 0 {
		return
	}
	for _, s := range e.subjects.All() {
		if s.endpoint == nil || s.group == nil {
			continue
		}
		for c := range e.groups.moved {
			if c.Holds(s) {
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
		for s := range e.index.of(g.members) { // any of them
			e.flushGroup(g, s)
			break
		}
	}
	e.groups.dirty = map[*group]struct{}{} // a new one, as of dirty endpoints
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
