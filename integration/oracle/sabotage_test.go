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
		"doNotTrack":                           global(func(s *api.GlobalNetworkPolicySpec) { s.DoNotTrack = false }),
		"preDNAT":                              global(func(s *api.GlobalNetworkPolicySpec) { s.PreDNAT = false }),
		"applyOnForward":                       global(func(s *api.GlobalNetworkPolicySpec) { s.ApplyOnForward = false }),
		"namespaceSelector of a global policy": global(func(s *api.GlobalNetworkPolicySpec) { s.NamespaceSelector = "" }),
		"defaultAction":                        each(func(o *api.Tier) { o.Spec.DefaultAction = nil }),
		"order of tiers":                       each(func(o *api.Tier) { o.Spec.Order = nil }),
		"rules of profiles":                    each(func(o *api.Profile) { o.Spec.Ingress, o.Spec.Egress = nil, nil }),
		"labels of profiles":                   each(func(o *api.Profile) { o.Spec.LabelsToApply = nil }),
		"profiles of host endpoints":           each(func(o *api.HostEndpoint) { o.Spec.Profiles = nil }),
		"the order of profiles":                each(func(o *api.WorkloadEndpoint) { slices.Reverse(o.Spec.Profiles) }),
		"tiers":                                func(w *oracle.World) { drop[*api.Tier](w) },
		"network sets":                         func(w *oracle.World) { drop[*api.NetworkSet](w) },
		"global network sets":                  func(w *oracle.World) { drop[*api.GlobalNetworkSet](w) },
		"host endpoints":                       func(w *oracle.World) { drop[*api.HostEndpoint](w) },
		"Kubernetes' policies":                 func(w *oracle.World) { w.Kubernetes = nil },
		"podSelector":                          kubernetes(func(s *api.StagedKubernetesNetworkPolicySpec) { s.PodSelector.MatchExpressions = nil }),
		"policyTypes":                          kubernetes(func(s *api.StagedKubernetesNetworkPolicySpec) { s.PolicyTypes = nil }),
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
	_, _, found := telling(t, generate.New(seed), careless)
	return found
}

// telling finds a packet of a world that tells it from the one that a careless translation makes of it.
func telling(t *testing.T, g *generate.Generator, careless func(*oracle.World)) (way oracle.Way, p oracle.Packet, found bool) {
	w := g.World()
	c, err := oracle.New(w)
	require.NoError(t, err)
	careless(&w)
	other, err := oracle.New(w)
	require.NoError(t, err)
	for range 60 {
		way, p = g.Packet()
		if c.Passes(way, p, g.Settings()).Allowed != other.Passes(way, p, g.Settings()).Allowed {
			return way, p, true
		}
	}
	return way, p, false
}

// tells tells whether a packet is one that does.
func tells(t *testing.T, w oracle.World, careless func(*oracle.World), way oracle.Way, p oracle.Packet, s oracle.Settings) bool {
	c, err := oracle.New(w)
	require.NoError(t, err)
	careless(&w)
	other, err := oracle.New(w)
	require.NoError(t, err)
	return c.Passes(way, p, s).Allowed != other.Passes(way, p, s).Allowed
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

// each changes the objects of a kind.
func each[T api.Object](change func(T)) func(*oracle.World) {
	return func(w *oracle.World) {
		w.Objects = slices.Clone(w.Objects)
		for i, o := range w.Objects {
			if _, is := o.(T); is {
				o = o.DeepCopyObject().(api.Object)
				change(o.(T))
				w.Objects[i] = o
			}
		}
	}
}

func global(change func(*api.GlobalNetworkPolicySpec)) func(*oracle.World) {
	return each(func(o *api.GlobalNetworkPolicy) { change(&o.Spec) })
}

func eachSpec(change func(*api.NetworkPolicySpec)) func(*oracle.World) {
	local, global := each(func(o *api.NetworkPolicy) { change(&o.Spec) }), global(func(s *api.GlobalNetworkPolicySpec) { change(&s.NetworkPolicySpec) })
	return func(w *oracle.World) { local(w); global(w) }
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

// TestShrinkLeavesLittle: of a world in which two verdicts differ, what is left differs still, is valid, and is little: the policy that
// makes the difference, and what the packet goes through.
func TestShrinkLeavesLittle(t *testing.T) {
	careless := eachRule(func(r *api.Rule) { r.Protocol = nil })
	shrunk := 0
	for seed := uint64(1); shrunk < 5; seed++ {
		require.Less(t, seed, uint64(1_000), "hardly a world differs")
		g := generate.New(seed)
		way, p, found := telling(t, g, careless)
		if !found {
			continue
		}
		shrunk++
		fails := func(w oracle.World) bool {
			for _, end := range []api.Key{way.From, way.To} {
				if end != (api.Key{}) && !slices.ContainsFunc(w.Objects, func(o api.Object) bool { return api.KeyOf(o) == end }) {
					return false
				}
			}
			return tells(t, w, careless, way, p, g.Settings())
		}
		before := len(g.World().Objects)
		small := generate.Shrink(g.World(), fails)
		require.True(t, fails(small), "seed %d: what is left does not differ", seed)
		require.Len(t, g.World().Objects, before, "seed %d: the world that was given is another", seed)
		require.True(t, fails(g.World()), "seed %d: the world that was given is another", seed)
		var policies, ends, others int
		for _, o := range small.Objects {
			switch o := o.(type) {
			case *api.NetworkPolicy:
				policies++
				require.LessOrEqual(t, len(o.Spec.Ingress)+len(o.Spec.Egress), 2, "seed %d\n%s", seed, small.YAML())
				require.NoError(t, o.Validate())
			case *api.GlobalNetworkPolicy:
				policies++
				require.LessOrEqual(t, len(o.Spec.Ingress)+len(o.Spec.Egress), 2, "seed %d\n%s", seed, small.YAML())
				require.NoError(t, o.Validate())
			case *api.WorkloadEndpoint:
				ends++
			default:
				others++
			}
		}
		policies += len(small.Kubernetes) + len(small.Cluster) + len(small.Admin) + len(small.Baseline)
		require.LessOrEqual(t, policies, 2, "seed %d\n%s", seed, small.YAML())
		require.LessOrEqual(t, ends, 3, "seed %d\n%s", seed, small.YAML())
		require.LessOrEqual(t, others, 5, "seed %d: profiles, tiers and host endpoints\n%s", seed, small.YAML())
		for i := range small.Objects { // nothing more can go
			less := small
			less.Objects = slices.Delete(slices.Clone(small.Objects), i, i+1)
			require.False(t, fails(less), "seed %d: %s is of no use\n%s", seed, api.KeyOf(small.Objects[i]), small.YAML())
		}
	}
}
