package bench

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCountRequests(t *testing.T) {
	by, what, err := countRequests(strings.NewReader(`{"stage":"ResponseComplete","verb":"patch","user":{"username":"system:serviceaccount:kube-system:calico-typha"},"objectRef":{"resource":"pods","subresource":"status"}}
{"stage":"ResponseComplete","verb":"get","user":{"username":"system:node:worker-1"},"objectRef":{"resource":"pods"}}
{"stage":"ResponseStarted","verb":"watch","user":{"username":"system:serviceaccount:kube-system:calico-typha"},"objectRef":{"resource":"pods"}}
{"stage":"ResponseComplete","verb":"watch","user":{"username":"system:serviceaccount:kube-system:calico-typha"},"objectRef":{"resource":"pods"}}
{"stage":"ResponseComplete","verb":"update","user":{"username":"system:serviceaccount:kube-system:calico-kube-controllers"},"objectRef":{"resource":"leases"}}
{"stage":"Respon`))
	require.NoError(t, err)
	assert.Equal(t, map[string]int{"typha": 2, "kube-controllers": 1}, by)
	assert.Equal(t, map[string]int{"typha patch pods/status": 1, "typha watch pods": 1, "kube-controllers update leases": 1}, what)
	_, _, err = countRequests(strings.NewReader("oh\n"))
	assert.ErrorContains(t, err, "audit log")
}

func TestQuantile(t *testing.T) {
	assert.InDelta(t, 3, quantile([]float64{5, 1, 3, 2, 4}, 0.5), 0)
	assert.InDelta(t, 5, quantile([]float64{5, 1, 3, 2, 4}, 1), 0)
}
