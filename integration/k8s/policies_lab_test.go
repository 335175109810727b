//go:build lab

package k8s

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

const (
	definitionsPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	clusterPath     = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
	adminPath       = "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies"
	baselinePath    = "/apis/policy.networking.k8s.io/v1alpha1/baselineadminnetworkpolicies"
)

// definition is the definition of ClusterNetworkPolicies as users install it: that of the module whose types typha reads, with
// everything that is still an experiment.
func definition(t *testing.T) (definition object) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &definition))
	return definition
}

// loose defines a kind of v1alpha1, which that module no longer defines, and takes anything for one.
func loose(kind string) object {
	plural := strings.ToLower(strings.TrimSuffix(kind, "y")) + "ies"
	return object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{
			"name": plural + ".policy.networking.k8s.io",
			// The group is Kubernetes' own, whose definitions say who approved of them.
			"annotations": object{"api-approved.kubernetes.io": "unapproved, for a test"},
		},
		"spec": object{
			"group": "policy.networking.k8s.io", "scope": "Cluster",
			"names": object{"kind": kind, "listKind": kind + "List", "plural": plural, "singular": strings.ToLower(kind)},
			"versions": []object{{
				"name": "v1alpha1", "served": true, "storage": true,
				"schema": object{"openAPIV3Schema": object{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
			}},
		},
	}
}

// serve creates an object of a kind that has just been defined.
func (r *rig) serve(path string, o object) {
	r.Helper()
	for {
		err := r.server.Create(r.ctx, path, o)
		if err == nil {
			return
		}
		require.ErrorContains(r, err, "404")
		select {
		case <-time.After(50 * time.Millisecond):
		case <-r.ctx.Done():
			r.Fatal(err)
		}
	}
}

// untilPolicies waits until these policies apply to the pod of node n1, in order, and returns their ingress rules.
func (r *rig) untilPolicies(what string, ids ...string) map[string][]view.Rule {
	r.Helper()
	for {
		var have []string
		rules := map[string][]view.Rule{}
		for _, e := range r.store.View(views.Scope{Node: "n1", View: views.NodeView}) {
			switch it := e.Item().(type) {
			case view.PolicyList:
				for _, tier := range it.Tiers {
					have = append(have, tier.Name)
					have = append(have, tier.Ingress...)
				}
			case view.Policy:
				rules[it.ID] = it.Ingress
			}
		}
		if _, inSync := r.store.Checkpoint(); inSync && slices.Equal(have, ids) {
			return rules
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.ctx.Done():
			r.Fatalf("%s: there should be %q, and are %q", what, ids, have)
		}
	}
}

// always looks from now on whether a policy is in the view of node n1. What it returns ends that, and tells whether it always
// was.
func (r *rig) always(id string) (ended func() bool) {
	stop, was := make(chan struct{}), make(chan bool)
	go func() {
		for there := true; ; {
			there = there && r.store.Get(views.Scope{Node: "n1", View: views.NodeView}, view.Key{Kind: view.KindPolicy, ID: id}) != nil
			select {
			case <-stop:
				was <- there
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() bool {
		close(stop)
		return <-was
	}
}

// policy is a policy for all pods, about ingress. What else its spec has is added.
func policy(kind, version, name string, more object, ingress ...object) object {
	spec := object{"subject": object{"namespaces": object{}}, "ingress": ingress}
	maps.Copy(spec, more)
	return object{"apiVersion": "policy.networking.k8s.io/" + version, "kind": kind, "metadata": object{"name": name}, "spec": spec}
}

func clusterPolicy(name, tier string, priority int, ingress ...object) object {
	return policy("ClusterNetworkPolicy", "v1alpha2", name, object{"tier": tier, "priority": priority}, ingress...)
}

// TestPoliciesReachTheView has cluster-wide policies be defined, come, change and go in a real Kubernetes.
func TestPoliciesReachTheView(t *testing.T) {
	pod := &api.WorkloadEndpoint{}
	pod.Namespace, pod.Name = "default", "n1-k8s-p-eth0"
	pod.Spec = api.WorkloadEndpointSpec{
		Node: "n1", Orchestrator: api.OrchestratorKubernetes, Pod: "p", Endpoint: "eth0", InterfaceName: "cali1",
		IPNetworks: []string{"192.168.0.9/32"}, ContainerID: "c",
	}
	r := start(t, node("n1"), pod)
	r.untilPolicies("a cluster that does not know such policies has none")

	anyone := []object{{"namespaces": object{}}}
	accept := object{"action": "Accept", "from": anyone, "protocols": []object{{"tcp": object{"destinationPort": object{"number": 80}}}}}
	deny := object{"action": "Deny", "from": anyone}
	kind := definition(t)
	name := kind["metadata"].(object)["name"].(string)
	r.do(r.server.Create(r.ctx, definitionsPath, kind))
	r.serve(clusterPath, clusterPolicy("b", "Admin", 7, accept, deny))
	rules := r.untilPolicies("the kind is defined, and there is one", "kube-admin", "kcnp/b")
	require.Len(t, rules["kcnp/b"], 2)
	require.Equal(t, view.Allow, rules["kcnp/b"][0].Action)
	require.Equal(t, []view.PortRange{{First: 80, Last: 80}}, rules["kcnp/b"][0].Destination.Ports)
	require.Equal(t, view.Deny, rules["kcnp/b"][1].Action)
	r.do(r.server.Create(r.ctx, clusterPath, clusterPolicy("a", "Admin", 9, deny)))
	r.do(r.server.Create(r.ctx, clusterPath, clusterPolicy("c", "Baseline", 0, deny)))
	r.untilPolicies("by tier and priority", "kube-admin", "kcnp/b", "kcnp/a", "kube-baseline", "kcnp/c")
	r.do(r.server.Patch(r.ctx, clusterPath+"/a", object{"spec": object{"priority": 1}}))
	r.untilPolicies("a priority changed", "kube-admin", "kcnp/a", "kcnp/b", "kube-baseline", "kcnp/c")

	t.Log("what is not supported")
	toNodes := clusterPolicy("d", "Admin", 100, deny)
	toNodes["spec"].(object)["egress"] = []object{{"action": "Pass", "to": []object{{"nodes": object{}}}}}
	r.do(r.server.Create(r.ctx, clusterPath, toNodes))
	r.untilPolicies("it is closed", "kube-admin", "kcnp/a", "kcnp/b", "kcnp/d", "kube-baseline", "kcnp/c")
	require.ErrorContains(t, r.intake.Invalid()[api.Key{Kind: kubernetes.KindCluster, Name: "d"}], "spec.egress[0]: peer 0: nodes are not supported")
	r.do(r.server.Delete(r.ctx, clusterPath+"/d"))
	r.untilPolicies("it is gone", "kube-admin", "kcnp/a", "kcnp/b", "kube-baseline", "kcnp/c")
	require.Empty(t, r.intake.Invalid())

	t.Log("the kinds of before")
	r.do(r.server.Create(r.ctx, definitionsPath, loose("AdminNetworkPolicy")))
	r.do(r.server.Create(r.ctx, definitionsPath, loose("BaselineAdminNetworkPolicy")))
	r.serve(adminPath, policy("AdminNetworkPolicy", "v1alpha1", "old", object{"priority": 3}, object{"action": "Allow", "from": anyone}))
	r.serve(baselinePath, policy("BaselineAdminNetworkPolicy", "v1alpha1", "default", nil, deny))
	all := []string{"kube-admin", "kcnp/a", "kanp/old", "kcnp/b", "kube-baseline", "kcnp/c", "kbanp/default"}
	r.untilPolicies("all kinds together", all...)

	t.Log("an API server that is away, and one that has just come back: whatever it says, nothing is taken away")
	ended := r.always("kcnp/a")
	r.do(r.server.KillAPI())
	r.do(r.server.StartAPI(r.ctx))
	for i := range 20 {
		r.do(r.server.Create(r.ctx, clusterPath, clusterPolicy(fmt.Sprintf("x%02d", i), "Baseline", 500, deny)))
		all = slices.Insert(all, len(all)-1, fmt.Sprintf("kcnp/x%02d", i))
	}
	r.untilPolicies("followed again", all...)
	require.True(t, ended(), "a policy went for a moment")

	t.Log("the kind is not defined any more")
	r.do(r.server.Delete(r.ctx, definitionsPath+"/"+name))
	r.untilPolicies("others stay", "kube-admin", "kanp/old", "kube-baseline", "kbanp/default")
}
