package intake

import (
	"hash/maphash"
	"maps"
	"reflect"
	"strings"
	"unique"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
)

// slimmer makes objects take less memory. It is the loop's alone.
type slimmer struct {
	seed   maphash.Seed
	labels map[uint64]map[string]string // of endpoints and users of addresses, by their hash
	traits map[uint64]*cache.Traits     // likewise
}

// mostLabels is how many sets of labels, or traits, are remembered before all are forgotten: they may be of what is gone.
const mostLabels = 1 << 16

func newSlimmer() *slimmer {
	return &slimmer{seed: maphash.MakeSeed(), labels: map[uint64]map[string]string{}, traits: map[uint64]*cache.Traits{}}
}

// slim returns an object without what nobody here ever reads: who set which field, and fields that are not known. (What is
// written back is read from the datastore first.) Endpoints are by far the most numerous, and say the same few words over
// and over: they share them.
func (s *slimmer) slim(o api.Object) cache.Object {
	if o == nil {
		return nil
	}
	switch o := o.(type) {
	case *api.WorkloadEndpoint:
		e := cache.EndpointOf(o)
		e.Name, e.UID = "", "" // which are asked for of pods alone
		return s.compact(e)
	case *api.IPAMBlock:
		return s.block(o)
	}
	if len(o.GetManagedFields()) == 0 && o.Residue().IsEmpty() {
		return o
	}
	return bare(o)
}

// bare returns an object without who set which field, and fields that are not known.
func bare(o api.Object) api.Object {
	c := shallow(o)
	c.SetManagedFields(nil)
	c.Residue().Clear()
	return c
}

func (s *slimmer) endpoint(o *api.WorkloadEndpoint) *cache.Endpoint {
	return s.compact(cache.EndpointOf(o))
}

// compact has an endpoint share with others what they have in common, and keep the rest in one piece.
func (s *slimmer) compact(e *cache.Endpoint) *cache.Endpoint {
	e.Traits = s.sharedTraits(e.Traits)
	for _, word := range []*string{&e.Node, &e.MAC} {
		*word = shared(*word)
	}
	join(&e.Name, &e.Workload, &e.ContainerID, &e.Interface, &e.UID)
	return e
}

// join copies texts into one. Those that were made in decoding lie between others that are garbage by now, and would keep the
// memory around them from being used for anything else.
func join(texts ...*string) {
	size := 0
	for _, t := range texts {
		size += len(*t)
	}
	var all strings.Builder
	all.Grow(size)
	for _, t := range texts {
		all.WriteString(*t)
	}
	rest := all.String()
	for _, t := range texts {
		*t, rest = rest[:len(*t)], rest[len(*t):]
	}
}

// sharedTraits returns equal traits, which are shared.
func (s *slimmer) sharedTraits(t *cache.Traits) *cache.Traits {
	hash := s.hash(t.Labels) + s.hash(t.Annotations) + maphash.Comparable(s.seed, [3]string{t.Namespace, t.ServiceAccount, t.Inside})
	if known := s.traits[hash]; known != nil && known.Equal(t) {
		return known
	}
	own := *t
	for _, word := range []*string{&own.Namespace, &own.Orchestrator, &own.ServiceAccount, &own.Inside} {
		*word = shared(*word)
	}
	own.Labels = s.sharedLabels(t.Labels)
	own.Profiles = make([]string, len(t.Profiles))
	for i, p := range t.Profiles {
		own.Profiles[i] = shared(p)
	}
	if len(s.traits) >= mostLabels {
		clear(s.traits)
	}
	s.traits[hash] = &own
	return &own
}

// block keeps of what a block says of its addresses on which node and for which purpose of a node's they are used, since nothing
// else is looked up here. That is the same for all pods of a node.
func (s *slimmer) block(o *api.IPAMBlock) *api.IPAMBlock {
	c := bare(o).(*api.IPAMBlock)
	c.Spec.SequenceNumberForAllocation = nil
	c.Spec.Attributes = make([]api.AllocationAttribute, len(o.Spec.Attributes))
	for i, a := range o.Spec.Attributes {
		user := maps.Clone(a.Owner)
		maps.DeleteFunc(user, func(key, _ string) bool { return key != api.OwnerNode && key != api.OwnerType })
		c.Spec.Attributes[i] = api.AllocationAttribute{Owner: s.sharedLabels(user), ReleasedAt: a.ReleasedAt}
	}
	return c
}

// sharedLabels returns equal labels, which are shared: pods that one template made have the same, as a rule.
func (s *slimmer) sharedLabels(labels map[string]string) map[string]string {
	hash := s.hash(labels)
	if known := s.labels[hash]; known != nil && maps.Equal(known, labels) {
		return known
	}
	own := make(map[string]string, len(labels))
	for k, v := range labels {
		own[shared(k)] = shared(v)
	}
	if len(s.labels) >= mostLabels {
		clear(s.labels)
	}
	s.labels[hash] = own
	return own
}

// hash is that of labels, in no order.
func (s *slimmer) hash(labels map[string]string) (hash uint64) {
	for k, v := range labels {
		hash += maphash.Comparable(s.seed, [2]string{k, v})
	}
	return hash
}

// shared returns the one copy of a string.
func shared(s string) string { return unique.Make(s).Value() }

// same tells whether two states of an object differ in nothing but bookkeeping.
func same(was, now cache.Object) bool {
	if a, ok := was.(*cache.Endpoint); ok {
		b, _ := now.(*cache.Endpoint)
		return a.Equal(b)
	}
	a, ok1 := was.(api.Object)
	b, ok2 := now.(api.Object)
	if !ok1 || !ok2 {
		return was == nil && now == nil
	}
	c := shallow(b)
	c.SetResourceVersion(a.GetResourceVersion())
	c.SetGeneration(a.GetGeneration())
	return reflect.DeepEqual(a, c)
}

// shallow copies the outermost structure of an object, so that its metadata can be set. Everything below is shared.
func shallow(o api.Object) api.Object {
	c := reflect.New(reflect.TypeOf(o).Elem())
	c.Elem().Set(reflect.ValueOf(o).Elem())
	return c.Interface().(api.Object)
}
