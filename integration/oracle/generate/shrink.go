package generate

import (
	"reflect"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
)

// Shrink takes out of a world whatever it can be without: objects, then policies' rules and fields, for as long as fails
// holds of what is left. The world that it returns is valid if the one it is given is.
func Shrink(w oracle.World, fails func(oracle.World) bool) oracle.World {
	for again := true; again; {
		again = false
		try := func(smaller oracle.World) bool {
			if !valid(smaller) || !fails(smaller) {
				return false
			}
			w, again = smaller, true
			return true
		}
		for i := range slices.Backward(w.Objects) {
			smaller := w
			smaller.Objects = without(w.Objects, i)
			try(smaller)
		}
		for i := range slices.Backward(w.Kubernetes) {
			smaller := w
			smaller.Kubernetes = without(w.Kubernetes, i)
			try(smaller)
		}
		for i := range slices.Backward(w.Services) {
			smaller := w
			smaller.Services = without(w.Services, i)
			try(smaller)
		}
		for i, o := range w.Objects {
			switch o.(type) {
			case *api.WorkloadEndpoint, *api.Profile: // what is local, and what is known, is the world's own matter
				continue
			}
			for n := 0; ; n++ {
				c := o.DeepCopyObject().(api.Object)
				steps := n
				if !simplify(reflect.ValueOf(c).Elem().FieldByName("Spec"), &steps) {
					break
				}
				smaller := w
				smaller.Objects = slices.Clone(w.Objects)
				smaller.Objects[i] = c
				if try(smaller) {
					o = c
					n--
				}
			}
		}
		for i := range w.Kubernetes {
			for n := 0; ; n++ {
				c := w.Kubernetes[i]
				c.Spec = *c.Spec.DeepCopy()
				steps := n
				if !simplify(reflect.ValueOf(&c.Spec).Elem(), &steps) {
					break
				}
				smaller := w
				smaller.Kubernetes = slices.Clone(w.Kubernetes)
				smaller.Kubernetes[i] = c
				if try(smaller) {
					n--
				}
			}
		}
	}
	return w
}

func without[T any](all []T, i int) []T { return slices.Delete(slices.Clone(all), i, i+1) }

func valid(w oracle.World) bool {
	return !slices.ContainsFunc(w.Objects, func(o api.Object) bool {
		switch o.(type) {
		case *api.WorkloadEndpoint:
			return false
		}
		return o.Validate() != nil
	})
}

// simplify takes the n-th thing out of a value: clears a field, or removes an item of a list. It returns false if there are
// not so many.
func simplify(v reflect.Value, n *int) bool {
	switch v.Kind() {
	case reflect.Pointer:
		return !v.IsNil() && simplify(v.Elem(), n)
	case reflect.Struct:
		for _, f := range v.Fields() {
			if !f.CanSet() || f.IsZero() {
				continue
			}
			if *n--; *n < 0 {
				f.SetZero()
				return true
			}
			if simplify(f, n) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if *n--; *n < 0 {
				v.Set(reflect.AppendSlice(v.Slice(0, i), v.Slice(i+1, v.Len())))
				return true
			}
			if simplify(v.Index(i), n) {
				return true
			}
		}
	}
	return false
}
