package selector

import "strings"

// Condition is a question about one label that a selector asks, put so that it can only be true of objects that have the label.
// Conditions are equal if they ask the same.
type Condition struct {
	key   string
	op    comparison
	value string
}

// Equals is the condition that a label has a value.
func Equals(key, value string) Condition { return Condition{key: key, op: equal, value: value} }

// Key is the label.
func (c Condition) Key() string { return c.key }

// IsEquals tells whether the condition is one that Equals makes.
func (c Condition) IsEquals() bool { return c.op == equal }

// Holds tells whether the condition is true of an object with these labels.
func (c Condition) Holds(l Labels) bool { return c.node().eval(l) }

// String is the selector that asks for nothing but this, in its canonical form.
func (c Condition) String() string {
	var b strings.Builder
	c.node().render(&b)
	return b.String()
}

func (c Condition) node() node {
	if c.op == present {
		return hasNode{c.key}
	}
	return &compareNode{key: c.key, op: c.op, value: c.value}
}

// Conditions are what a selector asks, in the order in which it does, and as often. Of objects for which the same conditions hold
// it selects all or none.
func (s *Selector) Conditions() (list []Condition) {
	anyNode(s.tree(), func(n node) bool {
		switch n := n.(type) {
		case globalNode:
			list = append(list, Condition{key: LabelNamespace, op: present})
		case hasNode:
			list = append(list, Condition{key: n.key, op: present})
		case *compareNode:
			c := Condition{key: n.key, op: n.op, value: n.value}
			if c.op == notEqual {
				c.op = equal
			}
			list = append(list, c)
		case *setNode:
			for _, v := range n.values {
				list = append(list, Equals(n.key, v))
			}
		}
		return false
	})
	return list
}
