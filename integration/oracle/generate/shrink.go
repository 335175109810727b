package generate

import (
	"reflect"
	"slices"

	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

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
		fewer(&w, func(w *oracle.World) *[]oracle.KubernetesPolicy { return &w.Kubernetes }, try)
		fewer(&w, func(w *oracle.World) *[]v1alpha2.ClusterNetworkPolicy { return &w.Cluster }, try)
		fewer(&w, func(w *oracle.World) *[]v1alpha1.AdminNetworkPolicy { return &w.Admin }, try)
		fewer(&w, func(w *oracle.World) *[]v1alpha1.BaselineAdminNetworkPolicy { return &w.Baseline }, try)
		fewer(&w, func(w *oracle.World) *[]oracle.Service { return &w.Services }, try)
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
		simpler(&w, func(w *oracle.World) *[]oracle.KubernetesPolicy { return &w.Kubernetes }, func(k *oracle.KubernetesPolicy) any {
			k.Spec = *k.Spec.DeepCopy()
			return &k.Spec
		}, try)
		simpler(&w, func(w *oracle.World) *[]v1alpha2.ClusterNetworkPolicy { return &w.Cluster }, func(k *v1alpha2.ClusterNetworkPolicy) any {
			k.Spec = *k.Spec.DeepCopy()
			return &k.Spec
		}, try)
		simpler(&w, func(w *oracle.World) *[]v1alpha1.AdminNetworkPolicy { return &w.Admin }, func(k *v1alpha1.AdminNetworkPolicy) any {
			k.Spec = *k.Spec.DeepCopy()
			return &k.Spec
		}, try)
		simpler(&w, func(w *oracle.World) *[]v1alpha1.BaselineAdminNetworkPolicy { return &w.Baseline }, func(k *v1alpha1.BaselineAdminNetworkPolicy) any {
			k.Spec = *k.Spec.DeepCopy()
			return &k.Spec
		}, try)
	}
	return w
}

// fewer takes items out of a list.
func fewer[T any](w *oracle.World, list func(*oracle.World) *[]T, try func(oracle.World) bool) {
	for i := range slices.Backward(*list(w)) {
		smaller := *w
		*list(&smaller) = without(*list(w), i)
		try(smaller)
	}
}

// simpler takes things out of the items of a list. own gives an item a spec that it shares with nobody, and returns it.
func simpler[T any](w *oracle.World, list func(*oracle.World) *[]T, own func(*T) any, try func(oracle.World) bool) {
	for i := range *list(w) {
		for n := 0; ; n++ {
			smaller, items, steps := *w, slices.Clone(*list(w)), n
			if !simplify(reflect.ValueOf(own(&items[i])).Elem(), &steps) {
				break
			}
			*list(&smaller) = items
			if try(smaller) {
				n--
			}
		}
	}
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
