package views

import (
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// entries are the entries of one scope in the order of their keys. There are millions of references from scopes to
// entries in a large cluster; a list takes a sixth of what a map would.
type entries struct {
	list []*Entry
}

func (es *entries) find(k view.Key) (int, bool) {
	return slices.BinarySearchFunc(es.list, k, func(e *Entry, k view.Key) int { return CompareKeys(e.Key, k) })
}

func (es *entries) get(k view.Key) *Entry {
	if i, found := es.find(k); found {
		return es.list[i]
	}
	return nil
}

// apply makes few changes one by one, and merges many in one go.
func (es *entries) apply(d *Delta) {
	if len(d.Put)+len(d.Drop) > 16+len(es.list)/32 {
		es.merge(d)
		return
	}
	for _, k := range d.Drop {
		if i, found := es.find(k); found {
			es.list = slices.Delete(es.list, i, i+1)
		}
	}
	for _, e := range d.Put {
		i, found := es.find(e.Key)
		if found {
			es.list[i] = e
		} else {
			es.list = slices.Insert(es.list, i, e)
		}
	}
}

func (es *entries) merge(d *Delta) {
	put, drop := slices.Clone(d.Put), slices.Clone(d.Drop)
	slices.SortFunc(put, func(a, b *Entry) int { return CompareKeys(a.Key, b.Key) })
	slices.SortFunc(drop, CompareKeys)
	fresh := 0
	for _, e := range put {
		if _, found := es.find(e.Key); !found {
			fresh++
		}
	}
	out := make([]*Entry, 0, len(es.list)+fresh)
	for _, e := range es.list {
		for len(put) > 0 && CompareKeys(put[0].Key, e.Key) < 0 {
			out, put = append(out, put[0]), put[1:]
		}
		for len(drop) > 0 && CompareKeys(drop[0], e.Key) < 0 {
			drop = drop[1:]
		}
		switch {
		case len(put) > 0 && put[0].Key == e.Key:
			out, put = append(out, put[0]), put[1:]
		case len(drop) > 0 && drop[0] == e.Key:
		default:
			out = append(out, e)
		}
	}
	es.list = append(out, put...)
}
