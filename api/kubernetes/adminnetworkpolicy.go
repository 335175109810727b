package kubernetes

import (
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
)

// BaselinePriority is the priority of the BaselineAdminNetworkPolicy, which has none of its own: behind all
// ClusterNetworkPolicies of the same tier but those of that priority.
const BaselinePriority = 1000

// AdminNetworkPolicy is an AdminNetworkPolicy as a global one of ours: it says what a ClusterNetworkPolicy of tier Admin says,
// by which Kubernetes has replaced it.
func AdminNetworkPolicy(k *v1alpha1.AdminNetworkPolicy) (*api.GlobalNetworkPolicy, error) {
	c := &v1alpha2.ClusterNetworkPolicy{ObjectMeta: k.ObjectMeta}
	c.Spec = v1alpha2.ClusterNetworkPolicySpec{Tier: v1alpha2.AdminTier, Priority: k.Spec.Priority, Subject: adminSubject(k.Spec.Subject)}
	for _, r := range k.Spec.Ingress {
		c.Spec.Ingress = append(c.Spec.Ingress, adminIngress(r.Name, string(r.Action), r.From, r.Ports))
	}
	for _, r := range k.Spec.Egress {
		o := adminEgress(r.Name, string(r.Action), r.Ports)
		for _, p := range r.To {
			peer := v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: adminPods(p.Pods), Nodes: p.Nodes, Networks: adminNetworks(p.Networks)}
			for _, d := range p.DomainNames {
				peer.DomainNames = append(peer.DomainNames, v1alpha2.DomainName(d))
			}
			o.To = append(o.To, peer)
		}
		c.Spec.Egress = append(c.Spec.Egress, o)
	}
	return ClusterNetworkPolicy(c)
}

// BaselineAdminNetworkPolicy is a BaselineAdminNetworkPolicy as a global one of ours: it says what a ClusterNetworkPolicy of
// tier Baseline says, by which Kubernetes has replaced it.
func BaselineAdminNetworkPolicy(k *v1alpha1.BaselineAdminNetworkPolicy) (*api.GlobalNetworkPolicy, error) {
	c := &v1alpha2.ClusterNetworkPolicy{ObjectMeta: k.ObjectMeta}
	c.Spec = v1alpha2.ClusterNetworkPolicySpec{Tier: v1alpha2.BaselineTier, Priority: BaselinePriority, Subject: adminSubject(k.Spec.Subject)}
	for _, r := range k.Spec.Ingress {
		c.Spec.Ingress = append(c.Spec.Ingress, adminIngress(r.Name, string(r.Action), r.From, r.Ports))
	}
	for _, r := range k.Spec.Egress {
		o := adminEgress(r.Name, string(r.Action), r.Ports)
		for _, p := range r.To {
			o.To = append(o.To, v1alpha2.ClusterNetworkPolicyEgressPeer{
				Namespaces: p.Namespaces, Pods: adminPods(p.Pods), Nodes: p.Nodes, Networks: adminNetworks(p.Networks),
			})
		}
		c.Spec.Egress = append(c.Spec.Egress, o)
	}
	return ClusterNetworkPolicy(c)
}

func adminIngress(name, action string, from []v1alpha1.AdminNetworkPolicyIngressPeer, ports *[]v1alpha1.AdminNetworkPolicyPort) v1alpha2.ClusterNetworkPolicyIngressRule {
	r := v1alpha2.ClusterNetworkPolicyIngressRule{Name: name, Action: adminAction(action), Protocols: adminPorts(ports)}
	for _, p := range from {
		r.From = append(r.From, v1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: p.Namespaces, Pods: adminPods(p.Pods)})
	}
	return r
}

func adminEgress(name, action string, ports *[]v1alpha1.AdminNetworkPolicyPort) v1alpha2.ClusterNetworkPolicyEgressRule {
	return v1alpha2.ClusterNetworkPolicyEgressRule{Name: name, Action: adminAction(action), Protocols: adminPorts(ports)}
}

func adminAction(a string) v1alpha2.ClusterNetworkPolicyRuleAction {
	if a == string(v1alpha1.AdminNetworkPolicyRuleActionAllow) {
		return v1alpha2.ClusterNetworkPolicyRuleActionAccept
	}
	return v1alpha2.ClusterNetworkPolicyRuleAction(a)
}

func adminSubject(s v1alpha1.AdminNetworkPolicySubject) v1alpha2.ClusterNetworkPolicySubject {
	return v1alpha2.ClusterNetworkPolicySubject{Namespaces: s.Namespaces, Pods: adminPods(s.Pods)}
}

func adminPods(p *v1alpha1.NamespacedPod) *v1alpha2.NamespacedPod {
	if p == nil {
		return nil
	}
	return &v1alpha2.NamespacedPod{NamespaceSelector: p.NamespaceSelector, PodSelector: p.PodSelector}
}

func adminNetworks(list []v1alpha1.CIDR) (out []v1alpha2.CIDR) {
	for _, n := range list {
		out = append(out, v1alpha2.CIDR(n))
	}
	return out
}

// adminPorts are ports as protocols. One that does not say exactly one thing becomes one that says nothing.
func adminPorts(ports *[]v1alpha1.AdminNetworkPolicyPort) []v1alpha2.ClusterNetworkPolicyProtocol {
	if ports == nil {
		return nil
	}
	out := make([]v1alpha2.ClusterNetworkPolicyProtocol, len(*ports))
	for i, p := range *ports {
		switch {
		case p.NamedPort != nil && p.PortNumber == nil && p.PortRange == nil:
			out[i].DestinationNamedPort = *p.NamedPort
		case p.NamedPort == nil && p.PortNumber != nil && p.PortRange == nil:
			out[i] = protocolWith(p.PortNumber.Protocol, v1alpha2.Port{Number: p.PortNumber.Port})
		case p.NamedPort == nil && p.PortNumber == nil && p.PortRange != nil:
			out[i] = protocolWith(p.PortRange.Protocol, v1alpha2.Port{Range: &v1alpha2.PortRange{Start: p.PortRange.Start, End: p.PortRange.End}})
		}
	}
	return out
}

// protocolWith is a port of a protocol; of one that is not known it says nothing.
func protocolWith(protocol corev1.Protocol, port v1alpha2.Port) (out v1alpha2.ClusterNetworkPolicyProtocol) {
	switch protocol {
	case corev1.ProtocolTCP, "":
		out.TCP = &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: &port}
	case corev1.ProtocolUDP:
		out.UDP = &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: &port}
	case corev1.ProtocolSCTP:
		out.SCTP = &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: &port}
	}
	return out
}
