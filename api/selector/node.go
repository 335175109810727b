package selector

import (
	"slices"
	"strings"
)

// node is one node of the syntax tree. Nodes are never changed once made; rewriting makes new ones.
type node interface {
	eval(Labels) bool
	render(*strings.Builder)
}

type (
	allNode    struct{}               // all()
	globalNode struct{}               // global(): no namespace
	hasNode    struct{ key string }   // has(key)
	notNode    struct{ operand node } // !operand; the operand is never itself a notNode
	groupNode  struct {               // two or more terms
		and   bool // all of them, else any of them
		terms []node
	}
	compareNode struct {
		key   string
		op    comparison
		value string
	}
	setNode struct {
		key    string
		absent bool     // not in
		values []string // sorted, each once
	}
)

// comparison is an operator between a label and one value.
type comparison int

const (
	equal comparison = iota
	notEqual
	contains
	startsWith
	endsWith
)

// String is the operator as it is written in the canonical form.
func (c comparison) String() string {
	return [...]string{"==", "!=", "contains", "starts with", "ends with"}[c]
}

func (allNode) eval(Labels) bool { return true }

func (globalNode) eval(l Labels) bool {
	_, present := l.Get(LabelNamespace)
	return !present
}

func (n hasNode) eval(l Labels) bool {
	_, present := l.Get(n.key)
	return present
}

func (n notNode) eval(l Labels) bool { return !n.operand.eval(l) }

func (n *groupNode) eval(l Labels) bool {
	for _, t := range n.terms {
		if t.eval(l) != n.and {
			return !n.and
		}
	}
	return n.and
}

func (n *compareNode) eval(l Labels) bool {
	v, present := l.Get(n.key)
	switch n.op {
	case equal:
		return present && v == n.value
	case notEqual:
		return !present || v != n.value
	case contains:
		return present && strings.Contains(v, n.value)
	case startsWith:
		return present && strings.HasPrefix(v, n.value)
	default:
		return present && strings.HasSuffix(v, n.value)
	}
}

func (n *setNode) eval(l Labels) bool {
	v, present := l.Get(n.key)
	if !present {
		return n.absent
	}
	_, member := slices.BinarySearch(n.values, v)
	return member != n.absent
}

func (allNode) render(b *strings.Builder)    { b.WriteString("all()") }
func (globalNode) render(b *strings.Builder) { b.WriteString("global()") }

func (n hasNode) render(b *strings.Builder) {
	b.WriteString("has(")
	b.WriteString(n.key)
	b.WriteByte(')')
}

func (n notNode) render(b *strings.Builder) {
	b.WriteByte('!')
	n.operand.render(b)
}

func (n *groupNode) render(b *strings.Builder) {
	sep := " || "
	if n.and {
		sep = " && "
	}
	b.WriteByte('(')
	for i, t := range n.terms {
		if i > 0 {
			b.WriteString(sep)
		}
		t.render(b)
	}
	b.WriteByte(')')
}

func (n *compareNode) render(b *strings.Builder) {
	b.WriteString(n.key)
	b.WriteByte(' ')
	b.WriteString(n.op.String())
	b.WriteByte(' ')
	quote(b, n.value)
}

func (n *setNode) render(b *strings.Builder) {
	b.WriteString(n.key)
	if n.absent {
		b.WriteString(" not")
	}
	b.WriteString(" in {")
	for i, v := range n.values {
		if i > 0 {
			b.WriteString(", ")
		}
		quote(b, v)
	}
	b.WriteByte('}')
}

// quote writes a value in double quotes, or in single ones if it contains a double quote. (No value holds both: the
// language cannot express it, and label values hold neither.)
func quote(b *strings.Builder, value string) {
	q := byte('"')
	if strings.Contains(value, `"`) {
		q = '\''
	}
	b.WriteByte(q)
	b.WriteString(value)
	b.WriteByte(q)
}

// not negates a node, so that no notNode ever holds another: !!x is x.
func not(n node) node {
	if inner, ok := n.(notNode); ok {
		return inner.operand
	}
	return notNode{n}
}

// group joins terms; one term stays what it is.
func group(and bool, terms []node) node {
	if len(terms) == 1 {
		return terms[0]
	}
	return &groupNode{and: and, terms: terms}
}

// newSet takes ownership of values.
func newSet(key string, absent bool, values []string) node {
	slices.Sort(values)
	return &setNode{key: key, absent: absent, values: slices.Compact(values)}
}

// anyNode tells whether test holds for any node of the tree.
func anyNode(n node, test func(node) bool) bool {
	if n == nil || test(n) {
		return n != nil
	}
	switch n := n.(type) {
	case notNode:
		return anyNode(n.operand, test)
	case *groupNode:
		return slices.ContainsFunc(n.terms, func(t node) bool { return anyNode(t, test) })
	}
	return false
}
