package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

// respond answers with JSON.
func respond(w http.ResponseWriter, code int, parts ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	for _, p := range parts {
		_ = json.NewEncoder(w).Encode(p)
	}
}

func service(name, revision string) map[string]any {
	return map[string]any{
		"kind": "Service", "apiVersion": "v1",
		"metadata": map[string]any{"namespace": "a", "name": name, "resourceVersion": revision}, "spec": map[string]any{"type": "ClusterIP"},
	}
}

func services(revision, more string, items ...map[string]any) map[string]any {
	return map[string]any{
		"kind": "ServiceList", "apiVersion": "v1",
		"metadata": map[string]any{"resourceVersion": revision, "continue": more}, "items": items,
	}
}

var gone = metav1.Status{
	TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
	Reason: metav1.StatusReasonExpired, Code: http.StatusGone, Message: "too old",
}

// TestFollow goes through a listing that ends in its second page, a server that forgets, and deletions in between. What the
// real server does is tested in integration/k8s.
func TestFollow(t *testing.T) {
	type step struct {
		when  string // part of the query that is expected
		reply func(w http.ResponseWriter)
	}
	event := func(kind string, o any) map[string]any { return map[string]any{"type": kind, "object": o} }
	steps := []step{
		{"limit=500", func(w http.ResponseWriter) { respond(w, 200, services("10", "page2", service("one", "5"))) }},
		{"continue=page2", func(w http.ResponseWriter) { respond(w, http.StatusGone, gone) }},
		{"limit=500", func(w http.ResponseWriter) { respond(w, 200, services("20", "page2", service("one", "5"))) }},
		{"continue=page2", func(w http.ResponseWriter) { respond(w, 200, services("20", "", service("two", "12"))) }},
		{"resourceVersion=20", func(w http.ResponseWriter) {
			respond(w, 200, event("ADDED", service("three", "21")), event("DELETED", service("one", "22")), event("BOOKMARK", service("", "30")))
		}},
		{"resourceVersion=30", func(w http.ResponseWriter) { respond(w, http.StatusInternalServerError) }},
		{"resourceVersion=30", func(w http.ResponseWriter) {
			respond(w, 200, event("MODIFIED", service("two", "31")), event("ERROR", gone))
		}},
		{"limit=500", func(w http.ResponseWriter) {
			respond(w, 200, services("40", "", service("two", "31"), service("four", "39")))
		}},
		{"resourceVersion=40", nil},
	}
	var requests atomic.Int32
	wrong := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := int(requests.Add(1)) - 1
		if at >= len(steps) || !strings.Contains(r.URL.RawQuery, steps[at].when) || r.URL.Path != "/api/v1/services" {
			select {
			case wrong <- fmt.Sprintf("request %d is %s", at, r.URL):
			default:
			}
			return
		}
		if reply := steps[at].reply; reply != nil {
			reply(w)
			return
		}
		<-r.Context().Done()
	}))
	defer server.Close()
	s, err := NewServices(API{Config: &rest.Config{Host: server.URL}, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	enough := errors.New("enough")
	known, said := map[string]bool{}, []string{}
	var seen, reached uint64
	syncs := 0
	err = s.Services(ctx, func(told intake.Told[compute.Service]) error {
		for _, name := range slices.Sorted(maps.Keys(told.Changes)) {
			if told.Changes[name] == nil {
				require.True(t, known[name], "%s is gone, and never was", name)
				delete(known, name)
				name = "-" + name
			} else {
				known[name] = true
			}
			said = append(said, name)
		}
		seen, reached = max(seen, told.Seen), max(reached, told.Reached)
		if told.InSync {
			syncs++
		}
		if reached == 40 {
			return enough
		}
		return nil
	})
	require.ErrorIs(t, err, enough)
	select {
	case w := <-wrong:
		t.Fatal(w)
	default:
	}
	require.Equal(t, map[string]bool{"a/two": true, "a/four": true}, known)
	require.Equal(t, []string{"a/one", "a/two"}, said[:2], "half a listing is not told")
	require.Equal(t, []string{"a/four", "-a/three"}, said[len(said)-2:], "of the second listing only what is different")
	require.Equal(t, uint64(39), seen)
	require.Equal(t, 1, syncs)
}

// TestSlim cuts objects down to what counts.
func TestSlim(t *testing.T) {
	name, s := slimService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd96::1"}, ExternalIPs: []string{"::ffff:172.20.0.1", "bad"},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{
			Ingress: []corev1.LoadBalancerIngress{{Hostname: "lb.example.org"}, {IP: "172.21.0.1"}},
		}},
	})
	addr := netip.MustParseAddr
	require.Equal(t, "a/web", name)
	require.Equal(t, &compute.Service{
		Type: compute.LoadBalancer, External: compute.TrafficLocal, ClusterIPs: []netip.Addr{addr("10.96.0.1"), addr("fd96::1")},
		ExternalIPs: []netip.Addr{addr("172.20.0.1")}, LoadBalancerIPs: []netip.Addr{addr("172.21.0.1")},
	}, s)
	_, s = slimService(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
	require.Len(t, s.ClusterIPs, 1, "an object from before there were two families")
	_, s = slimService(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}})
	require.Empty(t, s.ClusterIPs)

	name, slice := slimSlice(&discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"192.168.0.1"}, NodeName: new("n1")},
			{Addresses: []string{"192.168.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true)}},
			{Addresses: []string{"host.example.org"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}},
		},
		Ports: []discoveryv1.EndpointPort{{Port: new(int32(80))}, {Port: new(int32(53)), Protocol: new(corev1.ProtocolUDP)}, {Name: new("all")}},
	})
	require.Equal(t, "a/web-1", name)
	require.Equal(t, &compute.EndpointSlice{
		Service: "a/web",
		Endpoints: []compute.Endpoint{
			{Addresses: []netip.Addr{addr("192.168.0.1")}, Node: "n1", Ready: true}, {Addresses: []netip.Addr{addr("192.168.0.2")}},
		},
		Ports: []compute.ServicePort{{Protocol: view.Protocol(6), Port: 80}, {Protocol: view.Protocol(17), Port: 53}},
	}, slice)
	_, slice = slimSlice(&discoveryv1.EndpointSlice{})
	require.Empty(t, slice.Service)
}

// TestConfig looks for the API where there is none.
func TestConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	c, err := Config("")
	require.NoError(t, err)
	require.Nil(t, c, "this is no pod")
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	c, err = Config("")
	require.NoError(t, err)
	require.Nil(t, c, "a pod without a service account")
	_, err = Config("/nonexistent")
	require.ErrorContains(t, err, "setting kubeconfig")
}
