package compute

import (
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// ipset is a set that at least one node needs. Members that were in it at the last flush are those of its entry; what is
// kept beside is only what the entry does not tell, since sets are what most memory goes into.
type ipset struct {
	spec      setSpec
	selection *selection             // what selects its members; nil for services, and until the set is filled
	entry     *views.Entry           // as of the last flush
	more      map[view.Member]uint32 // by how many subjects beyond the first members of the entry are added
	touched   map[view.Member]int    // by how many subjects members are added now, if that changed since the last flush
	nodes     counter
	fresh     []nodeID // nodes that need it since the last flush, and may have ceased to
}

// added is by how many subjects a member was added at the last flush.
func (set *ipset) added(m view.Member) int {
	if set.entry == nil {
		return 0
	}
	if _, found := slices.BinarySearchFunc(set.entry.Item().(view.IPSet).Members, m, views.CompareMembers); !found {
		return 0
	}
	return 1 + int(set.more[m])
}

// needSet counts one more policy of a node that needs a set. Members are looked for only at the end of a flush.
func (e *Engine) needSet(spec setSpec, node nodeID) {
	set := e.sets[spec.id]
	if set == nil {
		set = &ipset{spec: spec, more: map[view.Member]uint32{}, touched: map[view.Member]int{}}
		e.sets[spec.id] = set
	}
	if set.nodes.inc(node) {
		set.fresh = append(set.fresh, node)
		e.dirtySets[set] = struct{}{}
	}
}

// yieldSet counts one less.
func (e *Engine) yieldSet(id string, node nodeID) {
	set := e.sets[id]
	if set.nodes.dec(node) {
		e.out.drop(e.viewOf(node), view.Key{Kind: view.KindIPSet, ID: id})
		e.dirtySets[set] = struct{}{}
	}
}

// matched and unmatched are told by the index what selects a subject.
func (e *Engine) matched(sel *selection, s *subject) {
	e.moved(sel, s)
	for set := range sel.sets {
		e.count(set, s, +1)
	}
}

func (e *Engine) unmatched(sel *selection, s *subject) {
	e.moved(sel, s)
	for set := range sel.sets {
		e.count(set, s, -1)
	}
}

func (e *Engine) moved(sel *selection, s *subject) {
	if len(sel.policies) > 0 {
		e.touchList(s)
	}
	if len(sel.policies) > 0 && sel.asks != "" || len(sel.peerings) > 0 {
		e.touch(s)
	}
}

// contribute adds a subject's members to all sets that select it, or takes them away.
func (e *Engine) contribute(s *subject, by int) {
	for _, sel := range s.matches {
		for set := range sel.sets {
			e.count(set, s, by)
		}
	}
}

// count adds a subject's members to a set, or takes them away.
func (e *Engine) count(set *ipset, s *subject, by int) {
	if set.spec.kind == view.SetNet {
		for _, p := range s.nets {
			e.countMember(set, view.Member{Prefix: p}, by)
		}
		return
	}
	for _, p := range s.ports {
		if p.name != set.spec.port || set.spec.protocol != 0 && set.spec.protocol != p.protocol {
			continue
		}
		for _, net := range s.nets {
			e.countMember(set, view.Member{Prefix: net, Protocol: p.protocol, Port: p.number}, by)
		}
	}
}

func (e *Engine) countMember(set *ipset, m view.Member, by int) {
	was, known := set.touched[m]
	if !known {
		was = set.added(m)
	}
	set.touched[m] = was + by
	e.dirtySets[set] = struct{}{}
}

// flushSets fills the sets that are new, forgets those that no node needs, and tells the nodes of changes.
func (e *Engine) flushSets() {
	for set := range e.dirtySets {
		if len(set.nodes) == 0 {
			e.dropSet(set)
			continue
		}
		if set.entry == nil {
			e.fillSet(set)
		}
		if e.updateSet(set) {
			for _, u := range set.nodes {
				e.out.put(e.viewOf(u.node), set.entry)
			}
		} else {
			for _, node := range set.fresh {
				if _, needed := set.nodes.find(node); needed {
					e.out.put(e.viewOf(node), set.entry)
				}
			}
		}
		set.fresh = nil
	}
	clear(e.dirtySets)
}

func (e *Engine) fillSet(set *ipset) {
	if set.spec.selector == nil {
		for _, m := range e.serviceMembers(set.spec) {
			e.countMember(set, m, +1)
		}
		return
	}
	set.selection = e.index.selection(set.spec.selector)
	set.selection.sets[set] = struct{}{}
	for s := range e.index.of(set.selection.subjects) {
		e.count(set, s, +1)
	}
}

func (e *Engine) dropSet(set *ipset) {
	delete(e.sets, set.spec.id)
	if set.selection != nil {
		delete(set.selection.sets, set)
		e.index.release(set.selection)
	}
}

// updateSet makes the entry of what changed, and tells whether there was anything.
func (e *Engine) updateSet(set *ipset) bool {
	var added, removed []view.Member
	for m, now := range set.touched {
		switch was := set.added(m); {
		case now > 0 && was == 0:
			added = append(added, m)
		case was > 0 && now == 0:
			removed = append(removed, m)
		}
		if now > 1 {
			set.more[m] = uint32(now - 1)
		} else {
			delete(set.more, m)
		}
	}
	set.touched = map[view.Member]int{} // a new one: a map that was once large stays large
	if set.entry != nil && len(added) == 0 && len(removed) == 0 {
		return false
	}
	slices.SortFunc(added, views.CompareMembers)
	slices.SortFunc(removed, views.CompareMembers)
	version := view.EmptySet(set.spec.kind)
	var members []view.Member
	if set.entry != nil {
		version, members = set.entry.Version, set.entry.Item().(view.IPSet).Members
	}
	for _, m := range added {
		version = version.AddMember(m)
	}
	for _, m := range removed {
		version = version.RemoveMember(m)
	}
	item := view.IPSet{ID: set.spec.id, Type: set.spec.kind, Members: merge(members, added, removed)}
	set.entry = views.NewSet(item, version, set.entry, added, removed)
	return true
}

// merge returns the members without those removed and with those added. All are in order.
func merge(members, added, removed []view.Member) []view.Member {
	out := make([]view.Member, 0, len(members)+len(added)-len(removed))
	for _, m := range members {
		for len(added) > 0 && views.CompareMembers(added[0], m) < 0 {
			out = append(out, added[0])
			added = added[1:]
		}
		if len(removed) > 0 && removed[0] == m {
			removed = removed[1:]
			continue
		}
		out = append(out, m)
	}
	return append(out, added...)
}

// serviceMembers are the members of a service's set.
func (e *Engine) serviceMembers(spec setSpec) []view.Member {
	members := e.services[spec.service]
	var out []view.Member
	for _, m := range members {
		switch {
		case spec.kind == view.SetNet:
			out = append(out, view.Member{Prefix: m.Prefix})
		case m.Protocol != 0:
			out = append(out, m)
		}
	}
	return out
}

// setMembers says which addresses and ports stand behind a service, given as namespace/name; none if it is gone. Each
// member has address, protocol and port, or the address alone.
func (e *Engine) setMembers(service string, members []view.Member) {
	var sets []*ipset
	for _, ports := range []bool{true, false} {
		if set := e.sets[serviceSet(service, ports).id]; set != nil && set.entry != nil {
			sets = append(sets, set)
		}
	}
	for _, set := range sets {
		for _, m := range e.serviceMembers(set.spec) {
			e.countMember(set, m, -1)
		}
	}
	if len(members) == 0 {
		delete(e.services, service)
	} else {
		e.services[service] = members
	}
	for _, set := range sets {
		for _, m := range e.serviceMembers(set.spec) {
			e.countMember(set, m, +1)
		}
	}
}
