package generate

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
)

// policy adds a policy of some kind.
func (g *Generator) policy(i int) {
	ns := pick(g, namespaces...)
	switch g.r.IntN(10) {
	case 0, 1, 2:
		o := &api.NetworkPolicy{ObjectMeta: meta(ns, fmt.Sprintf("p%d", i)), Spec: g.policySpec(ns)}
		g.add(o)
	case 3, 4, 5:
		g.add(&api.GlobalNetworkPolicy{ObjectMeta: meta("", fmt.Sprintf("p%d", i)), Spec: g.globalSpec()})
	case 6:
		g.add(g.staged(i, ns))
	default:
		k := oracle.KubernetesPolicy{ObjectMeta: meta(ns, fmt.Sprintf("p%d", i)), Spec: g.kubernetesSpec()}
		k.APIVersion, k.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		g.world.Kubernetes = append(g.world.Kubernetes, k)
	}
}

func (g *Generator) staged(i int, ns string) api.Object {
	switch g.r.IntN(3) {
	case 0:
		o := &api.StagedNetworkPolicy{ObjectMeta: meta(ns, fmt.Sprintf("p%d", i))}
		o.Spec.NetworkPolicySpec = g.policySpec(ns)
		return o
	case 1:
		o := &api.StagedGlobalNetworkPolicy{ObjectMeta: meta("", fmt.Sprintf("p%d", i))}
		o.Spec.GlobalNetworkPolicySpec = g.globalSpec()
		return o
	}
	return &api.StagedKubernetesNetworkPolicy{ObjectMeta: meta(ns, fmt.Sprintf("p%d", i)), Spec: g.kubernetesSpec()}
}

func (g *Generator) policySpec(namespace string) (s api.NetworkPolicySpec) {
	s.Tier = pick(g, tiers...)
	if g.chance(50) {
		s.Tier = pick(g, tiers[0], tiers[3])
	}
	if g.chance(60) {
		s.Order = new(pick[float64](g, 1, 1, 2, 1000, -3))
	}
	s.Selector = g.subject()
	if g.chance(15) {
		s.ServiceAccountSelector = g.selectorOf("role")
	}
	s.Types = pick(g, nil, []api.PolicyType{api.Ingress}, []api.PolicyType{api.Egress}, []api.PolicyType{api.Ingress, api.Egress})
	s.Ingress, s.Egress = g.rules(4, api.Ingress, namespace), g.rules(4, api.Egress, namespace)
	return s
}

func (g *Generator) globalSpec() (s api.GlobalNetworkPolicySpec) {
	s.NetworkPolicySpec = g.policySpec("")
	if g.chance(30) {
		s.NamespaceSelector = pick(g, g.selectorOf("team"), "all()", "global()", "projectcalico.org/name == 'red'")
	}
	switch g.r.IntN(6) {
	case 0:
		s.ApplyOnForward = true
	case 1:
		s.ApplyOnForward, s.DoNotTrack = true, true
	case 2:
		s.ApplyOnForward, s.PreDNAT = true, true
		s.Egress, s.Types = nil, []api.PolicyType{api.Ingress}
	}
	return s
}

// subject is a selector that selects many.
func (g *Generator) subject() string {
	if g.chance(45) {
		return pick(g, "", "all()", "has(projectcalico.org/orchestrator)", "projectcalico.org/namespace == 'red'")
	}
	return g.selector()
}

func (g *Generator) selector() string {
	switch g.r.IntN(8) {
	case 0:
		return "(" + g.selector() + ") && " + g.selectorOf(keys...)
	case 1:
		return g.selectorOf(keys...) + " || " + g.selectorOf(keys...)
	case 2:
		return "!(" + g.selectorOf(keys...) + ")"
	case 3:
		return pick(g, "all()", "!all()", "projectcalico.org/orchestrator == 'k8s'", "has(projectcalico.org/namespace)",
			"projectcalico.org/serviceaccount == 'bot'", "pcns.team == 'a'", "pcsa.role != 'b'")
	}
	return g.selectorOf(keys...)
}

func (g *Generator) selectorOf(keys ...string) string {
	k, v, u := pick(g, keys...), pick(g, values...), pick(g, values...)
	return fmt.Sprintf(pick(g, "%[1]s == '%[2]s'", `%[1]s != "%[2]s"`, "has(%[1]s)", "!has(%[1]s)", "%[1]s in {'%[2]s', '%[3]s'}",
		"%[1]s not in { '%[2]s' }", "%[1]s in {}", "%[1]s contains 'b'", "%[1]s starts with 'a'", "%[1]s ends with '%[3]s'"), k, v, u)
}

// rules are up to n rules, all valid.
func (g *Generator) rules(n int, direction api.PolicyType, namespace string) (out []api.Rule) {
	for range g.r.IntN(n) {
		out = append(out, g.rule(direction, namespace))
	}
	return out
}

func (g *Generator) rule(direction api.PolicyType, namespace string) api.Rule {
	for {
		r := g.anyRule(direction)
		p := &api.GlobalNetworkPolicy{ObjectMeta: meta("", "p")}
		spec := &p.Spec.NetworkPolicySpec
		o := api.Object(p)
		if namespace != "" {
			p := &api.NetworkPolicy{ObjectMeta: meta(namespace, "p")}
			spec, o = &p.Spec, p
		}
		if direction == api.Ingress {
			spec.Ingress = []api.Rule{r}
		} else {
			spec.Egress = []api.Rule{r}
		}
		if o.Validate() == nil {
			return r
		}
	}
}

// anyRule is a rule that may not be valid.
func (g *Generator) anyRule(direction api.PolicyType) api.Rule {
	r := api.Rule{Action: pick(g, api.Allow, api.Allow, api.Deny, api.Deny, api.Pass, api.Log)}
	version := 4 + 2*g.r.IntN(2) // of the networks
	if g.chance(15) {
		r.IPVersion = new(pick(g, version, 4, 6))
	}
	if g.chance(65) {
		r.Protocol = new(pick(g, api.ProtocolTCP, api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP, api.ProtocolICMP, api.ProtocolICMPv6,
			api.ProtocolUDPLite, "6", "47", "udp"))
	}
	if g.chance(8) {
		r.NotProtocol = new(pick(g, api.ProtocolTCP, api.ProtocolUDP, api.ProtocolICMP, "47", "58"))
	}
	if r.Protocol != nil && (*r.Protocol == api.ProtocolICMP || *r.Protocol == api.ProtocolICMPv6) && g.chance(70) {
		r.ICMP = g.icmp()
	}
	if g.chance(6) {
		r.NotICMP = g.icmp()
	}
	r.Source, r.Destination = g.entity(version, r.Protocol), g.entity(version, r.Protocol)
	if direction == api.Ingress {
		r.Destination.Services = nil
	} else {
		r.Source.Services = nil
	}
	return r
}

func (g *Generator) icmp() *api.ICMPFields {
	f := &api.ICMPFields{Type: new(pick(g, 8, 0, 128, 135, 3))}
	if g.chance(60) {
		f.Code = new(pick(g, 0, 0, 1, 7))
	}
	return f
}

func (g *Generator) entity(version int, protocol *api.Protocol) (e api.EntityRule) {
	if g.chance(12) {
		e.Services = &api.ServiceMatch{Namespace: pick(g, namespaces...), Name: pick(g, "web", "web", "web", "empty", "absent")}
		return e
	}
	if g.chance(18) {
		e.Nets = g.netList(version)
	}
	if g.chance(10) {
		e.NotNets = g.netList(version)
	}
	if g.chance(22) {
		e.Selector = g.selector()
	}
	if g.chance(10) {
		e.NotSelector = g.selector()
	}
	if g.chance(15) {
		e.NamespaceSelector = pick(g, "all()", "global()", g.selectorOf("team"), "projectcalico.org/name in {'red'}")
	}
	if g.chance(10) {
		e.ServiceAccounts = &api.ServiceAccountMatch{}
		if g.chance(60) {
			e.ServiceAccounts.Names = []string{pick(g, "bot", "other")}
		}
		if g.chance(50) {
			e.ServiceAccounts.Selector = g.selectorOf("role")
		}
	}
	if protocol == nil || protocol.SupportsPorts() {
		if g.chance(22) {
			e.Ports = g.ports(protocol != nil)
		}
		if g.chance(8) {
			e.NotPorts = g.ports(protocol != nil)
		}
	}
	return e
}

func (g *Generator) netList(version int) (out []string) {
	for _, n := range netsOf(version) {
		if g.chance(30) {
			out = append(out, n)
		}
	}
	if g.chance(3) {
		out = append(out, map[int]string{4: "0.0.0.0/0", 6: "::/0"}[version])
	}
	g.note(out...)
	return out
}

func (g *Generator) ports(numbers bool) (out []api.Port) {
	for range 1 + g.r.IntN(3) {
		switch {
		case !numbers || g.chance(30):
			out = append(out, api.Port{Name: pick(g, portNames...)})
		case g.chance(40):
			first := pick[uint16](g, 1, 53, 80, 81, 8000)
			out = append(out, api.Port{First: first, Last: first + pick[uint16](g, 1, 9, 1000)})
		case g.chance(10):
			out = append(out, api.Port{First: 8080, Last: 65535})
		default:
			out = append(out, api.SinglePort(pick[uint16](g, 53, 80, 81, 443, 8080, 65535)))
		}
	}
	return out
}

// Policies of Kubernetes.

func (g *Generator) kubernetesSpec() (s api.StagedKubernetesNetworkPolicySpec) {
	if g.chance(60) {
		s.PodSelector = *g.labelSelector(keys...)
	}
	s.PolicyTypes = pick(g, nil, []api.PolicyType{api.Ingress}, []api.PolicyType{api.Egress}, []api.PolicyType{api.Ingress, api.Egress})
	for range g.r.IntN(3) {
		s.Ingress = append(s.Ingress, api.KubernetesIngressRule{Ports: g.kubernetesPorts(), From: g.peers()})
	}
	for range g.r.IntN(3) {
		s.Egress = append(s.Egress, api.KubernetesEgressRule{Ports: g.kubernetesPorts(), To: g.peers()})
	}
	return s
}

func (g *Generator) labelSelector(keys ...string) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if g.chance(40) {
		s.MatchLabels = map[string]string{pick(g, keys...): pick(g, values...)}
	}
	for range g.r.IntN(2) {
		x := metav1.LabelSelectorRequirement{Key: pick(g, keys...)}
		x.Operator = pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)
		if x.Operator == metav1.LabelSelectorOpIn || x.Operator == metav1.LabelSelectorOpNotIn {
			x.Values = []string{pick(g, values...), pick(g, values...)}
		}
		s.MatchExpressions = append(s.MatchExpressions, x)
	}
	return s
}

func (g *Generator) kubernetesPorts() (out []api.KubernetesPort) {
	for range g.r.IntN(4) {
		var p api.KubernetesPort
		if g.chance(70) {
			p.Protocol = new(pick(g, api.ProtocolTCP, api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP))
		}
		switch {
		case g.chance(25):
			p.Port = new(intstr.FromString(pick(g, portNames...)))
		case g.chance(80):
			n := pick(g, 53, 80, 81, 443, 8080)
			p.Port = new(intstr.FromInt(n))
			if g.chance(30) {
				p.EndPort = new(int32(n + pick(g, 0, 1, 100)))
			}
		}
		out = append(out, p)
	}
	return out
}

func (g *Generator) peers() (out []api.KubernetesPeer) {
	for range g.r.IntN(3) {
		var p api.KubernetesPeer
		if g.chance(30) {
			version := 4 + 2*g.r.IntN(2)
			p.IPBlock = pick(g, map[int][]*api.KubernetesIPBlock{
				4: {{CIDR: "10.65.0.0/16", Except: []string{"10.65.0.0/30"}}, {CIDR: "203.0.113.0/24"}, {CIDR: "0.0.0.0/0", Except: []string{"10.65.0.4/31", "203.0.113.128/25"}}},
				6: {{CIDR: "fd00:65::/64", Except: []string{"fd00:65::4/126"}}, {CIDR: "::/0", Except: []string{"2001:db8:1::/48"}}},
			}[version]...)
			g.note(append([]string{p.IPBlock.CIDR}, p.IPBlock.Except...)...)
		} else {
			if g.chance(60) {
				p.PodSelector = g.labelSelector(keys...)
			}
			if g.chance(60) || p.PodSelector == nil {
				p.NamespaceSelector = g.labelSelector("team", "projectcalico.org/name")
			}
		}
		out = append(out, p)
	}
	return out
}
