package mirror

import (
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/muslin-net/muslin/api"
)

// same compares specs; nothing and an empty list are the same.
func same(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

// defaulted are copies of objects as the datastore would keep them.
func defaulted[T any, O interface {
	*T
	api.Object
}](all map[string]*T) (out []O) {
	for _, o := range all {
		c := O(o).DeepCopyObject().(O)
		c.Default()
		out = append(out, c)
	}
	return out
}
