package intake

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// policyScript is a source of policies that tells what a test has it tell.
type policyScript map[string]chan Told[ClusterPolicy]

func (s policyScript) Policies(ctx context.Context, kind string, tell func(Told[ClusterPolicy]) error) error {
	return pass(ctx, s[kind], tell)
}

// TestClusterPolicies has cluster-wide policies of Kubernetes reach a pod in the tiers that are theirs, and leave it.
func TestClusterPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := &api.Node{}
		node.Name = "n1"
		pod := &api.WorkloadEndpoint{}
		pod.Namespace, pod.Name = "default", "n1-k8s-p-eth0"
		pod.Spec = api.WorkloadEndpointSpec{
			Node: "n1", Orchestrator: api.OrchestratorKubernetes, Pod: "p", Endpoint: "eth0", InterfaceName: "cali1",
			IPNetworks: []string{"192.168.0.9/32"}, ContainerID: "c",
		}
		ours := &api.GlobalNetworkPolicy{}
		ours.Name = "ours"
		ours.Spec.Tier, ours.Spec.Order = api.TierKubeAdmin, new(10.0)
		data := quiet{map[string][]api.Object{"Node": {node}, "WorkloadEndpoint": {pod}, "GlobalNetworkPolicy": {ours}}}
		source, store := policyScript{}, views.NewStore()
		for _, kind := range kubernetes.ClusterKinds() {
			source[kind] = make(chan Told[ClusterPolicy])
		}
		in := New(data, cache.New(), Options{Logger: slog.New(slog.DiscardHandler), Policies: source})
		l := NewLoop(in, compute.New(), store)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()

		applies := func() (ids []string) {
			synctest.Wait()
			for _, e := range store.View(views.Scope{Node: "n1", View: views.NodeView}) {
				if list, ok := e.Item().(view.PolicyList); ok {
					for _, tier := range list.Tiers {
						ids = append(ids, tier.Name)
						ids = append(ids, tier.Ingress...)
					}
				}
			}
			return ids
		}
		policy := func(tier string, order float64) *api.GlobalNetworkPolicy {
			p := &api.GlobalNetworkPolicy{}
			p.Spec.Tier, p.Spec.Order, p.Spec.Types = tier, &order, []api.PolicyType{api.Ingress}
			p.Spec.Selector = "projectcalico.org/orchestrator == 'k8s'"
			p.Spec.Ingress = []api.Rule{{Action: api.Deny}}
			return p
		}
		named := func(name string, p *api.GlobalNetworkPolicy) *ClusterPolicy {
			if p.Name = name; name == "wrong" {
				return &ClusterPolicy{Policy: p, Wrong: errors.New("nodes are not supported")}
			}
			return &ClusterPolicy{Policy: p}
		}
		source[kubernetes.KindCluster] <- Told[ClusterPolicy]{
			Changes: map[string]*ClusterPolicy{
				"ours": named("ours", policy(api.TierKubeAdmin, 10)), "wrong": named("wrong", policy(api.TierKubeBaseline, 5)),
				"nobody": {Wrong: errors.New("is for nobody")},
			},
			Seen: 12, Reached: 20, InSync: true,
		}
		source[kubernetes.KindAdmin] <- Told[ClusterPolicy]{Changes: map[string]*ClusterPolicy{"a": named("a", policy(api.TierKubeAdmin, 9))}, Seen: 13, Reached: 20, InSync: true}
		require.Empty(t, applies(), "nothing is known of one kind")
		source[kubernetes.KindBaseline] <- Told[ClusterPolicy]{Changes: map[string]*ClusterPolicy{"default": named("default", policy(api.TierKubeBaseline, 1000))}, Reached: 20, InSync: true}
		require.Equal(t, []string{"kube-admin", "kanp/a", "gnp/ours", "kcnp/ours", "kube-baseline", "kcnp/wrong", "kbanp/default"}, applies())
		key := func(name string) api.Key { return api.Key{Kind: kubernetes.KindCluster, Name: name} }
		require.Equal(t, map[api.Key]error{key("wrong"): errors.New("nodes are not supported"), key("nobody"): errors.New("is for nobody")}, in.Invalid())
		checkpoint, _ := store.Checkpoint()
		require.Equal(t, view.Checkpoint{"etcd": 7, kubernetes.KindCluster: 12, kubernetes.KindAdmin: 13}, checkpoint)
		require.True(t, store.Reached(view.Checkpoint{kubernetes.KindBaseline: 20}))

		right := named("wrong", policy(api.TierKubeBaseline, 5))
		right.Wrong = nil
		source[kubernetes.KindCluster] <- Told[ClusterPolicy]{Changes: map[string]*ClusterPolicy{"wrong": right, "ours": nil, "nobody": nil}, Seen: 21, Reached: 21}
		source[kubernetes.KindBaseline] <- Told[ClusterPolicy]{Changes: map[string]*ClusterPolicy{"default": nil}, Seen: 22, Reached: 22}
		require.Equal(t, []string{"kube-admin", "kanp/a", "gnp/ours", "kube-baseline", "kcnp/wrong"}, applies())
		require.Empty(t, in.Invalid())
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}
