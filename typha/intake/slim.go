package intake

import (
	"hash/maphash"
	"maps"
	"reflect"
	"unique"

	"github.com/muslin-net/muslin/api"
)

// slimmer makes objects take less memory. It is the loop's alone.
type slimmer struct {
	seed   maphash.Seed
	labels map[uint64]map[string]string // of endpoints and users of addresses, by their hash
}

// mostLabels is how many sets of labels are remembered before all are forgotten: they may be of what is gone.
const mostLabels = 1 << 16

func newSlimmer() *slimmer {
	return &slimmer{seed: maphash.MakeSeed(), labels: map[uint64]map[string]string{}}
}

// slim returns an object without what nobody here ever reads: who set which field, and fields that are not known. (What is
// written back is read from the datastore first.) Endpoints are by far the most numerous, and say the same few words over
// and over: they share them.
func (s *slimmer) slim(o api.Object) api.Object {
	if o == nil {
		return nil
	}
	switch o := o.(type) {
	case *api.WorkloadEndpoint:
		return s.endpoint(o)
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

func (s *slimmer) endpoint(o *api.WorkloadEndpoint) *api.WorkloadEndpoint {
	c := bare(o).(*api.WorkloadEndpoint)
	for _, word := range []*string{
		&c.Kind, &c.APIVersion, &c.Namespace, &c.Spec.Orchestrator, &c.Spec.Node, &c.Spec.Endpoint,
		&c.Spec.ServiceAccountName, &c.Spec.MAC, &c.Spec.IPv4Gateway, &c.Spec.IPv6Gateway,
	} {
		*word = shared(*word)
	}
	c.Labels = s.sharedLabels(o.Labels)
	c.Spec.Profiles = make([]string, len(o.Spec.Profiles))
	for i, p := range o.Spec.Profiles {
		c.Spec.Profiles[i] = shared(p)
	}
	return c
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
	var hash uint64
	for k, v := range labels {
		hash += maphash.Comparable(s.seed, [2]string{k, v}) // in no order
	}
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

// shared returns the one copy of a string.
func shared(s string) string { return unique.Make(s).Value() }

// same tells whether two states of an object differ in nothing but bookkeeping.
func same(a, b api.Object) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
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
