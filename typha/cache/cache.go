// Package cache holds the present state of the datastore for those who want to look something up. One goroutine writes, any number
// read without locks: a Snapshot is immutable, and stays what it is for as long as someone holds it.
//
// The package refuses to decide anything; what follows from the state is computed in package compute.
package cache

import (
	"iter"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// Object is an api.Object or, of endpoints and pods, an *Endpoint.
type Object any

// Change is one object that appeared or changed, or that went.
type Change struct {
	Key    api.Key
	Object Object // nil if it went; shared by all readers, and never to be changed
}

// Cache is the newest Snapshot.
type Cache struct {
	current atomic.Pointer[Snapshot]
}

// New returns an empty cache that is not in sync.
func New() *Cache {
	c := &Cache{}
	c.current.Store(&Snapshot{})
	return c
}

// Apply makes the next snapshot of the present one. It is called by one goroutine. Readers see all of it or nothing.
func (c *Cache) Apply(changes []Change, checkpoint view.Checkpoint, inSync bool) {
	next := *c.current.Load()
	next.version++
	next.kinds = maps.Clone(next.kinds)
	if next.kinds == nil {
		next.kinds = map[string]Map[api.Key, Object]{}
	}
	if checkpoint != nil {
		next.checkpoint = checkpoint
	}
	next.inSync = next.inSync || inSync
	for _, ch := range changes {
		next.apply(ch)
	}
	c.current.Store(&next)
}

// Snapshot returns the newest state.
func (c *Cache) Snapshot() *Snapshot { return c.current.Load() }

// Snapshot is the state at one moment. Its objects are shared: who wants to change one copies it first. Their
// resourceVersion may be older than the datastore's, since changes that matter to nobody are not taken in; who writes
// reads the datastore first.
type Snapshot struct {
	version    uint64
	checkpoint view.Checkpoint
	inSync     bool
	kinds      map[string]Map[api.Key, Object]
}

func (s *Snapshot) apply(ch Change) {
	if ch.Object == nil {
		s.kinds[ch.Key.Kind] = s.kinds[ch.Key.Kind].Without(ch.Key)
		return
	}
	s.kinds[ch.Key.Kind] = s.kinds[ch.Key.Kind].With(ch.Key, ch.Object)
}

// Get returns an object of now, or nil; ok is false before all that was there at the start has been read. With List it is what the
// allocator of addresses knows without asking.
func (c *Cache) Get(key api.Key) (o api.Object, ok bool) {
	s := c.Snapshot()
	o, _ = s.Get(key).(api.Object)
	return o, s.InSync()
}

// List returns all objects of a kind as they are now, in no order, like Get.
func (c *Cache) List(kind string) (all []api.Object, ok bool) {
	s := c.Snapshot()
	return slices.Collect(All[api.Object](s, kind)), s.InSync()
}

// Version counts the snapshots; a later one has a higher version.
func (s *Snapshot) Version() uint64 { return s.version }

// Checkpoint is the point in the datastore's history that the snapshot reflects, and InSync whether all that was there
// at the start has been read. The map must not be changed.
func (s *Snapshot) Checkpoint() view.Checkpoint { return s.checkpoint }

// InSync tells whether all that was there at the start has been read.
func (s *Snapshot) InSync() bool { return s.inSync }

// Get returns an object, or nil.
func (s *Snapshot) Get(key api.Key) Object {
	o, _ := s.kinds[key.Kind].Get(key)
	return o
}

// Len is how many objects of a kind there are.
func (s *Snapshot) Len(kind string) int { return s.kinds[kind].Len() }

// All yields the objects of a kind in no order. T is the kind's Go type.
func All[T Object](s *Snapshot, kind string) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, o := range s.kinds[kind].All() {
			if t, ok := o.(T); ok && !yield(t) {
				return
			}
		}
	}
}

// Node returns a node, or nil.
func (s *Snapshot) Node(name string) *api.Node {
	n, _ := s.Get(api.Key{Kind: "Node", Name: name}).(*api.Node)
	return n
}

// Nodes yields all nodes in no order.
func (s *Snapshot) Nodes() iter.Seq[*api.Node] { return All[*api.Node](s, "Node") }

// Pools yields all pools in no order.
func (s *Snapshot) Pools() iter.Seq[*api.IPPool] { return All[*api.IPPool](s, "IPPool") }
