package oracle

import (
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
)

// Cluster-wide policies of Kubernetes, by the words of its network-policy-api: those of Admin come before NetworkPolicies and
// those of Baseline after them; in a tier the lower priority comes first; the first rule that matches accepts, denies or passes
// on to the next tier; what nobody decides goes on. What is not understood fails closed: a rule that accepts matches nothing,
// any other denies everything.

// clusterWide is a cluster-wide policy in words that its three kinds have in common.
type clusterWide struct {
	short, kind, name string
	tier              string // Admin or Baseline
	priority          int32
	subject           party
	sentences         [2][]sentence // by direction
}

// sentence is a rule.
type sentence struct {
	action string
	peers  []party
	ports  []portWords
}

// party is a subject or peer; said counts what it says, of which there must be one.
type party struct {
	said             int
	namespaces, pods *metav1.LabelSelector
	networks         []string
	unknown          bool // says what is defined, and not enforced here
}

// portWords is a port, by name or as a range of a protocol.
type portWords struct {
	said        int
	protocol    uint8
	first, last int32
	name        string
}

// clusterWide understands a policy; nil if it is for nobody.
func (c *Cluster) clusterWide(k clusterWide) *policy {
	tier := map[string]string{"Admin": "kube-admin", "Baseline": "kube-baseline"}[k.tier]
	if tier == "" || k.subject.said != 1 || !reasonable(k.subject.namespaces) {
		return nil
	}
	closed := !reasonable(k.subject.pods)
	if n := k.subject.namespaces; closed && len(n.MatchLabels)+len(n.MatchExpressions) == 0 {
		return nil
	}
	p := &policy{
		id: k.short + "/" + k.name, tie: k.name + "//" + k.kind, tier: tier, order: float64(k.priority), passes: []pass{normal},
		applies: func(t *thing) bool {
			pods := k.subject.pods
			if closed {
				pods = nil
			}
			return t.key.Kind == "WorkloadEndpoint" && podOf(k.subject.namespaces, pods, t)
		},
	}
	everything := func(Packet) bool { return true }
	for d, sentences := range k.sentences {
		p.covers[d] = len(sentences) > 0
		for _, s := range sentences {
			action, known := map[string]api.Action{"Accept": api.Allow, "Allow": api.Allow, "Deny": api.Deny, "Pass": api.Pass}[s.action]
			switch clear := s.clear(); {
			case closed || !known || !clear && action != api.Allow:
				p.rules[d] = append(p.rules[d], rule{api.Deny, everything})
			case clear:
				p.rules[d] = append(p.rules[d], rule{action, func(p Packet) bool { return c.meant(s, p, Direction(d)) }})
			}
		}
	}
	return p
}

// clear tells whether all of a sentence is understood.
func (s sentence) clear() bool {
	if len(s.peers) == 0 {
		return false
	}
	names := slices.ContainsFunc(s.ports, func(w portWords) bool { return w.name != "" })
	for _, p := range s.peers {
		if p.said != 1 || p.unknown || !reasonable(p.namespaces) || !reasonable(p.pods) || names && p.networks != nil {
			return false
		}
		for _, n := range p.networks {
			if a, err := netip.ParsePrefix(n); err != nil || a.Addr().Is4In6() {
				return false
			}
		}
	}
	return !slices.ContainsFunc(s.ports, func(w portWords) bool {
		return w.said != 1 || w.name != "" && len(validation.IsValidPortName(w.name)) > 0 || w.name == "" && (w.first < 1 || w.last < w.first || w.last > 65535)
	})
}

// meant tells whether a sentence means a packet.
func (c *Cluster) meant(s sentence, p Packet, d Direction) bool {
	address := p.Source
	if d == Egress {
		address = p.Destination
	}
	return slices.ContainsFunc(s.peers, func(peer party) bool {
		is := func(t *thing) bool { return podOf(peer.namespaces, peer.pods, t) }
		if peer.networks != nil {
			if !slices.ContainsFunc(peer.networks, func(n string) bool { return netip.MustParsePrefix(n).Contains(address) }) {
				return false
			}
		} else if !c.any(address, is) {
			return false
		}
		if d == Ingress { // ports are those of the pod that the policy is for
			is = func(*thing) bool { return true }
		}
		return len(s.ports) == 0 || slices.ContainsFunc(s.ports, func(w portWords) bool {
			if w.name != "" {
				return c.any(p.Destination, func(t *thing) bool { return is(t) && t.port(w.name, Port{p.Protocol, p.DestinationPort}) })
			}
			return p.Protocol == w.protocol && w.first <= int32(p.DestinationPort) && int32(p.DestinationPort) <= w.last
		})
	})
}

// podOf tells whether something is a pod with these labels, of a namespace with those.
func podOf(namespaces, pods *metav1.LabelSelector, t *thing) bool {
	_, namespaced := t.labels[labelNamespace]
	return namespaced && pod(t, "") && labelled(namespaces, t, ofNamespace) && labelled(pods, t, "")
}

// reasonable tells whether Kubernetes understands a label selector.
func reasonable(s *metav1.LabelSelector) bool {
	_, err := metav1.LabelSelectorAsSelector(s)
	return err == nil
}

// newParty is a party by its fields; those that only some kinds have may be left out.
func newParty(namespaces, ofPods, pods, nodes *metav1.LabelSelector, networks []string, domains int) party {
	p := party{namespaces: namespaces, networks: networks, unknown: nodes != nil || domains > 0}
	if pods != nil {
		p.namespaces, p.pods = ofPods, pods
	}
	for _, is := range []bool{namespaces != nil, pods != nil, nodes != nil, len(networks) > 0, domains > 0} {
		if is {
			p.said++
		}
	}
	return p
}

func wordsOf[T ~string](list []T) (out []string) {
	for _, v := range list {
		out = append(out, string(v))
	}
	return out
}

func fromCluster(k *v1alpha2.ClusterNetworkPolicy) clusterWide {
	who := func(namespaces *metav1.LabelSelector, pods *v1alpha2.NamespacedPod, nodes *metav1.LabelSelector, networks []string, domains int) party {
		if pods == nil {
			return newParty(namespaces, nil, nil, nodes, networks, domains)
		}
		return newParty(namespaces, &pods.NamespaceSelector, &pods.PodSelector, nodes, networks, domains)
	}
	out := clusterWide{
		short: "kcnp", kind: "KubernetesClusterNetworkPolicy", name: k.Name, tier: string(k.Spec.Tier), priority: k.Spec.Priority,
		subject: who(k.Spec.Subject.Namespaces, k.Spec.Subject.Pods, nil, nil, 0),
	}
	for _, r := range k.Spec.Ingress {
		s := sentence{action: string(r.Action), ports: clusterPorts(r.Protocols)}
		for _, p := range r.From {
			s.peers = append(s.peers, who(p.Namespaces, p.Pods, nil, nil, 0))
		}
		out.sentences[Ingress] = append(out.sentences[Ingress], s)
	}
	for _, r := range k.Spec.Egress {
		s := sentence{action: string(r.Action), ports: clusterPorts(r.Protocols)}
		for _, p := range r.To {
			s.peers = append(s.peers, who(p.Namespaces, p.Pods, p.Nodes, wordsOf(p.Networks), len(p.DomainNames)))
		}
		out.sentences[Egress] = append(out.sentences[Egress], s)
	}
	return out
}

func clusterPorts(list []v1alpha2.ClusterNetworkPolicyProtocol) (out []portWords) {
	for _, x := range list {
		w := portWords{name: x.DestinationNamedPort}
		if w.name != "" {
			w.said++
		}
		is := func(protocol uint8, port *v1alpha2.Port) {
			w.said++
			if w.protocol = protocol; port != nil {
				w.first, w.last = port.Number, port.Number
				if port.Range != nil {
					w.first, w.last = port.Range.Start, port.Range.End
					if port.Number != 0 {
						w.said++
					}
				}
			}
		}
		if x.TCP != nil {
			is(TCP, x.TCP.DestinationPort)
		}
		if x.UDP != nil {
			is(UDP, x.UDP.DestinationPort)
		}
		if x.SCTP != nil {
			is(SCTP, x.SCTP.DestinationPort)
		}
		out = append(out, w)
	}
	return out
}

func adminParty(namespaces *metav1.LabelSelector, pods *v1alpha1.NamespacedPod, nodes *metav1.LabelSelector, networks []string, domains int) party {
	if pods == nil {
		return newParty(namespaces, nil, nil, nodes, networks, domains)
	}
	return newParty(namespaces, &pods.NamespaceSelector, &pods.PodSelector, nodes, networks, domains)
}

func fromAdmin(k *v1alpha1.AdminNetworkPolicy) clusterWide {
	out := clusterWide{
		short: "kanp", kind: "KubernetesAdminNetworkPolicy", name: k.Name, tier: "Admin", priority: k.Spec.Priority,
		subject: adminParty(k.Spec.Subject.Namespaces, k.Spec.Subject.Pods, nil, nil, 0),
	}
	for _, r := range k.Spec.Ingress {
		s := sentence{action: string(r.Action), ports: adminPorts(r.Ports)}
		for _, p := range r.From {
			s.peers = append(s.peers, adminParty(p.Namespaces, p.Pods, nil, nil, 0))
		}
		out.sentences[Ingress] = append(out.sentences[Ingress], s)
	}
	for _, r := range k.Spec.Egress {
		s := sentence{action: string(r.Action), ports: adminPorts(r.Ports)}
		for _, p := range r.To {
			s.peers = append(s.peers, adminParty(p.Namespaces, p.Pods, p.Nodes, wordsOf(p.Networks), len(p.DomainNames)))
		}
		out.sentences[Egress] = append(out.sentences[Egress], s)
	}
	return out
}

// fromBaseline has the one baseline policy, which comes behind the other kind's in its tier.
func fromBaseline(k *v1alpha1.BaselineAdminNetworkPolicy) clusterWide {
	out := clusterWide{
		short: "kbanp", kind: "KubernetesBaselineAdminNetworkPolicy", name: k.Name, tier: "Baseline", priority: 1000,
		subject: adminParty(k.Spec.Subject.Namespaces, k.Spec.Subject.Pods, nil, nil, 0),
	}
	for _, r := range k.Spec.Ingress {
		s := sentence{action: string(r.Action), ports: adminPorts(r.Ports)}
		for _, p := range r.From {
			s.peers = append(s.peers, adminParty(p.Namespaces, p.Pods, nil, nil, 0))
		}
		out.sentences[Ingress] = append(out.sentences[Ingress], s)
	}
	for _, r := range k.Spec.Egress {
		s := sentence{action: string(r.Action), ports: adminPorts(r.Ports)}
		for _, p := range r.To {
			s.peers = append(s.peers, adminParty(p.Namespaces, p.Pods, p.Nodes, wordsOf(p.Networks), 0))
		}
		out.sentences[Egress] = append(out.sentences[Egress], s)
	}
	return out
}

func adminPorts(list *[]v1alpha1.AdminNetworkPolicyPort) (out []portWords) {
	if list == nil {
		return nil
	}
	for _, x := range *list {
		var w portWords
		is := func(protocol string, first, last int32) {
			n, known := map[string]uint8{"": TCP, "TCP": TCP, "UDP": UDP, "SCTP": SCTP}[protocol]
			if known {
				w.said++
			}
			w.protocol, w.first, w.last = n, first, last
		}
		if x.PortNumber != nil {
			is(string(x.PortNumber.Protocol), x.PortNumber.Port, x.PortNumber.Port)
		}
		if x.PortRange != nil {
			is(string(x.PortRange.Protocol), x.PortRange.Start, x.PortRange.End)
		}
		if x.NamedPort != nil {
			w.name = *x.NamedPort
			w.said++
		}
		out = append(out, w)
	}
	return out
}
