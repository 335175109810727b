package selector

import "slices"

// Prefixes under which an endpoint inherits the labels of its namespace and of its service account.
const (
	NamespacePrefix      = "pcns."
	ServiceAccountPrefix = "pcsa."
)

// All is all().
func All() *Selector { return &Selector{root: allNode{}} }

// Has is has(key).
func Has(key string) *Selector { return &Selector{root: hasNode{key}} }

// Equal is key == "value".
func Equal(key, value string) *Selector {
	return &Selector{root: &compareNode{key: key, op: equal, value: value}}
}

// In is key in {values}.
func In(key string, values ...string) *Selector {
	return &Selector{root: newSet(key, false, slices.Clone(values))}
}

// Not negates a selector.
func Not(s *Selector) *Selector { return &Selector{root: not(s.tree())} }

// And joins those selectors that are given (not nil). With none it returns nil, with one that one.
func And(selectors ...*Selector) *Selector {
	given := slices.DeleteFunc(slices.Clone(selectors), func(s *Selector) bool { return s == nil })
	switch len(given) {
	case 0:
		return nil
	case 1:
		return given[0]
	}
	terms := make([]node, len(given))
	for i, s := range given {
		terms[i] = s.tree()
	}
	return &Selector{root: group(true, terms)}
}

// WithPrefix returns the selector with prefix put before every label key. all() and global() have no key and stay.
func (s *Selector) WithPrefix(prefix string) *Selector {
	return &Selector{root: rewrite(s.tree(), func(n node) node {
		switch n := n.(type) {
		case hasNode:
			return hasNode{prefix + n.key}
		case *compareNode:
			return &compareNode{key: prefix + n.key, op: n.op, value: n.value}
		case *setNode:
			return &setNode{key: prefix + n.key, absent: n.absent, values: n.values}
		}
		return n
	})}
}

// ReplaceAll returns the selector with every all() replaced.
func (s *Selector) ReplaceAll(by *Selector) *Selector {
	return &Selector{root: rewrite(s.tree(), func(n node) node {
		if _, ok := n.(allNode); ok {
			return by.tree()
		}
		return n
	})}
}

// ReplaceGlobal returns the selector with every global() replaced.
func (s *Selector) ReplaceGlobal(by *Selector) *Selector {
	return &Selector{root: rewrite(s.tree(), func(n node) node {
		if _, ok := n.(globalNode); ok {
			return by.tree()
		}
		return n
	})}
}

// tree is the root, with the zero value spelt out.
func (s *Selector) tree() node {
	if s.root == nil {
		return notNode{allNode{}}
	}
	return s.root
}

// rewrite replaces each leaf by what leaf returns for it.
func rewrite(n node, leaf func(node) node) node {
	switch n := n.(type) {
	case notNode:
		return not(rewrite(n.operand, leaf))
	case *groupNode:
		terms := make([]node, len(n.terms))
		for i, t := range n.terms {
			terms[i] = rewrite(t, leaf)
		}
		return group(n.and, terms)
	default:
		return leaf(n)
	}
}

// ForNetworkPolicy is the one selector of the endpoints that a NetworkPolicy in namespace applies to: its selector and
// serviceAccountSelector, each nil if the field is empty. all() keeps its plain meaning in both.
func ForNetworkPolicy(selector *Selector, namespace string, serviceAccounts *Selector) *Selector {
	effective := And(selector, Equal(LabelNamespace, namespace))
	if serviceAccounts != nil {
		effective = And(effective, serviceAccounts.WithPrefix(ServiceAccountPrefix))
	}
	return effective
}

// ForGlobalNetworkPolicy is the one selector of the endpoints that a GlobalNetworkPolicy applies to: its selector,
// namespaceSelector and serviceAccountSelector, each nil if the field is empty.
//
// In a namespaceSelector all() means "has a namespace", in a serviceAccountSelector "has a service account". Calico
// makes that substitution in the text joined so far, so an all() written in the plain selector is rewritten too as soon
// as one of the other two is given; users' policies depend on it, and this does the same.
func ForGlobalNetworkPolicy(selector, namespaces, serviceAccounts *Selector) *Selector {
	effective := selector
	if namespaces != nil {
		effective = inNamespace(And(effective, namespaces.WithPrefix(NamespacePrefix)))
	}
	if serviceAccounts != nil {
		effective = And(effective, serviceAccounts.WithPrefix(ServiceAccountPrefix)).ReplaceAll(Has(LabelServiceAccount))
	}
	if effective == nil {
		return All()
	}
	return effective
}

// inNamespace gives all() and global() the meaning they have for namespaces.
func inNamespace(s *Selector) *Selector {
	return s.ReplaceAll(Has(LabelNamespace)).ReplaceGlobal(Not(Has(LabelNamespace)))
}

// Entity holds the fields of one side of a policy rule that together select endpoints. A nil selector is an empty field.
type Entity struct {
	Selector               *Selector
	NotSelector            *Selector
	NamespaceSelector      *Selector
	ServiceAccountNames    []string
	ServiceAccountSelector *Selector
}

// Effective joins the entity's fields into the one selector of what the rule matches, or nil if they restrict nothing.
// policyNamespace is the namespace of the policy, empty for a global one. NotSelector is not part of the result (it is
// a negated set of its own and not bound to a namespace), but like any other selector it makes the rest of a namespaced
// policy's entity mean "in my own namespace".
func (e Entity) Effective(policyNamespace string) *Selector {
	var names, accounts, namespaces *Selector
	if e.ServiceAccountSelector != nil {
		accounts = e.ServiceAccountSelector.WithPrefix(ServiceAccountPrefix)
	}
	if len(e.ServiceAccountNames) > 0 {
		names = In(LabelServiceAccount, e.ServiceAccountNames...)
	}
	endpoints := And(And(accounts, names), e.Selector)
	switch {
	case e.NamespaceSelector != nil:
		namespaces = inNamespace(e.NamespaceSelector.WithPrefix(NamespacePrefix))
	case policyNamespace != "" && (endpoints != nil || e.NotSelector != nil):
		namespaces = Equal(LabelNamespace, policyNamespace)
	}
	return And(namespaces, endpoints)
}
