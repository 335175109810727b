package render_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/deploy/render"
)

// roles are the rules of an account, in all its roles.
func roles(t *testing.T, v render.Values) map[string][]rbac.PolicyRule {
	t.Helper()
	files, err := render.Manifests(v)
	require.NoError(t, err)
	out := map[string][]rbac.PolicyRule{}
	for _, f := range files {
		for d := range strings.SplitSeq(string(f.Text), "\n---\n") {
			var o struct {
				Kind     string
				Metadata struct{ Name string }
				Rules    []rbac.PolicyRule
			}
			require.NoError(t, yaml.Unmarshal([]byte(d), &o))
			if strings.HasSuffix(o.Kind, "Role") {
				out[o.Metadata.Name] = append(out[o.Metadata.Name], o.Rules...)
			}
		}
	}
	return out
}

// Two accounts may do something; no right is everything, and each resource has its reason in the docs.
func TestRightsAreFewAndExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/rbac.md")
	require.NoError(t, err)
	etcd := render.Defaults()
	etcd.Datastore.Type = "etcdv3"
	for _, v := range []render.Values{render.Defaults(), etcd} {
		all := roles(t, v)
		require.Len(t, all, 2)
		for _, account := range []string{"calico-typha", "calico-kube-controllers"} {
			require.NotEmpty(t, all[account])
			for _, r := range all[account] {
				require.NotContains(t, r.Verbs, "*")
				require.NotContains(t, r.Verbs, "deletecollection")
				require.NotContains(t, r.APIGroups, "*")
				require.Empty(t, r.NonResourceURLs)
				for _, resource := range r.Resources {
					if resource == "*" {
						require.Equal(t, []string{"projectcalico.org", "crd.projectcalico.org"}, r.APIGroups)
						require.Equal(t, []string{"get", "list", "watch"}, r.Verbs)
						continue
					}
					if resource == "secrets" && len(r.ResourceNames) == 0 {
						require.Equal(t, []string{"create"}, r.Verbs, "no secret is read but by its name")
					}
					name, sub, _ := strings.Cut(resource, "/")
					require.Contains(t, string(page), name, "docs/rbac.md says why %s", resource)
					require.True(t, sub == "" || sub == "status", resource)
				}
				if v.Datastore.Type == "etcdv3" {
					require.NotContains(t, r.APIGroups, "projectcalico.org")
				}
			}
		}
	}
}

// What Kubernetes has of its own is written by these rights alone, and nothing else is ever deleted: a right that no code uses is one
// for who breaks in.
func TestRightsThatCanDoHarmAreCounted(t *testing.T) {
	want := map[string][]string{
		"calico-typha": {
			"create configmaps", "create secrets", "create tokenreviews", "delete blockaffinities", "delete ipamblocks", "delete ipamhandles",
			"patch nodes/status", "patch pods/status", "update configmaps calico-ca", "update secrets calico-ca",
		},
		"calico-kube-controllers": {
			"delete blockaffinities", "delete hostendpoints", "delete ipamblocks", "delete ipamhandles", "patch nodes/status", "update services/status",
		},
	}
	for account, rules := range roles(t, render.Defaults()) {
		var have []string
		for _, r := range rules {
			for _, verb := range r.Verbs {
				ours := slices.Contains(r.APIGroups, "projectcalico.org")
				if slices.Contains([]string{"get", "list", "watch"}, verb) || ours && verb != "delete" {
					continue
				}
				for _, resource := range r.Resources {
					have = append(have, strings.Join(append([]string{verb, resource}, r.ResourceNames...), " "))
				}
			}
		}
		slices.Sort(have)
		require.Equal(t, want[account], have, account)
	}
}
