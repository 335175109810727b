package compute

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// group is the workloads, of all nodes, that no policy tells apart: they have the same profiles, the same labels of the system, and the
// same of what selectors of policies ask beyond these is true of them. They share a policy list, whose id is made of these and not of
// what applies: a policy that comes to apply to them changes one list, and no endpoint. A policy whose selector asks something new
// moves those that it selects to other groups, and nobody else; one that selects by namespace moves nobody.
type group struct {
	key     string
	members subjects
	list    *list
}

// groups sort workloads into groups.
type groups struct {
	by    map[string]*group
	dirty map[*group]struct{}
	hold  []string
	buf   []byte
}

func newGroups() *groups {
	return &groups{by: map[string]*group{}, dirty: map[*group]struct{}{}}
}

// given tells whether a label is the same of all workloads of a group, because groups are made of what it comes from: the system, or
// profiles. Of a workload, which has a namespace, no other label has these prefixes.
func given(label string) bool {
	return slices.Contains(systemLabels, label) ||
		strings.HasPrefix(label, selector.NamespacePrefix) || strings.HasPrefix(label, selector.ServiceAccountPrefix)
}

// asks is what the selector of a policy asks of workloads that have the given labels in common; empty if nothing.
func asks(s *selector.Selector) string {
	if rest := s.Rest(given); rest != nil {
		return rest.String()
	}
	return ""
}

// key writes down what makes a workload's group. known are its profiles that are known.
func (g *groups) key(s *subject, known []string) string {
	hold := g.hold[:0]
	for _, sel := range s.matches {
		if len(sel.policies) > 0 && sel.asks != "" {
			hold = append(hold, sel.asks)
		}
	}
	slices.Sort(hold)
	hold = slices.Compact(hold)
	buf := g.buf[:0]
	word := func(text string) {
		buf = binary.AppendUvarint(buf, uint64(len(text)))
		buf = append(buf, text...)
	}
	for _, label := range systemLabels {
		value, has := s.Get(label)
		if buf = append(buf, 0); has {
			buf[len(buf)-1] = 1
		}
		word(value)
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
