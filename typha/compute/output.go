package compute

import (
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// output gathers what changes until the next Flush. The last word on a key counts.
type output struct {
	common [2]words // by ViewKind
	scopes map[views.Scope]*words
}

// words are entries put and keys dropped, in the order in which they were said. At the start of a large
// cluster there are millions; they are kept as plain lists.
type words []*views.Entry

func newOutput() *output { return &output{scopes: map[views.Scope]*words{}} }

// all puts an entry into every view of a kind.
func (o *output) all(kind views.ViewKind, e *views.Entry) { o.common[kind] = append(o.common[kind], e) }

// allDrop removes a key from every view of a kind.
func (o *output) allDrop(kind views.ViewKind, k view.Key) { o.all(kind, views.Dropped(k)) }

// put puts an entry into one view.
func (o *output) put(s views.Scope, e *views.Entry) {
	w := o.scopes[s]
	if w == nil {
		w = new(words)
		o.scopes[s] = w
	}
	*w = append(*w, e)
}

// drop removes a key from one view.
func (o *output) drop(s views.Scope, k view.Key) { o.put(s, views.Dropped(k)) }

// take returns what was gathered and starts anew.
func (o *output) take() views.Change {
	c := views.Change{Scopes: make(map[views.Scope]*views.Delta, len(o.scopes))}
	for kind, w := range o.common {
		c.Common[kind] = w.delta()
	}
	for s, w := range o.scopes {
		d := w.delta()
		c.Scopes[s] = &d
	}
	*o = *newOutput()
	return c
}

// delta keeps the last word on each key, in the order of keys.
func (w words) delta() (d views.Delta) {
	slices.SortStableFunc(w, func(a, b *views.Entry) int { return views.CompareKeys(a.Key, b.Key) })
	for i, e := range w {
		if i+1 < len(w) && w[i+1].Key == e.Key {
			continue
		}
		if e.Drops() {
			d.Drop = append(d.Drop, e.Key)
		} else {
			d.Put = append(d.Put, e)
		}
	}
	return d
}

// nodeView is felix's view of a node.
func nodeView(node string) views.Scope { return views.Scope{Node: node, View: views.NodeView} }

// bgpView is confd's view of a node.
func bgpView(node string) views.Scope { return views.Scope{Node: node, View: views.BGPView} }
