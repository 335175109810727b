package bench

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
)

func TestCounted(t *testing.T) {
	by, what := counted([]cluster.Request{
		{Account: "typha", Verb: "patch", What: "pods/status"},
		{Account: "typha", Verb: "watch", What: "pods"},
		{Account: "typha", Verb: "watch", What: "pods"},
		{Account: "kube-controllers", Verb: "update", What: "leases"},
	})
	assert.Equal(t, map[string]int{"typha": 3, "kube-controllers": 1}, by)
	assert.Equal(t, map[string]int{"typha patch pods/status": 1, "typha watch pods": 2, "kube-controllers update leases": 1}, what)
}

func TestQuantile(t *testing.T) {
	assert.InDelta(t, 3, quantile([]float64{5, 1, 3, 2, 4}, 0.5), 0)
	assert.InDelta(t, 5, quantile([]float64{5, 1, 3, 2, 4}, 1), 0)
}
