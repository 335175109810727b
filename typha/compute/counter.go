package compute

import (
	"cmp"
	"slices"

	"github.com/muslin-net/muslin/typha/views"
)

// nodeID stands for a node's name. There are millions of counts of what nodes need, and a name is six times as large.
type nodeID uint32

// number returns the id of a node's name. A name keeps its id for good.
func (e *Engine) number(name string) nodeID {
	id, ok := e.numbers[name]
	if !ok {
		id = nodeID(len(e.names))
		e.numbers[name] = id
		e.names = append(e.names, name)
	}
	return id
}

// viewOf is felix's view of a node.
func (e *Engine) viewOf(n nodeID) views.Scope { return nodeView(e.names[n]) }

// counter counts, for each node, how many things on it need something. It is in order of nodes, and what is not in it is
// not needed.
type counter []use

type use struct {
	node  nodeID
	count uint32
}

func (c counter) find(node nodeID) (int, bool) {
	return slices.BinarySearchFunc(c, node, func(u use, n nodeID) int { return cmp.Compare(u.node, n) })
}

// inc counts one more, and tells whether it is the first.
func (c *counter) inc(node nodeID) bool {
	i, found := c.find(node)
	if !found {
		*c = slices.Insert(*c, i, use{node, 1})
		return true
	}
	(*c)[i].count++
	return false
}

// dec counts one less, and tells whether it was the last.
func (c *counter) dec(node nodeID) bool {
	i, _ := c.find(node)
	if (*c)[i].count--; (*c)[i].count > 0 {
		return false
	}
	*c = slices.Delete(*c, i, i+1)
	return true
}
