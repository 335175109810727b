//go:build !race

// The race detector would find nothing here, and take half a minute for it: make property has this.

package oracle_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/generate"
)

// TestWorldsTellOneFieldFromAnother leaves out of the rules one thing after the other that policies may say, as a careless
// translation would, and has the comparison notice each.
func TestWorldsTellOneFieldFromAnother(t *testing.T) {
	entity := func(change func(*api.EntityRule)) func(*oracle.World) {
		return eachRule(func(r *api.Rule) { change(&r.Source); change(&r.Destination) })
	}
	spec := func(change func(*api.NetworkPolicySpec)) func(*oracle.World) { return eachSpec(change) }
	kubernetes := func(change func(*api.StagedKubernetesNetworkPolicySpec)) func(*oracle.World) {
		return func(w *oracle.World) {
			w.Kubernetes = slices.Clone(w.Kubernetes)
			for i := range w.Kubernetes {
				w.Kubernetes[i].Spec = *w.Kubernetes[i].Spec.DeepCopy()
				change(&w.Kubernetes[i].Spec)
			}
		}
	}
	named := func(p api.Port) bool { return p.IsNamed() }
	for name, careless := range map[string]func(*oracle.World){
		"ipVersion":   eachRule(func(r *api.Rule) { r.IPVersion = nil }),
		"protocol":    eachRule(func(r *api.Rule) { r.Protocol = nil }),
		"notProtocol": eachRule(func(r *api.Rule) { r.NotProtocol = nil }),
		"icmp":        eachRule(func(r *api.Rule) { r.ICMP = nil }),
		"icmp code": eachRule(func(r *api.Rule) {
			if r.ICMP != nil {
				r.ICMP.Code = nil
			}
		}),
		"notICMP":           eachRule(func(r *api.Rule) { r.NotICMP = nil }),
		"nets":              entity(func(e *api.EntityRule) { e.Nets = nil }),
		"notNets":           entity(func(e *api.EntityRule) { e.NotNets = nil }),
		"selector":          entity(func(e *api.EntityRule) { e.Selector = "" }),
		"notSelector":       entity(func(e *api.EntityRule) { e.NotSelector = "" }),
		"namespaceSelector": entity(func(e *api.EntityRule) { e.NamespaceSelector = "" }),
		"serviceAccounts":   entity(func(e *api.EntityRule) { e.ServiceAccounts = nil }),
		"services":          entity(func(e *api.EntityRule) { e.Services = nil }),
		"ports":             entity(func(e *api.EntityRule) { e.Ports = nil }),
		"named ports": entity(func(e *api.EntityRule) {
			if slices.ContainsFunc(e.Ports, named) {
				e.Ports = slices.DeleteFunc(e.Ports, named)
			}
		}),
		"notPorts":               entity(func(e *api.EntityRule) { e.NotPorts = nil }),
		"order":                  spec(func(s *api.NetworkPolicySpec) { s.Order = nil }),
		"tier":                   spec(func(s *api.NetworkPolicySpec) { s.Tier = "" }),
		"types":                  spec(func(s *api.NetworkPolicySpec) { s.Types = nil }),
		"subject":                spec(func(s *api.NetworkPolicySpec) { s.Selector = "" }),
		"serviceAccountSelector": spec(func(s *api.NetworkPolicySpec) { s.ServiceAccountSelector = "" }),
		"pass for allow": eachRule(func(r *api.Rule) {
			if r.Action == api.Pass {
				r.Action = api.Allow
			}
		}),
		"log for deny": eachRule(func(r *api.Rule) {
			if r.Action == api.Log {
				r.Action = api.Deny
			}
		}),
		"tiers":                func(w *oracle.World) { drop[*api.Tier](w) },
		"network sets":         func(w *oracle.World) { drop[*api.NetworkSet](w) },
		"global network sets":  func(w *oracle.World) { drop[*api.GlobalNetworkSet](w) },
		"host endpoints":       func(w *oracle.World) { drop[*api.HostEndpoint](w) },
		"Kubernetes' policies": func(w *oracle.World) { w.Kubernetes = nil },
		"podSelector":          kubernetes(func(s *api.StagedKubernetesNetworkPolicySpec) { s.PodSelector.MatchExpressions = nil }),
		"policyTypes":          kubernetes(func(s *api.StagedKubernetesNetworkPolicySpec) { s.PolicyTypes = nil }),
		"except": kubernetes(func(s *api.StagedKubernetesNetworkPolicySpec) {
			for _, r := range s.Egress {
				for _, p := range r.To {
					if p.IPBlock != nil {
						p.IPBlock.Except = nil
					}
				}
			}
		}),
		"endPort": kubernetes(func(s *api.StagedKubernetesNetworkPolicySpec) {
			for _, r := range s.Ingress {
				for i := range r.Ports {
					r.Ports[i].EndPort = nil
				}
			}
		}),
		"Kubernetes' admin policies":    func(w *oracle.World) { w.Admin = nil },
		"Kubernetes' baseline policies": func(w *oracle.World) { w.Baseline = nil },
		"Kubernetes' cluster policies":  func(w *oracle.World) { w.Cluster = nil },
		"priority":                      cluster(func(s *v1alpha2.ClusterNetworkPolicySpec) { s.Priority = 0 }),
		"Admin for Baseline":            cluster(func(s *v1alpha2.ClusterNetworkPolicySpec) { s.Tier = v1alpha2.AdminTier }),
		"protocols of Kubernetes":       clusterRule(func(r *v1alpha2.ClusterNetworkPolicyEgressRule) { r.Protocols = nil }),
		"Accept for Kubernetes' Pass": clusterRule(func(r *v1alpha2.ClusterNetworkPolicyEgressRule) {
			if r.Action == v1alpha2.ClusterNetworkPolicyRuleActionPass {
				r.Action = v1alpha2.ClusterNetworkPolicyRuleActionAccept
			}
		}),
		"the second peer": clusterRule(func(r *v1alpha2.ClusterNetworkPolicyEgressRule) { r.To = r.To[:1] }),
		"the second network": clusterRule(func(r *v1alpha2.ClusterNetworkPolicyEgressRule) {
			for i := range r.To {
				r.To[i].Networks = r.To[i].Networks[:min(1, len(r.To[i].Networks))]
			}
		}),
		"what is not supported": clusterRule(func(r *v1alpha2.ClusterNetworkPolicyEgressRule) {
			r.To = slices.DeleteFunc(r.To, func(p v1alpha2.ClusterNetworkPolicyEgressPeer) bool { return p.Nodes != nil })
			if len(r.To) == 0 {
				r.To, r.Action = []v1alpha2.ClusterNetworkPolicyEgressPeer{{}}, v1alpha2.ClusterNetworkPolicyRuleActionAccept
			}
		}),
		"services without ports": func(w *oracle.World) {
			w.Services = slices.DeleteFunc(slices.Clone(w.Services), func(s oracle.Service) bool { return len(s.Ports) == 0 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed < 4_000; seed++ {
				if differs(t, seed, careless) {
					return
				}
			}
			require.Fail(t, "nobody noticed")
		})
	}
}

// differs tells whether any packet of a world tells it from the one that a careless translation makes of it.
func differs(t *testing.T, seed uint64, careless func(*oracle.World)) bool {
	g := generate.New(seed)
	w := g.World()
	c, err := oracle.New(w)
	require.NoError(t, err)
	careless(&w)
	other, err := oracle.New(w)
	require.NoError(t, err)
	for range 60 {
		way, p := g.Packet()
		if c.Passes(way, p, oracle.Settings{}).Allowed != other.Passes(way, p, oracle.Settings{}).Allowed {
			return true
		}
	}
	return false
}

// cluster changes the ClusterNetworkPolicies of a world, and clusterRule their egress rules.
func cluster(change func(*v1alpha2.ClusterNetworkPolicySpec)) func(*oracle.World) {
	return func(w *oracle.World) {
		w.Cluster = slices.Clone(w.Cluster)
		for i := range w.Cluster {
			w.Cluster[i].Spec = *w.Cluster[i].Spec.DeepCopy()
			change(&w.Cluster[i].Spec)
		}
	}
}

func clusterRule(change func(*v1alpha2.ClusterNetworkPolicyEgressRule)) func(*oracle.World) {
	return cluster(func(s *v1alpha2.ClusterNetworkPolicySpec) {
		for i := range s.Egress {
			change(&s.Egress[i])
		}
	})
}

func eachSpec(change func(*api.NetworkPolicySpec)) func(*oracle.World) {
	return func(w *oracle.World) {
		w.Objects = slices.Clone(w.Objects)
		for i, o := range w.Objects {
			o = o.DeepCopyObject().(api.Object)
			switch o := o.(type) {
			case *api.NetworkPolicy:
				change(&o.Spec)
			case *api.GlobalNetworkPolicy:
				change(&o.Spec.NetworkPolicySpec)
			}
			w.Objects[i] = o
		}
	}
}

func eachRule(change func(*api.Rule)) func(*oracle.World) {
	return eachSpec(func(s *api.NetworkPolicySpec) {
		for _, rules := range [][]api.Rule{s.Ingress, s.Egress} {
			for i := range rules {
				change(&rules[i])
			}
		}
	})
}

func drop[T api.Object](w *oracle.World) {
	w.Objects = slices.DeleteFunc(slices.Clone(w.Objects), func(o api.Object) bool { _, ok := o.(T); return ok })
}
