package selector

// Rest is what a selector asks beyond the labels that are given: if it selects one object, then of all others whose given labels are
// the same it selects those that the rest selects. It is nil, and stands for all of them, if the selector asks for nothing else.
func (s *Selector) Rest(given func(label string) bool) *Selector {
	var terms []node
	var take func(n node)
	take = func(n node) {
		if g, ok := n.(*groupNode); ok && g.and {
			for _, t := range g.terms {
				take(t)
			}
			return
		}
		if anyNode(n, func(n node) bool { label := asked(n); return label != "" && !given(label) }) {
			terms = append(terms, n)
		}
	}
	take(s.tree())
	if len(terms) == 0 {
		return nil
	}
	return &Selector{root: group(true, terms)}
}

// asked is the label that a node looks at itself, if it looks at one.
func asked(n node) string {
	switch n := n.(type) {
	case globalNode:
		return LabelNamespace
	case hasNode:
		return n.key
	case *compareNode:
		return n.key
	case *setNode:
		return n.key
	}
	return ""
}
