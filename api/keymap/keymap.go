// Package keymap has a map by the keys of objects for those who keep one entry for each object of a cluster: kind and namespace are
// kept once for all names in them, which more than halves it.
package keymap

import (
	"iter"

	"github.com/muslin-net/muslin/api"
)

// Map is a map by key. The zero value is empty and can be written. It is not safe for concurrent use.
type Map[V any] struct {
	scopes map[scope]map[string]V // none of them empty
	size   int
}

// scope is what the keys of many objects have in common.
type scope struct{ kind, namespace string }

// Len is how many entries there are.
func (m *Map[V]) Len() int { return m.size }

// Get returns what is there for a key, and whether anything is.
func (m *Map[V]) Get(k api.Key) (V, bool) {
	v, ok := m.scopes[scope{k.Kind, k.Namespace}][k.Name]
	return v, ok
}

// Set sets what is there for a key.
func (m *Map[V]) Set(k api.Key, v V) {
	s := scope{k.Kind, k.Namespace}
	names := m.scopes[s]
	if names == nil {
		if m.scopes == nil {
			m.scopes = map[scope]map[string]V{}
		}
		names = map[string]V{}
		m.scopes[s] = names
	}
	before := len(names)
	names[k.Name] = v
	m.size += len(names) - before
}

// Delete removes a key, if it is there.
func (m *Map[V]) Delete(k api.Key) {
	s := scope{k.Kind, k.Namespace}
	names := m.scopes[s]
	before := len(names)
	delete(names, k.Name)
	m.size += len(names) - before
	if len(names) == 0 {
		delete(m.scopes, s)
	}
}

// All yields all entries in no order.
func (m *Map[V]) All() iter.Seq2[api.Key, V] {
	return func(yield func(api.Key, V) bool) {
		for s, names := range m.scopes {
			for name, v := range names {
				if !yield(api.Key{Kind: s.kind, Namespace: s.namespace, Name: name}, v) {
					return
				}
			}
		}
	}
}
