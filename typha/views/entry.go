package views

import (
	"slices"
	"sync"

	"github.com/muslin-net/muslin/api/view"
)

// Entry is an item at one version. It is immutable, and shared by all views that hold the item.
type Entry struct {
	Key     view.Key
	Version view.Version

	content any      // a view.Item or a Maker; nil of an entry that says only which key goes
	frame   *frame   // nil of what one node alone is ever sent, which is by far the most
	history *history // of IP sets only
}

// Maker makes an item of one node's, the same at each call. Where items are many, and seldom asked for, it takes less to keep
// what they are made of.
type Maker interface{ Make() view.Item }

// frame is an entry's bytes on the wire.
type frame struct {
	once  sync.Once // guards bytes
	bytes []byte
}

// NewEntry makes an entry and computes the item's version.
func NewEntry(it view.Item) *Entry { return newEntry(it.Key(), view.VersionOf(it), it) }

// NewMadeEntry is NewEntry of an item that is not kept.
func NewMadeEntry(m Maker) *Entry {
	it := m.Make()
	return newEntry(it.Key(), view.VersionOf(it), m)
}

// Dropped is the entry of a key that goes.
func Dropped(k view.Key) *Entry { return &Entry{Key: k} }

// Item is the entry's item; nil if its key goes.
func (e *Entry) Item() view.Item {
	if m, ok := e.content.(Maker); ok {
		return m.Make()
	}
	it, _ := e.content.(view.Item)
	return it
}

// Maker is what makes the entry's item; nil of an item that is kept.
func (e *Entry) Maker() Maker {
	m, _ := e.content.(Maker)
	return m
}

// Drops tells whether the entry's key goes.
func (e *Entry) Drops() bool { return e.content == nil }

func newEntry(k view.Key, v view.Version, content any) *Entry {
	e := &Entry{Key: k, Version: v, content: content}
	if _, made := content.(Maker); !made && k.Kind != view.KindWorkloadEndpoint && k.Kind != view.KindHostEndpoint {
		e.frame = &frame{}
	}
	return e
}

// Frame returns the entry's bytes on the wire. They are encoded at the first call and kept, so that all clients share
// them; only endpoints and what is made, which one node alone is ever sent, are encoded anew at each call and not kept.
// Callers must not change the bytes, and must all pass the same encoding.
func (e *Entry) Frame(encode func(*Entry) []byte) []byte {
	if e.frame == nil {
		return encode(e)
	}
	e.frame.once.Do(func() { e.frame.bytes = encode(e) })
	return e.frame.bytes
}

// history tells how an IP set became what it is, so that a client some versions behind can be sent a delta.
type history struct {
	steps []step // oldest first, at most maxSteps; the last one leads to the entry's version

	mu     sync.Mutex
	deltas map[view.Version]*Entry // by From; nil values mark those that are not worth it
}

// step is the difference between two consecutive versions of a set.
type step struct {
	from           view.Version
	added, removed []view.Member
}

// maxSteps bounds how many versions a client may be behind and still get a delta. Clients that keep up are one behind,
// those under flow control a few.
const maxSteps = 16

// NewSet makes the entry of an IP set. prev is the set's entry before, or nil if the set is new; added and removed are
// the difference to it. The version must be the set's own (it is kept up by difference, see view.Version.AddMember).
func NewSet(set view.IPSet, version view.Version, prev *Entry, added, removed []view.Member) *Entry {
	e := newEntry(set.Key(), version, set)
	e.history = &history{}
	if prev == nil || prev.history == nil {
		return e
	}
	old := prev.history.steps
	if len(old) == maxSteps {
		old = old[1:]
	}
	e.history.steps = append(slices.Clip(slices.Clone(old)), step{from: prev.Version, added: added, removed: removed})
	return e
}

// since returns what to send to a client that has the item at version have (the zero value if it does not): the entry
// itself, or for a set an entry with an IPSetDelta if one can be made and is smaller.
func (e *Entry) since(have view.Version) *Entry {
	if e.history == nil || have == (view.Version{}) {
		return e
	}
	h := e.history
	h.mu.Lock()
	defer h.mu.Unlock()
	d, known := h.deltas[have]
	if !known {
		d = e.deltaFrom(have)
		if h.deltas == nil {
			h.deltas = map[view.Version]*Entry{}
		}
		if len(h.deltas) < maxSteps { // foreign versions (a resume from long ago) are not remembered without bound
			h.deltas[have] = d
		}
	}
	if d == nil {
		return e
	}
	return d
}

func (e *Entry) deltaFrom(have view.Version) *Entry {
	// The last occurrence: a set may have come back to a version it had before.
	first := -1
	for i, s := range e.history.steps {
		if s.from == have {
			first = i
		}
	}
	if first < 0 {
		return nil
	}
	net := map[view.Member]int{}
	for _, s := range e.history.steps[first:] {
		for _, m := range s.added {
			net[m]++
		}
		for _, m := range s.removed {
			net[m]--
		}
	}
	d := view.IPSetDelta{ID: e.Key.ID, From: have, To: e.Version}
	for m, n := range net {
		switch {
		case n > 0:
			d.Added = append(d.Added, m)
		case n < 0:
			d.Removed = append(d.Removed, m)
		}
	}
	if len(d.Added)+len(d.Removed) >= len(e.Item().(view.IPSet).Members) {
		return nil
	}
	slices.SortFunc(d.Added, CompareMembers)
	slices.SortFunc(d.Removed, CompareMembers)
	return newEntry(e.Key, e.Version, d)
}

// CompareMembers is the order of the members of an IP set: by prefix (family, address, length), protocol and port.
func CompareMembers(a, b view.Member) int {
	if c := a.Prefix.Addr().Compare(b.Prefix.Addr()); c != 0 {
		return c
	}
	if c := a.Prefix.Bits() - b.Prefix.Bits(); c != 0 {
		return c
	}
	if c := int(a.Protocol) - int(b.Protocol); c != 0 {
		return c
	}
	return int(a.Port) - int(b.Port)
}
