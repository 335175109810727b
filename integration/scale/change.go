package scale

import (
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
)

// Verb is what is done to an object.
type Verb uint8

// The verbs.
const (
	Create Verb = iota + 1
	Update
	Delete
)

// Write is one write to the datastore.
type Write struct {
	Verb   Verb
	Object api.Object
	// Tells is what a client sees that was told of the write: an address that came into a set, an endpoint's address or the name
	// of a node or policy. Empty where nobody is measured by it.
	Tells string
}

// Change is what happens at once to a world, in the order in which a cluster writes it.
type Change struct {
	Kind   Kind
	Writes []Write
	// Place is where it happens: changes of one place are to be written one after the other, in their order.
	Place string
}

// Kind is a kind of change.
type Kind string

// The kinds of change. Relabel, RelabelGateway and Restart concern pods: a label that policies look at changes, the same of a pod
// that every node lets in, and a pod is replaced by another with another address. Policy changes a rule's port. Join and Leave
// bring nodes and take them away again.
const (
	Relabel        Kind = "label"
	RelabelGateway Kind = "gateway"
	Restart        Kind = "pod"
	Policy         Kind = "policy"
	Join           Kind = "join"
	Leave          Kind = "leave"
)

// Rates say how many changes of each kind there are in a second.
type Rates map[Kind]float64

// step goes through n things in an order in which each comes once before any comes again, and neighbours are far apart.
func step(counter *int, n int) int {
	i := *counter * stride(n) % n
	*counter++
	return i
}

// stride is a number without a common divisor with n, about three fifths of it.
func stride(n int) int {
	for s := max(1, n*5/8); ; s++ {
		a, b := n, s
		for b != 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return s
		}
	}
}

// Change makes the next change of a kind. only, if not nil, says which pods may be touched.
func (w *World) Change(kind Kind, only func(pod int) bool) Change {
	pick := func(counter *int, from int, at func(int) int) int {
		for range from {
			if i := at(step(counter, from)); only == nil || only(i) {
				return i
			}
		}
		panic("scale: no pod may be touched")
	}
	self := func(i int) int { return i }
	switch kind {
	case Relabel:
		i := pick(&w.next.relabel, len(w.pods), self)
		return w.relabel(kind, i)
	case RelabelGateway:
		i := pick(&w.next.gateway, len(w.gateways), func(i int) int { return w.gateways[i] })
		w.pods[i].gateway = !w.pods[i].gateway
		return Change{Kind: kind, Place: nodeName(w.pods[i].node), Writes: []Write{{Update, w.podObject(i), w.podAddress(i).String()}}}
	case Restart:
		return w.restart(pick(&w.next.restart, len(w.pods), self))
	case Policy:
		i := step(&w.next.policy, w.shape.Policies)
		w.edits[i]++
		o := w.policyObject(i)
		return Change{Kind: kind, Place: policyID(o), Writes: []Write{{Update, o, policyID(o)}}}
	case Join:
		return w.join()
	case Leave:
		return w.leave()
	}
	panic("scale: no such kind of change: " + string(kind))
}

func (w *World) podAddress(i int) netip.Addr { return w.address(w.pods[i].node, w.pods[i].ordinal) }

func (w *World) relabel(kind Kind, i int) Change {
	w.pods[i].version = (w.pods[i].version + 1) % versions
	return Change{Kind: kind, Place: nodeName(w.pods[i].node), Writes: []Write{{Update, w.podObject(i), w.podAddress(i).String()}}}
}

// restart replaces a pod: the new one has another name and another address of its node's blocks. The blocks are written as the
// addresses are taken and given back.
func (w *World) restart(i int) Change {
	p := &w.pods[i]
	n := &w.nodes[p.node]
	old, before := w.podObject(i), p.ordinal
	p.generation++
	p.ordinal, n.free = n.free[0], n.free[1:]
	c := Change{Kind: Restart, Place: nodeName(p.node), Writes: []Write{{Delete, old, ""}, {Update, w.blockObject(p.node, p.ordinal/blockSize), ""}}}
	n.free = append(n.free, before)
	c.Writes = append(c.Writes, Write{Create, w.podObject(i), w.podAddress(i).String()}, Write{Update, w.blockObject(p.node, before/blockSize), ""})
	return c
}

func (w *World) join() Change {
	i := len(w.nodes)
	w.nodes = append(w.nodes, node{free: freeOrdinals(0)})
	w.joined = append(w.joined, i)
	c := Change{Kind: Join, Place: nodeName(i)}
	for _, o := range w.nodeWithBlocks(i) {
		c.Writes = append(c.Writes, Write{Verb: Create, Object: o})
	}
	c.Writes[0].Tells = nodeName(i)
	return c
}

// leave has the node that joined first go, or one join if there is none.
func (w *World) leave() Change {
	if len(w.joined) == 0 {
		return w.join()
	}
	i := w.joined[0]
	w.joined = w.joined[1:]
	c := Change{Kind: Leave, Place: nodeName(i)}
	for _, o := range w.nodeWithBlocks(i) {
		c.Writes = append(c.Writes, Write{Verb: Delete, Object: o})
	}
	return c
}

// Marker is a change that every node is told of, and what it is told: when a client has it, it has all that was written before.
func (w *World) Marker(n int) (Change, string) {
	return Change{Writes: []Write{{Update, markerObject(n), markerNet(n).Addr().String()}}}, markerNet(n).Addr().String()
}

// policyID is a policy's id in views.
func policyID(o api.Object) string {
	if o.GetNamespace() == "" {
		return "gnp/" + o.GetName()
	}
	return fmt.Sprintf("np/%s/%s", o.GetNamespace(), o.GetName())
}
