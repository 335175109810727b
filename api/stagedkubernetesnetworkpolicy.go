package api

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// StagedKubernetesNetworkPolicy is a Kubernetes NetworkPolicy that is evaluated for reports and never enforced.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName={sknp},categories=calico
// +kubebuilder:printcolumn:name="Action",type=string,JSONPath=`.spec.stagedAction`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type StagedKubernetesNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec StagedKubernetesNetworkPolicySpec `json:"spec"`
}

// StagedKubernetesNetworkPolicySpec is the spec of networking.k8s.io/v1 NetworkPolicy and what would be done with it.
//
// +kubebuilder:validation:XValidation:rule="self.?stagedAction.orValue('Set') != 'Delete' || !(has(self.ingress) || has(self.egress) || has(self.policyTypes) || (has(self.podSelector) && (has(self.podSelector.matchLabels) || has(self.podSelector.matchExpressions))))",message="with stagedAction Delete no other field may be given",fieldPath=".stagedAction"
type StagedKubernetesNetworkPolicySpec struct {
	// +kubebuilder:default=Set
	StagedAction StagedAction `json:"stagedAction,omitempty"`
	// PodSelector says which pods of the namespace the policy is for; empty means all.
	PodSelector metav1.LabelSelector `json:"podSelector,omitzero"`
	// Ingress rules allow traffic to the pods.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Ingress []KubernetesIngressRule `json:"ingress,omitempty"`
	// Egress rules allow traffic from the pods.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Egress []KubernetesEgressRule `json:"egress,omitempty"`
	// PolicyTypes are the directions the policy decides.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	PolicyTypes []PolicyType `json:"policyTypes,omitempty"`
}

// KubernetesIngressRule allows traffic from the peers to the ports; an empty list stands for all.
type KubernetesIngressRule struct {
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	Ports []KubernetesPort `json:"ports,omitempty"`
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	From []KubernetesPeer `json:"from,omitempty"`
}

// KubernetesEgressRule allows traffic to the ports of the peers; an empty list stands for all.
type KubernetesEgressRule struct {
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	Ports []KubernetesPort `json:"ports,omitempty"`
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	To []KubernetesPeer `json:"to,omitempty"`
}

// KubernetesPort is a port of the destination, by number or name; EndPort makes it a range. No port means all ports.
// +kubebuilder:validation:XValidation:rule="!has(self.endPort) || (has(self.port) && type(self.port) == int)",message="endPort needs a numeric port",fieldPath=".endPort"
// +kubebuilder:validation:XValidation:rule="!has(self.endPort) || !has(self.port) || type(self.port) != int || self.endPort >= self.port",message="endPort is not below port",fieldPath=".endPort"
// +kubebuilder:validation:XValidation:rule="!has(self.port) || type(self.port) != int || (self.port >= 1 && self.port <= 65535)",message="port is 1 to 65535",fieldPath=".port"
// +kubebuilder:validation:XValidation:rule="!has(self.protocol) || self.protocol in ['TCP', 'tcp', 'UDP', 'udp', 'SCTP', 'sctp', '6', '17', '132'] || self.protocol == 6 || self.protocol == 17 || self.protocol == 132",message="must be TCP, UDP or SCTP",fieldPath=".protocol"
type KubernetesPort struct {
	// Protocol is TCP (also when unset), UDP or SCTP.
	Protocol *Protocol           `json:"protocol,omitempty"`
	Port     *intstr.IntOrString `json:"port,omitempty"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	EndPort *int32 `json:"endPort,omitempty"`
}

// KubernetesPeer is either an address range or pods, by their labels and those of their namespaces.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ipBlock) || !(has(self.podSelector) || has(self.namespaceSelector))",message="ipBlock cannot be combined with selectors: write two peers",fieldPath=".ipBlock"
type KubernetesPeer struct {
	PodSelector       *metav1.LabelSelector `json:"podSelector,omitempty"`
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	IPBlock           *KubernetesIPBlock    `json:"ipBlock,omitempty"`
}

// KubernetesIPBlock is an address range less some parts of it.
type KubernetesIPBlock struct {
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	CIDR string `json:"cidr"`
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=atomic
	Except []string `json:"except,omitempty"`
}

// Default makes the action Set, and the directions what Kubernetes makes them: Ingress, and Egress if there are egress
// rules.
func (p *StagedKubernetesNetworkPolicy) Default() {
	setDefault(&p.Spec.StagedAction, StagedSet)
	if p.Spec.StagedAction == StagedDelete || len(p.Spec.PolicyTypes) > 0 {
		return
	}
	p.Spec.PolicyTypes = []PolicyType{Ingress}
	if len(p.Spec.Egress) > 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, Egress)
	}
}

// Validate checks the policy.
func (p *StagedKubernetesNetworkPolicy) Validate() error {
	var c checker
	c.object(p, subdomainName)
	s, spec := &p.Spec, path("spec")
	s.StagedAction.check(&c, spec)
	if s.StagedAction == StagedDelete {
		notWithDelete(&c, spec.at("podSelector"), len(s.PodSelector.MatchLabels)+len(s.PodSelector.MatchExpressions) > 0)
		notWithDelete(&c, spec.at("ingress"), len(s.Ingress) > 0)
		notWithDelete(&c, spec.at("egress"), len(s.Egress) > 0)
		notWithDelete(&c, spec.at("policyTypes"), len(s.PolicyTypes) > 0)
	}
	c.labelSelector(spec.at("podSelector"), &s.PodSelector)
	for i, t := range s.PolicyTypes {
		oneOf(&c, spec.at("policyTypes").index(i), t, Ingress, Egress)
	}
	unique(&c, spec.at("policyTypes"), s.PolicyTypes)
	for i, r := range s.Ingress {
		c.kubernetesRule(spec.at("ingress").index(i), r.Ports, "from", r.From)
	}
	for i, r := range s.Egress {
		c.kubernetesRule(spec.at("egress").index(i), r.Ports, "to", r.To)
	}
	return c.err()
}

func (c *checker) kubernetesRule(at path, ports []KubernetesPort, name string, peers []KubernetesPeer) {
	for i, p := range ports {
		c.kubernetesPort(at.at("ports").index(i), p)
	}
	for i, p := range peers {
		here := at.at(name).index(i)
		c.labelSelector(here.at("podSelector"), p.PodSelector)
		c.labelSelector(here.at("namespaceSelector"), p.NamespaceSelector)
		if p.IPBlock == nil {
			continue
		}
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			c.bad(here.at("ipBlock"), p.IPBlock.CIDR, "cannot be combined with selectors", "write two peers")
		}
		c.cidr(here.at("ipBlock").at("cidr"), p.IPBlock.CIDR, anyFamily)
		for j, except := range p.IPBlock.Except {
			c.cidr(here.at("ipBlock").at("except").index(j), except, anyFamily)
		}
	}
}

func (c *checker) kubernetesPort(at path, p KubernetesPort) {
	if p.Protocol != nil {
		c.portedProtocol(at.at("protocol"), *p.Protocol)
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		c.bad(at.at("endPort"), *p.EndPort, "is given without port", "write the first port of the range as port")
	case p.Port == nil:
	case p.Port.Type == intstr.String:
		c.portName(at.at("port"), p.Port.StrVal)
		if p.EndPort != nil {
			c.bad(at.at("endPort"), *p.EndPort, "is given beside a named port", "write the first port of the range as a number")
		}
	default:
		between(c, at.at("port"), p.Port.IntVal, 1, 65535)
		if p.EndPort != nil {
			between(c, at.at("endPort"), *p.EndPort, p.Port.IntVal, 65535)
		}
	}
}

// labelSelector checks a Kubernetes selector.
func (c *checker) labelSelector(at path, s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		c.bad(at, s, "is not a label selector: "+err.Error(), "correct matchLabels or matchExpressions")
	}
}
