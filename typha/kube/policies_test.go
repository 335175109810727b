package kube

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/typha/intake"
)

// server is an API server as far as policies see one.
type server struct {
	mu        sync.Mutex        // guards all below
	versions  []string          // in which it serves all resources
	forbidden bool              // to read policies
	policies  map[string]string // specs of ClusterNetworkPolicies
	watches   []*io.PipeWriter
}

// change changes it. Watches end then.
func (s *server) change(how func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	how()
	for _, w := range s.watches {
		_ = w.Close()
	}
	s.watches = nil
}

var resources = []string{"clusternetworkpolicies", "adminnetworkpolicies", "baselineadminnetworkpolicies"}

// RoundTrip answers a request.
func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	code, answer := s.answer(r)
	text, err := json.Marshal(answer)
	body := io.NopCloser(strings.NewReader(string(text)))
	if r.URL.Query().Get("watch") != "" && code == http.StatusOK {
		reader, writer := io.Pipe()
		s.watches = append(s.watches, writer)
		context.AfterFunc(r.Context(), func() { _ = writer.CloseWithError(r.Context().Err()) })
		body = reader
	}
	return &http.Response{StatusCode: code, Body: body, Header: http.Header{"Content-Type": {"application/json"}}, Request: r}, err
}

func (s *server) answer(r *http.Request) (code int, answer any) {
	const group = "/apis/policy.networking.k8s.io"
	path := strings.Split(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, group), "/"), "/")
	refusal := func(code int, reason metav1.StatusReason) (int, any) {
		return code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: reason, Code: int32(code)}
	}
	serves := len(path) > 0 && slices.Contains(s.versions, path[0])
	switch {
	case r.URL.Path == "/api/v1/services":
		return http.StatusOK, services("40", "")
	case len(path) == 2 && s.forbidden:
		return refusal(http.StatusForbidden, metav1.StatusReasonForbidden)
	case r.URL.Path == group && len(s.versions) > 0:
		all := metav1.APIGroup{Name: "policy.networking.k8s.io"}
		for _, v := range s.versions {
			all.Versions = append(all.Versions, metav1.GroupVersionForDiscovery{Version: v})
		}
		return http.StatusOK, all
	case len(path) == 1 && serves:
		var all metav1.APIResourceList
		for _, name := range resources {
			all.APIResources = append(all.APIResources, metav1.APIResource{Name: name})
		}
		return http.StatusOK, all
	case len(path) == 2 && serves:
		kind := map[string]string{resources[0]: "ClusterNetworkPolicyList", resources[1]: "AdminNetworkPolicyList", resources[2]: "BaselineAdminNetworkPolicyList"}[path[1]]
		items := []any{}
		for _, name := range slices.Sorted(maps.Keys(s.policies)) {
			var spec any
			if err := yaml.Unmarshal([]byte(s.policies[name]), &spec); err != nil {
				panic(err)
			}
			if path[1] == resources[0] {
				items = append(items, map[string]any{"metadata": map[string]any{"name": name, "resourceVersion": "41"}, "spec": spec})
			}
		}
		return http.StatusOK, map[string]any{"kind": kind, "apiVersion": "policy.networking.k8s.io/" + path[0], "metadata": map[string]any{"resourceVersion": "50"}, "items": items}
	}
	return refusal(http.StatusNotFound, metav1.StatusReasonNotFound)
}

// told is what was told of a kind.
type told struct {
	mu       sync.Mutex
	policies map[string]intake.ClusterPolicy
	synced   bool
	reached  uint64
}

func (o *told) take(t intake.Told[intake.ClusterPolicy]) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, p := range t.Changes {
		if delete(o.policies, name); p != nil {
			o.policies[name] = *p
		}
	}
	o.synced, o.reached = o.synced || t.InSync, max(o.reached, t.Reached)
	return nil
}

func (o *told) names() (names []string, synced bool, reached uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.policies)), o.synced, o.reached
}

// TestPolicies follows policies that come and go, in clusters that know them and in such that do not.
func TestPolicies(t *testing.T) {
	const closed = "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"
	for _, c := range []struct {
		name  string
		start *server
		steps func(t *testing.T, s *server, o *told)
	}{
		{"a cluster that does not know them, and comes to", &server{}, func(t *testing.T, s *server, o *told) {
			synctest.Wait()
			names, synced, reached := o.names()
			require.True(t, synced, "at once")
			require.Empty(t, names)
			require.Equal(t, uint64(40), reached, "as far as the server is")
			s.change(func() {
				s.versions, s.policies = []string{"v1alpha1", "v1alpha2"}, map[string]string{"a": closed, "b": "{tier: Admin, subject: {}}"}
			})
			time.Sleep(11 * time.Second) // of the bubble
			synctest.Wait()
			names, _, reached = o.names()
			require.Equal(t, []string{"a", "b"}, names)
			require.Equal(t, uint64(50), reached)
			require.Equal(t, "kube-admin", o.policies["a"].Policy.Spec.Tier)
			require.NoError(t, o.policies["a"].Wrong)
			require.Nil(t, o.policies["b"].Policy)
			require.ErrorContains(t, o.policies["b"].Wrong, "spec.subject")
		}},
		{
			"a cluster that forgets them for a moment, and then for good",
			&server{versions: []string{"v1alpha2", "v1alpha1"}, policies: map[string]string{"a": closed}},
			func(t *testing.T, s *server, o *told) {
				synctest.Wait()
				names, synced, _ := o.names()
				require.True(t, synced)
				require.Equal(t, []string{"a"}, names)
				s.change(func() { s.versions = nil })
				time.Sleep(4 * time.Second)
				s.change(func() { s.versions = []string{"v1alpha2", "v1alpha1"} })
				time.Sleep(20 * time.Second)
				synctest.Wait()
				names, _, _ = o.names()
				require.Equal(t, []string{"a"}, names)
				s.change(func() { s.versions = nil })
				time.Sleep(3 * time.Second)
				synctest.Wait()
				names, _, _ = o.names()
				require.Equal(t, []string{"a"}, names, "an API server that has just started does not know them either")
				time.Sleep(15 * time.Second)
				synctest.Wait()
				names, _, _ = o.names()
				require.Empty(t, names)
			},
		},
		{"not allowed to read what is not there", &server{forbidden: true}, func(t *testing.T, _ *server, o *told) {
			time.Sleep(time.Second)
			_, synced, _ := o.names()
			require.False(t, synced, "one that has just started forbids everything")
			time.Sleep(20 * time.Second)
			_, synced, _ = o.names()
			require.True(t, synced)
		}},
		{"not allowed to read what is there", &server{forbidden: true, versions: []string{"v1alpha1", "v1alpha2"}, policies: map[string]string{"a": closed}}, func(t *testing.T, s *server, o *told) {
			time.Sleep(time.Minute)
			_, synced, _ := o.names()
			require.False(t, synced, "policies must not be ignored")
			s.change(func() { s.forbidden = false })
			time.Sleep(20 * time.Second)
			names, synced, _ := o.names()
			require.True(t, synced)
			require.Equal(t, []string{"a"}, names)
		}},
		{"in a version of which nothing is known", &server{versions: []string{"v2"}}, func(t *testing.T, _ *server, o *told) {
			time.Sleep(time.Minute)
			_, synced, _ := o.names()
			require.False(t, synced)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, err := NewPolicies(API{Config: &rest.Config{Host: "http://kubernetes", Transport: c.start}, Log: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				o, ended := &told{policies: map[string]intake.ClusterPolicy{}}, make(chan error)
				others := &told{policies: map[string]intake.ClusterPolicy{}}
				kinds := kubernetes.ClusterKinds()
				for i, kind := range kinds {
					take := o.take
					if i > 0 {
						take = others.take
					}
					go func() { ended <- p.Policies(ctx, kind, take) }()
				}
				c.steps(t, c.start, o)
				names, _, _ := others.names()
				require.Empty(t, names)
				cancel()
				for range kinds {
					require.ErrorIs(t, <-ended, context.Canceled)
				}
			})
		})
	}
}
