package selector

import (
	"maps"
	"slices"
)

// Requirement is something that the labels of every selected object have in common: the label Key is present, and
// unless AnyValue its value is one of Values. An empty Values without AnyValue can never be met: nothing is selected.
type Requirement struct {
	Key      string
	AnyValue bool     // presence is enough
	Values   []string // sorted, each once; nil if AnyValue
}

// Required returns what a selector demands of each label, sorted by key. It is an over-approximation: whatever the
// selector matches meets all requirements, but not all that meets them is matched. No requirement means that the
// selector may match objects whatever their labels; an index must then try it on every object.
func (s *Selector) Required() []Requirement {
	r := required(s.tree(), false)
	out := make([]Requirement, 0, len(r))
	for _, key := range slices.Sorted(maps.Keys(r)) {
		if v := r[key]; v.any {
			out = append(out, Requirement{Key: key, AnyValue: true})
		} else {
			out = append(out, Requirement{Key: key, Values: slices.Sorted(maps.Keys(v.values))})
		}
	}
	return out
}

// admitted says which values a label may have; the label must be present.
type admitted struct {
	any    bool
	values map[string]struct{}
}

// requirements maps label keys to what is admitted. Keys that are not in it are free.
type requirements map[string]admitted

// required computes the requirements of a node, or of its negation.
func required(n node, negated bool) requirements {
	switch n := n.(type) {
	case globalNode:
		if negated {
			return requirements{LabelNamespace: {any: true}}
		}
	case hasNode:
		if !negated {
			return requirements{n.key: {any: true}}
		}
	case notNode:
		return required(n.operand, !negated)
	case *compareNode:
		switch {
		case (n.op == equal && !negated) || (n.op == notEqual && negated):
			return requirements{n.key: oneOf(n.value)}
		case n.op != equal && n.op != notEqual && !negated:
			return requirements{n.key: {any: true}}
		}
	case *setNode:
		if n.absent == negated {
			return requirements{n.key: oneOf(n.values...)}
		}
	case *groupNode:
		// By De Morgan a negated AND is an OR of negations, and the other way round.
		merge := either
		if n.and != negated {
			merge = both
		}
		r := required(n.terms[0], negated)
		for _, t := range n.terms[1:] {
			r = merge(r, required(t, negated))
		}
		return r
	}
	return nil
}

func oneOf(values ...string) admitted {
	set := make(map[string]struct{}, len(values))
	for _, v := range values {
		set[v] = struct{}{}
	}
	return admitted{values: set}
}

// both meets a and b. It may change a.
func both(a, b requirements) requirements {
	if a == nil {
		return b
	}
	for key, vb := range b {
		va, shared := a[key]
		switch {
		case !shared || va.any:
			a[key] = vb
		case !vb.any:
			maps.DeleteFunc(va.values, func(v string, _ struct{}) bool { _, keep := vb.values[v]; return !keep })
		}
	}
	return a
}

// either meets a or b or both. It may change a.
func either(a, b requirements) requirements {
	if a.impossible() {
		return b
	}
	if b.impossible() {
		return a
	}
	for key, va := range a {
		vb, shared := b[key]
		switch {
		case !shared:
			delete(a, key)
		case va.any || vb.any:
			a[key] = admitted{any: true}
		default:
			maps.Copy(va.values, vb.values)
		}
	}
	return a
}

// impossible tells whether no labels can meet the requirements.
func (r requirements) impossible() bool {
	for _, v := range r {
		if !v.any && len(v.values) == 0 {
			return true
		}
	}
	return false
}
