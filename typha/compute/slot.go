package compute

import "github.com/muslin-net/muslin/typha/views"

// slot is the place of a policy or profile in the views. It outlives the policy while policy lists still name it, which
// they do until the endpoints concerned have been computed anew.
type slot struct {
	id      string
	rules   *rules       // as they are now; nil if there are none
	applied *rules       // those whose sets are counted
	entry   *views.Entry // of applied; nil while no node needs it
	nodes   counter

	hint   bool                // every node needs it
	pinned map[nodeID]struct{} // nodes that have it because of the hint
}

func (e *Engine) slot(id string) *slot {
	sl := e.slots[id]
	if sl == nil {
		sl = &slot{id: id}
		e.slots[id] = sl
	}
	return sl
}

// setSlot says what the rules of an id are now, nil if there are none.
func (e *Engine) setSlot(id string, r *rules) {
	if r == nil && e.slots[id] == nil {
		return
	}
	sl := e.slot(id)
	sl.rules = r
	e.dirtySlots[sl] = struct{}{}
}

// setEverywhere says whether every node needs a policy, whether an endpoint of it does or not.
func (e *Engine) setEverywhere(id string, hint bool) {
	sl := e.slots[id]
	if sl == nil || sl.hint == hint {
		return
	}
	sl.hint = hint
	e.everywhere[sl] = struct{}{}
	e.repin = true
}

// flushSlots makes the counted sets those of the present rules, and tells the nodes of changed rules.
func (e *Engine) flushSlots() {
	for sl := range e.dirtySlots {
		e.flushSlot(sl)
	}
	clear(e.dirtySlots)
	if e.repin {
		e.repin = false
		for sl := range e.everywhere {
			e.pin(sl)
		}
	}
}

func (e *Engine) flushSlot(sl *slot) {
	was := sl.applied
	sl.applied = sl.rules
	for _, u := range sl.nodes {
		e.needSets(sl.applied, u.node)
		e.yieldSets(was, u.node)
	}
	e.tidySlot(sl)
	if sl.applied == nil {
		sl.entry = nil
		return
	}
	if sl.entry == nil {
		return // made when needed
	}
	if now := views.NewEntry(sl.applied.item); now.Version != sl.entry.Version {
		sl.entry = now
		for _, u := range sl.nodes {
			e.out.put(e.viewOf(u.node), now)
		}
	}
}

// pin gives a policy to all nodes, or takes it back.
func (e *Engine) pin(sl *slot) {
	for node := range sl.pinned {
		if _, known := e.nodes[e.names[node]]; !known || !sl.hint {
			delete(sl.pinned, node)
			e.yieldSlot(sl, node)
		}
	}
	if !sl.hint {
		delete(e.everywhere, sl)
		return
	}
	if sl.pinned == nil {
		sl.pinned = map[nodeID]struct{}{}
	}
	for name := range e.nodes {
		node := e.number(name)
		if _, has := sl.pinned[node]; !has {
			sl.pinned[node] = struct{}{}
			e.needSlot(sl, node)
		}
	}
}

// needSlot counts one more thing on a node that needs a policy.
func (e *Engine) needSlot(sl *slot, node nodeID) {
	if !sl.nodes.inc(node) || sl.applied == nil {
		return
	}
	if sl.entry == nil {
		sl.entry = views.NewEntry(sl.applied.item)
	}
	e.out.put(e.viewOf(node), sl.entry)
	e.needSets(sl.applied, node)
}

// yieldSlot counts one less.
func (e *Engine) yieldSlot(sl *slot, node nodeID) {
	if !sl.nodes.dec(node) {
		return
	}
	e.out.drop(e.viewOf(node), policyKey(sl.id))
	e.yieldSets(sl.applied, node)
	e.tidySlot(sl)
}

// tidySlot forgets what nobody needs.
func (e *Engine) tidySlot(sl *slot) {
	if len(sl.nodes) > 0 {
		return
	}
	sl.entry = nil
	if sl.rules == nil && !sl.hint {
		delete(e.slots, sl.id)
	}
}

func (e *Engine) needSets(r *rules, node nodeID) {
	if r == nil {
		return
	}
	for _, spec := range r.sets {
		e.needSet(spec, node)
	}
}

func (e *Engine) yieldSets(r *rules, node nodeID) {
	if r == nil {
		return
	}
	for id := range r.sets {
		e.yieldSet(id, node)
	}
}
