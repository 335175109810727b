package intake

import (
	"reflect"
	"unique"

	"github.com/muslin-net/muslin/api"
)

// slim returns an object without what nobody here ever reads: who set which field, and fields that are not known. (What is
// written back is read from the datastore first.) Endpoints are by far the most numerous, and say the same few words over
// and over: they share them.
func slim(o api.Object) api.Object {
	if o == nil {
		return nil
	}
	ep, isEndpoint := o.(*api.WorkloadEndpoint)
	if !isEndpoint && len(o.GetManagedFields()) == 0 && o.Residue().IsEmpty() {
		return o
	}
	if isEndpoint {
		return slimEndpoint(ep)
	}
	c := shallow(o)
	c.SetManagedFields(nil)
	c.Residue().Clear()
	return c
}

func slimEndpoint(o *api.WorkloadEndpoint) *api.WorkloadEndpoint {
	c := *o
	c.ManagedFields = nil
	c.Residue().Clear()
	for _, word := range []*string{
		&c.Kind, &c.APIVersion, &c.Namespace, &c.Spec.Orchestrator, &c.Spec.Node, &c.Spec.Endpoint,
		&c.Spec.ServiceAccountName, &c.Spec.MAC, &c.Spec.IPv4Gateway, &c.Spec.IPv6Gateway,
	} {
		*word = shared(*word)
	}
	c.Labels = make(map[string]string, len(o.Labels))
	for k, v := range o.Labels {
		c.Labels[shared(k)] = shared(v)
	}
	c.Spec.Profiles = make([]string, len(o.Spec.Profiles))
	for i, p := range o.Spec.Profiles {
		c.Spec.Profiles[i] = shared(p)
	}
	return &c
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
