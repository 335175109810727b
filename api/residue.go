package api

import "reflect"

// Residue is what a stored object says that this version of the types does not: unknown fields, and known ones in a
// spelling that the types leave out (an explicit false, an empty object). The zero value is empty.
//
// It remembers where each thing was. On Encode it comes back if its place is still there: inside a map, while the map
// is; inside an element of a list, while the known content of that whole list is what it was when it was read, since
// otherwise there is no telling which element is which. What the types do know always wins over the residue.
//
// A Residue is immutable; copies share it.
//
// +kubebuilder:object:generate=false
type Residue struct {
	root *residueNode
}

// residueNode is the residue of one map or list. Exactly one of the two halves is used.
//
// +kubebuilder:object:generate=false
type residueNode struct {
	extra    map[string]any          // keys of a map that the types did not give back
	children map[string]*residueNode // residue inside values that the types did give back

	list     []any                // of a list: its known content, as it was
	elements map[int]*residueNode // residue inside its elements
}

// IsEmpty tells whether there is nothing to merge.
func (r *Residue) IsEmpty() bool { return r.root == nil }

// DeepCopyInto copies the residue. The content is shared, which is safe since it never changes.
func (r *Residue) DeepCopyInto(out *Residue) { *out = *r }

// Clear forgets everything.
func (r *Residue) Clear() { r.root = nil }

// fill computes what stored says beyond known. Both are decoded JSON.
func (r *Residue) fill(stored, known map[string]any) { r.root = mapResidue(stored, known) }

// merge adds the residue to known and returns it.
func (r *Residue) merge(known map[string]any) map[string]any {
	r.root.mergeMap(known)
	return known
}

func mapResidue(stored, known map[string]any) *residueNode {
	n := &residueNode{}
	for key, value := range stored {
		have, ok := known[key]
		if !ok {
			if n.extra == nil {
				n.extra = map[string]any{}
			}
			n.extra[key] = value
			continue
		}
		if child := residueOf(value, have); child != nil {
			if n.children == nil {
				n.children = map[string]*residueNode{}
			}
			n.children[key] = child
		}
	}
	if n.extra == nil && n.children == nil {
		return nil
	}
	return n
}

func residueOf(stored, known any) *residueNode {
	switch s := stored.(type) {
	case map[string]any:
		if k, ok := known.(map[string]any); ok {
			return mapResidue(s, k)
		}
	case []any:
		if k, ok := known.([]any); ok && len(k) == len(s) {
			return listResidue(s, k)
		}
	}
	return nil
}

func listResidue(stored, known []any) *residueNode {
	var n *residueNode
	for i := range stored {
		child := residueOf(stored[i], known[i])
		if child == nil {
			continue
		}
		if n == nil {
			n = &residueNode{list: known, elements: map[int]*residueNode{}}
		}
		n.elements[i] = child
	}
	return n
}

func (n *residueNode) mergeMap(known map[string]any) {
	if n == nil {
		return
	}
	for key, value := range n.extra {
		have, ok := known[key]
		if !ok {
			known[key] = clone(value)
			continue
		}
		mergeUnder(have, value)
	}
	for key, child := range n.children {
		switch have := known[key].(type) {
		case map[string]any:
			child.mergeMap(have)
		case []any:
			child.mergeList(have)
		}
	}
}

func (n *residueNode) mergeList(known []any) {
	if n.list == nil || !reflect.DeepEqual(known, n.list) {
		return
	}
	for i, child := range n.elements {
		switch have := known[i].(type) {
		case map[string]any:
			child.mergeMap(have)
		case []any:
			child.mergeList(have)
		}
	}
}

// mergeUnder adds to known, if both are maps, the keys that only extra has. It serves a field that was left out when
// the object was read (an empty struct with unknown fields inside) and has content now.
func mergeUnder(known, extra any) {
	k, ok1 := known.(map[string]any)
	e, ok2 := extra.(map[string]any)
	if !ok1 || !ok2 {
		return
	}
	for key, value := range e {
		if have, ok := k[key]; ok {
			mergeUnder(have, value)
		} else {
			k[key] = clone(value)
		}
	}
}

// clone copies decoded JSON, so that merging into the copy leaves the residue as it was.
func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			out[key] = clone(value)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = clone(value)
		}
		return out
	default:
		return v
	}
}

// kept gives every kind its Residue. It is embedded without a JSON name, so it is never part of the object's own JSON.
//
// +kubebuilder:object:generate=false
type kept struct {
	residue Residue
}

// Residue returns the object's unknown fields.
func (k *kept) Residue() *Residue { return &k.residue }

// DeepCopyInto is what the generated copies of the kinds call.
func (k *kept) DeepCopyInto(out *kept) { k.residue.DeepCopyInto(&out.residue) }
