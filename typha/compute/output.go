package compute

import (
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// output gathers what changes until the next Flush. The last word on a key counts.
type output struct {
	common [2]map[view.Key]*views.Entry // by ViewKind; nil entries mark removals
	scopes map[views.Scope]map[view.Key]*views.Entry
}

func newOutput() *output {
	return &output{
		common: [2]map[view.Key]*views.Entry{{}, {}},
		scopes: map[views.Scope]map[view.Key]*views.Entry{},
	}
}

// all puts an entry into every view of a kind.
func (o *output) all(kind views.ViewKind, e *views.Entry) { o.common[kind][e.Key] = e }

// allDrop removes a key from every view of a kind.
func (o *output) allDrop(kind views.ViewKind, k view.Key) { o.common[kind][k] = nil }

// put puts an entry into one view.
func (o *output) put(s views.Scope, e *views.Entry) { o.scope(s)[e.Key] = e }

// drop removes a key from one view.
func (o *output) drop(s views.Scope, k view.Key) { o.scope(s)[k] = nil }

func (o *output) scope(s views.Scope) map[view.Key]*views.Entry {
	m := o.scopes[s]
	if m == nil {
		m = map[view.Key]*views.Entry{}
		o.scopes[s] = m
	}
	return m
}

// take returns what was gathered and starts anew.
func (o *output) take() views.Change {
	c := views.Change{Scopes: make(map[views.Scope]*views.Delta, len(o.scopes))}
	for kind, m := range o.common {
		c.Common[kind] = delta(m)
	}
	for s, m := range o.scopes {
		d := delta(m)
		c.Scopes[s] = &d
	}
	*o = *newOutput()
	return c
}

func delta(m map[view.Key]*views.Entry) (d views.Delta) {
	for k, e := range m {
		if e != nil {
			d.Put = append(d.Put, e)
		} else {
			d.Drop = append(d.Drop, k)
		}
	}
	return d
}

// nodeView is felix's view of a node.
func nodeView(node string) views.Scope { return views.Scope{Node: node, View: views.NodeView} }

// bgpView is confd's view of a node.
func bgpView(node string) views.Scope { return views.Scope{Node: node, View: views.BGPView} }
