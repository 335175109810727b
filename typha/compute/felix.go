package compute

import (
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// setFelix takes in a FelixConfiguration, or with nil its end.
func (e *Engine) setFelix(name string, o *api.FelixConfiguration) {
	if o == nil {
		delete(e.felix, name)
	} else {
		e.felix[name] = o
	}
	if node, ok := strings.CutPrefix(name, "node."); ok {
		e.dirtyFelix[node] = struct{}{}
		return
	}
	for node := range e.nodes {
		e.dirtyFelix[node] = struct{}{}
	}
}

// flushFelix resolves the configuration of the nodes for which it may have changed. Nodes to which the same layers apply
// share the work, and most do.
func (e *Engine) flushFelix() {
	if len(e.dirtyFelix) == 0 {
		return
	}
	layers := e.felixLayers()
	resolved := map[string]*api.FelixConfigurationSpec{}
	for name := range e.dirtyFelix {
		n := e.nodes[name]
		if n == nil {
			continue
		}
		var names strings.Builder
		var specs []*api.FelixConfigurationSpec
		for _, l := range layers {
			if l.selects(n) {
				names.WriteString(l.config.Name + "\n")
				specs = append(specs, &l.config.Spec)
			}
		}
		spec := resolved[names.String()]
		if spec == nil {
			spec = api.EffectiveFelix(specs...)
			resolved[names.String()] = spec
		}
		if entry := views.NewMadeEntry(felixConfig{name, spec}); n.felix == nil || n.felix.Version != entry.Version {
			n.felix = entry
			e.out.put(nodeView(name), entry)
		}
	}
	clear(e.dirtyFelix)
}

// felixConfig makes the configuration of a node. The resolved one is kept once for all nodes that have it.
type felixConfig struct {
	node string
	spec *api.FelixConfigurationSpec
}

// Make makes the item.
func (f felixConfig) Make() view.Item {
	c := &api.FelixConfiguration{Spec: *f.spec}
	c.Name = f.node
	bare(c)
	return view.Resource{Object: c}
}

// felixLayer is one FelixConfiguration and the nodes it is for.
type felixLayer struct {
	config   *api.FelixConfiguration
	node     string             // one node, or
	selector *selector.Selector // those selected, or all if nil
}

func (l felixLayer) selects(n *node) bool {
	if l.node != "" {
		return l.node == n.name
	}
	return l.selector == nil || l.selector.Matches(n.labels)
}

// felixLayers are all configurations, the weakest first: "default", those for selected nodes (of two that both set a
// field the one first in the order of names wins), those for one node.
func (e *Engine) felixLayers() []felixLayer {
	var layers []felixLayer
	for name, c := range e.felix {
		l := felixLayer{config: c}
		switch node, ok := strings.CutPrefix(name, "node."); {
		case ok:
			l.node = node
		case name == "default":
		case c.Spec.NodeSelector == nil:
			continue // selects nothing
		default:
			s, err := selector.Parse(*c.Spec.NodeSelector)
			if err != nil {
				continue
			}
			l.selector = s
		}
		layers = append(layers, l)
	}
	slices.SortFunc(layers, func(a, b felixLayer) int {
		if d := a.rank() - b.rank(); d != 0 {
			return d
		}
		return strings.Compare(b.config.Name, a.config.Name)
	})
	return layers
}

func (l felixLayer) rank() int {
	switch {
	case l.node != "":
		return 2
	case l.selector != nil:
		return 1
	}
	return 0
}
