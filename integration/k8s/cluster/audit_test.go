package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReadAudit(t *testing.T) {
	all, err := readAudit(strings.NewReader(`{"stage":"ResponseComplete","verb":"patch","requestURI":"/api/v1/namespaces/a/pods/b/status","requestReceivedTimestamp":"2026-01-02T03:04:05Z","responseStatus":{"code":200},"user":{"username":"system:serviceaccount:kube-system:calico-typha","extra":{"authentication.kubernetes.io/pod-name":["t-1"]}},"objectRef":{"resource":"pods","subresource":"status"}}
{"stage":"ResponseComplete","verb":"get","user":{"username":"system:node:worker-1"},"objectRef":{"resource":"pods"}}
{"stage":"ResponseStarted","verb":"watch","requestURI":"/api/v1/pods?fieldSelector=spec.nodeName%21%3D&watch=true","responseStatus":{"code":200},"user":{"username":"system:serviceaccount:kube-system:calico-typha"},"objectRef":{"resource":"pods"}}
{"stage":"ResponseComplete","verb":"watch","responseStatus":{"code":200},"user":{"username":"system:serviceaccount:kube-system:calico-typha"},"objectRef":{"resource":"pods"}}
{"stage":"ResponseComplete","verb":"watch","responseStatus":{"code":403},"user":{"username":"system:serviceaccount:kube-system:calico-typha"},"objectRef":{"resource":"nodes"}}
{"stage":"Respon`))
	require.NoError(t, err)
	require.Len(t, all, 3)
	assert.Equal(t, Request{
		Account: "typha", Pod: "t-1", Verb: "patch", What: "pods/status", Path: "/api/v1/namespaces/a/pods/b/status", Query: map[string][]string{},
		Code: 200, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}, all[0])
	assert.Equal(t, "/api/v1/pods  spec.nodeName!=", all[1].Selection())
	assert.Equal(t, 403, all[2].Code)
	_, err = readAudit(strings.NewReader("oh\n"))
	assert.ErrorContains(t, err, "audit log")
}
