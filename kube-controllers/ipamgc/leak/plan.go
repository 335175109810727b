package leak

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

// State is what is stored.
type State struct {
	Blocks    []block.Block
	Reserved  block.Reserved // addresses that are not given out
	Owners    Owners
	Nodes     map[string]*api.Node // that are registered
	Claims    []string             // nodes that have affinities
	Endpoints []*api.WorkloadEndpoint
}

// Rules are the settings.
type Rules struct {
	// Grace is for how long an address has to be missing, and a surplus block empty, before anything is done; 0 leaves
	// what is on registered nodes alone.
	Grace time.Duration
	// Fence is for how long a node has to be gone before what it had is released: it may be made anew at once, by
	// somebody who wants to change it.
	Fence time.Duration
	// Again is after which time a question that is not there is put again.
	Again time.Duration
}

// Address is an address that is given out.
type Address struct {
	block.Allocation
	Block netip.Prefix
	Node  string // that it was given to
}

// id is one giving out of an address; when it is given out again, it is another.
type id struct {
	addr     netip.Addr
	handle   string
	sequence uint64
}

func (a Address) id() id { return id{a.Addr, a.Handle, a.Sequence} }

// Empty is an empty block that its node has no need for.
type Empty struct {
	CIDR     netip.Prefix
	Node     string
	Sequence uint64
}

// Plan is what to do now.
type Plan struct {
	Candidates []Address               // missing, and not proven to be lost
	Ask        map[string]string       // nodes to be asked for all their endpoints, each with the question's name
	Lost       []Address               // to be released
	Endpoints  []*api.WorkloadEndpoint // of nodes that are gone, to be deleted
	Nodes      []string                // that are gone and have nothing left that cannot be judged: all their blocks are to be released
	Surplus    []Empty                 // blocks to be given back
	Next       time.Duration           // after which time to look again, though nothing changes; 0 is never
}

// Memory is what is remembered between looks. Times are the process's own: whoever leads next counts anew. The zero value
// remembers nothing.
type Memory struct {
	missing map[id]time.Time
	empty   map[Empty]time.Time
	gone    map[string]time.Time // nodes
	asked   map[string]question  // of nodes
}

// question is what a node was asked last.
type question struct {
	name string
	at   time.Time
}

// Look compares what there is with what there was, and decides. name makes a name for a question that no other has had.
func (m *Memory) Look(s State, rules Rules, now time.Time, name func() string) Plan {
	l := look{Memory: m, State: s, rules: rules, now: now, plan: Plan{Ask: map[string]string{}}}
	l.nodes()
	l.addresses(name)
	l.blocks()
	return l.plan
}

type look struct {
	*Memory
	State
	rules Rules
	now   time.Time
	plan  Plan
}

// remember returns since when something has been so, and keeps only what still is.
func remember[K comparable](before map[K]time.Time, now time.Time, keys []K) map[K]time.Time {
	after := make(map[K]time.Time, len(keys))
	for _, k := range keys {
		if since, known := before[k]; known {
			after[k] = since
		} else {
			after[k] = now
		}
	}
	return after
}

// due tells whether something has been so for long enough, and has a later look when it has not.
func (l *look) due(since time.Time, wait time.Duration) bool {
	left := wait - l.now.Sub(since)
	if left > 0 && (l.plan.Next == 0 || left < l.plan.Next) {
		l.plan.Next = left
	}
	return left <= 0
}

// fenced tells whether a node is gone for good.
func (l *look) fenced(node string) bool {
	since, gone := l.gone[node]
	return gone && l.due(since, l.rules.Fence)
}

// nodes finds those that are gone but have left something.
func (l *look) nodes() {
	names := map[string]bool{}
	for _, n := range l.Claims {
		names[n] = true
	}
	for _, b := range l.Blocks {
		if kind, n := b.Owner(); kind == api.AffinityHost {
			names[n] = true
		}
		for a := range b.All() {
			names[a.Owner[api.OwnerNode]] = true
		}
	}
	for _, ep := range l.Endpoints {
		names[ep.Spec.Node] = true
	}
	maps.DeleteFunc(names, func(n string, _ bool) bool { return n == "" || l.Nodes[n] != nil })
	l.gone = remember(l.gone, l.now, slices.Collect(maps.Keys(names)))
	for _, ep := range l.Endpoints {
		if l.fenced(ep.Spec.Node) {
			l.plan.Endpoints = append(l.plan.Endpoints, ep)
		}
	}
}

// addresses finds those that are lost, and whom to ask.
func (l *look) addresses(name func() string) {
	var missing []Address
	lost := map[id]Address{}
	handles := map[string][]id{} // all addresses of each handle
	keep := map[string]bool{}    // nodes with something that cannot be judged
	for _, b := range l.Blocks {
		_, owner := b.Owner()
		for has := range b.All() {
			a := Address{Allocation: has, Block: b.CIDR(), Node: has.Owner[api.OwnerNode]}
			if a.Handle != "" {
				handles[a.Handle] = append(handles[a.Handle], a.id())
			}
			switch l.Owners.Life(has) {
			case Missing:
				if l.rules.Grace > 0 {
					missing = append(missing, a)
				}
			case Gone:
				if l.fenced(a.Node) {
					lost[a.id()] = a
				}
			case Untold:
				keep[cmp.Or(a.Node, owner)] = true
			}
		}
	}
	ids := make([]id, len(missing))
	for i, a := range missing {
		ids[i] = a.id()
	}
	l.missing = remember(l.missing, l.now, ids)
	maps.DeleteFunc(l.asked, func(node string, _ question) bool { return l.Nodes[node] == nil })
	for _, a := range missing {
		if l.proven(a) {
			lost[a.id()] = a
		} else {
			l.plan.Candidates = append(l.plan.Candidates, a)
		}
	}
	for _, a := range l.plan.Candidates {
		l.askAbout(a, name)
	}
	for _, a := range lost {
		// A pod gets all its addresses at once, and gives them back at once: while one of them is in use, so is the pod.
		if all(handles[a.Handle], func(other id) bool { _, is := lost[other]; return is }) {
			l.plan.Lost = append(l.plan.Lost, a)
		} else {
			l.plan.Candidates = append(l.plan.Candidates, a)
		}
	}
	byAddr := func(x, y Address) int { return x.Addr.Compare(y.Addr) }
	slices.SortFunc(l.plan.Lost, byAddr)
	slices.SortFunc(l.plan.Candidates, byAddr)
	for node := range l.gone {
		if l.fenced(node) && !keep[node] {
			l.plan.Nodes = append(l.plan.Nodes, node)
		}
	}
	slices.Sort(l.plan.Nodes)
}

func all[T any](list []T, is func(T) bool) bool {
	return !slices.ContainsFunc(list, func(t T) bool { return !is(t) })
}

// askAbout has a node asked for an address that has been missing for the whole grace period. An answer counts for what had
// been missing that long when the question was put; for the rest the node is asked once more when it has answered. Until
// then the question stands, however long that takes.
func (l *look) askAbout(a Address, name func() string) {
	if !l.due(l.missing[a.id()], l.rules.Grace) {
		return
	}
	q, asked := l.asked[a.Node]
	if asked && !l.answered(a.Node) {
		stands := l.Nodes[a.Node].Annotations[api.AnnotationEndpointsAsked] == q.name
		if stands || !l.due(q.at, l.rules.Again) { // it may be on its way, or lost
			return
		}
	}
	if l.asked == nil {
		l.asked = map[string]question{}
	}
	q = question{name(), l.now}
	l.asked[a.Node], l.plan.Ask[a.Node] = q, q.name
}

func (l *look) covers(q question, since time.Time) bool { return q.at.Sub(since) >= l.rules.Grace }

// answered tells whether a node has answered the last question.
func (l *look) answered(node string) bool {
	q, asked := l.asked[node]
	n := l.Nodes[node]
	return asked && n != nil && n.Annotations[api.AnnotationEndpointsTold] == q.name
}

// proven tells whether a node has been asked for a missing address when it was due, and did not name it.
func (l *look) proven(a Address) bool {
	return l.answered(a.Node) && l.covers(l.asked[a.Node], l.missing[a.id()])
}

// blocks finds the empty blocks that nodes have no need for: a node keeps one block with room for each family.
func (l *look) blocks() {
	type home struct {
		node string
		is4  bool
	}
	empty := map[home][]Empty{}
	room := map[home]bool{} // in blocks that are not empty
	for _, b := range l.Blocks {
		kind, node := b.Owner()
		if kind != api.AffinityHost || l.Nodes[node] == nil {
			continue
		}
		at := home{node, b.CIDR().Addr().Is4()}
		if b.Empty() {
			empty[at] = append(empty[at], Empty{b.CIDR(), node, b.Spec.SequenceNumber})
		} else if b.Free(l.Reserved) > 0 {
			room[at] = true
		}
	}
	var surplus []Empty
	for at, list := range empty {
		slices.SortFunc(list, func(x, y Empty) int { return x.CIDR.Compare(y.CIDR) })
		if !room[at] {
			list = list[1:]
		}
		surplus = append(surplus, list...)
	}
	if l.rules.Grace == 0 {
		surplus = nil
	}
	l.empty = remember(l.empty, l.now, surplus)
	for _, e := range surplus {
		if l.due(l.empty[e], l.rules.Grace) {
			l.plan.Surplus = append(l.plan.Surplus, e)
		}
	}
	slices.SortFunc(l.plan.Surplus, func(x, y Empty) int {
		if x.CIDR != y.CIDR {
			return x.CIDR.Compare(y.CIDR)
		}
		return strings.Compare(x.Node, y.Node)
	})
}
