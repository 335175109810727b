package generate

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// clusterWide adds a cluster-wide policy of Kubernetes of some kind.
func (g *Generator) clusterWide(i int) {
	name := fmt.Sprintf("wide%d", i)
	switch g.r.IntN(4) {
	case 0:
		k := v1alpha1.AdminNetworkPolicy{ObjectMeta: meta("", name), Spec: v1alpha1.AdminNetworkPolicySpec{Priority: pick[int32](g, 1, 2), Subject: g.adminSubject()}}
		k.APIVersion, k.Kind = v1alpha1.GroupVersion.String(), "AdminNetworkPolicy"
		for range g.r.IntN(3) {
			k.Spec.Ingress = append(k.Spec.Ingress, v1alpha1.AdminNetworkPolicyIngressRule{
				Action: pick[v1alpha1.AdminNetworkPolicyRuleAction](g, "Allow", "Deny", "Pass"), From: g.adminFrom(), Ports: g.adminPorts(),
			})
		}
		for range g.r.IntN(3) {
			r := v1alpha1.AdminNetworkPolicyEgressRule{Action: pick[v1alpha1.AdminNetworkPolicyRuleAction](g, "Allow", "Deny", "Pass"), Ports: g.adminPorts()}
			for range 1 + g.r.IntN(2) {
				peer := v1alpha1.AdminNetworkPolicyEgressPeer{}
				switch {
				case g.chance(5):
					peer.DomainNames = []v1alpha1.DomainName{"kubernetes.io"}
				case g.chance(30):
					for _, n := range g.networks() {
						peer.Networks = append(peer.Networks, v1alpha1.CIDR(n))
					}
				default:
					from := g.adminFrom()[0]
					peer.Namespaces, peer.Pods = from.Namespaces, from.Pods
				}
				r.To = append(r.To, peer)
			}
			k.Spec.Egress = append(k.Spec.Egress, r)
		}
		g.world.Admin = append(g.world.Admin, k)
	case 1:
		k := v1alpha1.BaselineAdminNetworkPolicy{ObjectMeta: meta("", "default"), Spec: v1alpha1.BaselineAdminNetworkPolicySpec{Subject: g.adminSubject()}}
		k.APIVersion, k.Kind = v1alpha1.GroupVersion.String(), "BaselineAdminNetworkPolicy"
		for range g.r.IntN(3) {
			k.Spec.Ingress = append(k.Spec.Ingress, v1alpha1.BaselineAdminNetworkPolicyIngressRule{
				Action: pick[v1alpha1.BaselineAdminNetworkPolicyRuleAction](g, "Allow", "Deny"), From: g.adminFrom(), Ports: g.adminPorts(),
			})
		}
		for range g.r.IntN(3) {
			from := g.adminFrom()[0]
			k.Spec.Egress = append(k.Spec.Egress, v1alpha1.BaselineAdminNetworkPolicyEgressRule{
				Action: pick[v1alpha1.BaselineAdminNetworkPolicyRuleAction](g, "Allow", "Deny"), Ports: g.adminPorts(),
				To: []v1alpha1.BaselineAdminNetworkPolicyEgressPeer{{Namespaces: from.Namespaces, Pods: from.Pods}},
			})
		}
		g.world.Baseline = []v1alpha1.BaselineAdminNetworkPolicy{k}
	default:
		k := v1alpha2.ClusterNetworkPolicy{ObjectMeta: meta("", name), Spec: g.clusterSpec()}
		k.APIVersion, k.Kind = v1alpha2.GroupVersion.String(), "ClusterNetworkPolicy"
		g.world.Cluster = append(g.world.Cluster, k)
	}
}

func (g *Generator) clusterSpec() (s v1alpha2.ClusterNetworkPolicySpec) {
	s.Tier, s.Priority = pick(g, v1alpha2.AdminTier, v1alpha2.BaselineTier), pick[int32](g, 1, 1, 2, 1000)
	if g.chance(50) {
		s.Subject.Namespaces = g.namespaceLabels()
	} else {
		s.Subject.Pods = &v1alpha2.NamespacedPod{NamespaceSelector: *g.namespaceLabels(), PodSelector: *g.labelSelector(keys...)}
	}
	actions := []v1alpha2.ClusterNetworkPolicyRuleAction{"Accept", "Deny", "Pass"}
	for range g.r.IntN(4) {
		r := v1alpha2.ClusterNetworkPolicyIngressRule{Action: pick(g, actions...), Protocols: g.clusterProtocols()}
		for range 1 + g.r.IntN(2) {
			peer := g.clusterPods()
			r.From = append(r.From, v1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: peer.Namespaces, Pods: peer.Pods})
		}
		s.Ingress = append(s.Ingress, r)
	}
	for range g.r.IntN(4) {
		r := v1alpha2.ClusterNetworkPolicyEgressRule{Action: pick(g, actions...), Protocols: g.clusterProtocols()}
		for range 1 + g.r.IntN(2) {
			peer := g.clusterPods()
			switch {
			case g.chance(5):
				peer = v1alpha2.ClusterNetworkPolicyEgressPeer{Nodes: &metav1.LabelSelector{}}
			case g.chance(30):
				peer = v1alpha2.ClusterNetworkPolicyEgressPeer{}
				for _, n := range g.networks() {
					peer.Networks = append(peer.Networks, v1alpha2.CIDR(n))
				}
			}
			r.To = append(r.To, peer)
		}
		s.Egress = append(s.Egress, r)
	}
	return s
}

// clusterPods is a peer that is pods; now and then one that says nothing.
func (g *Generator) clusterPods() (p v1alpha2.ClusterNetworkPolicyEgressPeer) {
	switch {
	case g.chance(3):
	case g.chance(50):
		p.Namespaces = g.namespaceLabels()
	default:
		p.Pods = &v1alpha2.NamespacedPod{NamespaceSelector: *g.namespaceLabels(), PodSelector: *g.labelSelector(keys...)}
	}
	return p
}

func (g *Generator) namespaceLabels() *metav1.LabelSelector {
	if g.chance(40) {
		return &metav1.LabelSelector{}
	}
	return g.labelSelector("team", "projectcalico.org/name")
}

func (g *Generator) networks() []string {
	return pick(g, []string{"0.0.0.0/0"}, []string{"10.65.0.0/30"}, []string{"203.0.113.0/24", "fd00:65::4/126"}, []string{"::/0", "10.65.0.4/31"})
}

func (g *Generator) clusterProtocols() (out []v1alpha2.ClusterNetworkPolicyProtocol) {
	for range g.r.IntN(3) {
		port := &v1alpha2.Port{Number: pick[int32](g, 53, 80, 443, 8080)}
		if g.chance(30) {
			port = &v1alpha2.Port{Range: &v1alpha2.PortRange{Start: port.Number, End: port.Number + pick[int32](g, 1, 100)}}
		}
		var p v1alpha2.ClusterNetworkPolicyProtocol
		switch g.r.IntN(5) {
		case 0:
			p.DestinationNamedPort = pick(g, portNames...)
		case 1:
			p.UDP = &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 2:
			p.SCTP = &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		default:
			p.TCP = &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		out = append(out, p)
	}
	return out
}

func (g *Generator) adminSubject() (s v1alpha1.AdminNetworkPolicySubject) {
	from := g.adminFrom()[0]
	s.Namespaces, s.Pods = from.Namespaces, from.Pods
	return s
}

func (g *Generator) adminFrom() (out []v1alpha1.AdminNetworkPolicyIngressPeer) {
	for range 1 + g.r.IntN(2) {
		if g.chance(50) {
			out = append(out, v1alpha1.AdminNetworkPolicyIngressPeer{Namespaces: g.namespaceLabels()})
		} else {
			out = append(out, v1alpha1.AdminNetworkPolicyIngressPeer{Pods: &v1alpha1.NamespacedPod{NamespaceSelector: *g.namespaceLabels(), PodSelector: *g.labelSelector(keys...)}})
		}
	}
	return out
}

func (g *Generator) adminPorts() *[]v1alpha1.AdminNetworkPolicyPort {
	if g.chance(40) {
		return nil
	}
	protocol, n := pick(g, corev1.ProtocolTCP, "", corev1.ProtocolUDP, corev1.ProtocolSCTP), pick[int32](g, 53, 80, 8080)
	return &[]v1alpha1.AdminNetworkPolicyPort{pick(g,
		v1alpha1.AdminNetworkPolicyPort{PortNumber: &v1alpha1.Port{Protocol: protocol, Port: n}},
		v1alpha1.AdminNetworkPolicyPort{PortRange: &v1alpha1.PortRange{Protocol: protocol, Start: n, End: n + 50}},
		v1alpha1.AdminNetworkPolicyPort{NamedPort: new(pick(g, portNames...))},
		v1alpha1.AdminNetworkPolicyPort{},
	)}
}
