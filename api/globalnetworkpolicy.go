package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// GlobalNetworkPolicy decides about the traffic of endpoints in any namespace, and of host endpoints.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={gnp,cgnp},categories=calico
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)?$')",message="a policy's name is one label or two joined by a dot",fieldPath=".metadata"
type GlobalNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec GlobalNetworkPolicySpec `json:"spec"`
}

// GlobalNetworkPolicySpec says what a namespaced policy can, and how it treats host endpoints.
//
// +kubebuilder:validation:XValidation:rule="!has(self.namespaceSelector) || !self.namespaceSelector.contains('global(')",message="a policy's namespaceSelector cannot be global()",fieldPath=".namespaceSelector"
// +kubebuilder:validation:XValidation:rule="!(self.?doNotTrack.orValue(false) && self.?preDNAT.orValue(false))",message="a policy is either doNotTrack or preDNAT",fieldPath=".preDNAT"
// +kubebuilder:validation:XValidation:rule="self.?applyOnForward.orValue(false) || !(self.?doNotTrack.orValue(false) || self.?preDNAT.orValue(false))",message="doNotTrack and preDNAT need applyOnForward",fieldPath=".applyOnForward"
// +kubebuilder:validation:XValidation:rule="!self.?preDNAT.orValue(false) || (size(self.?egress.orValue([])) == 0 && !(has(self.types) && 'Egress' in self.types))",message="a preDNAT policy has no egress side",fieldPath=".preDNAT"
// +kubebuilder:validation:XValidation:rule=`!has(self.ingress) || self.ingress.all(r, !has(r.source) || !has(r.source.services) || size(r.source.services.?namespace.orValue("")) > 0)`,message="a global policy must give the namespace of a service",fieldPath=".ingress"
// +kubebuilder:validation:XValidation:rule=`!has(self.egress) || self.egress.all(r, !has(r.destination) || !has(r.destination.services) || size(r.destination.services.?namespace.orValue("")) > 0)`,message="a global policy must give the namespace of a service",fieldPath=".egress"
type GlobalNetworkPolicySpec struct {
	NetworkPolicySpec `json:",inline"`

	// NamespaceSelector limits the policy to endpoints in namespaces with these labels.
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// DoNotTrack applies the policy before connection tracking, and exempts what it allows from it. Replies need their
	// own rules.
	DoNotTrack bool `json:"doNotTrack,omitempty"`
	// PreDNAT applies the policy before destinations are translated, so that it sees what the client dialled.
	PreDNAT bool `json:"preDNAT,omitempty"`
	// ApplyOnForward applies the policy also to traffic that passes through the host.
	ApplyOnForward bool `json:"applyOnForward,omitempty"`
}

// Default puts the policy into tier default unless it names one, works out the directions, and labels it with its tier.
func (p *GlobalNetworkPolicy) Default() {
	p.Spec.fill()
	setLabel(&p.ObjectMeta, LabelTier, p.Spec.Tier)
}

// Validate checks the policy.
func (p *GlobalNetworkPolicy) Validate() error {
	var c checker
	c.object(p, globalPolicyName)
	p.Spec.check(&c, "spec")
	return c.err()
}

func (s *GlobalNetworkPolicySpec) check(c *checker, at path) {
	s.NetworkPolicySpec.check(c, at, ruleScope{})
	c.selector(at.at("namespaceSelector"), s.NamespaceSelector, false)
	if s.DoNotTrack && s.PreDNAT {
		c.bad(at.at("preDNAT"), true, "cannot be combined with doNotTrack", "write two policies")
	}
	if (s.DoNotTrack || s.PreDNAT) && !s.ApplyOnForward {
		c.bad(at.at("applyOnForward"), false, "is needed for doNotTrack and preDNAT", "write applyOnForward: true")
	}
	if s.PreDNAT && len(s.Egress) > 0 {
		c.bad(at.at("egress"), nil, "is given, but a preDNAT policy sees incoming traffic only", "move the rules to another policy")
	}
	if s.PreDNAT {
		for i, t := range s.Types {
			if t == Egress {
				c.bad(at.at("types").index(i), string(t), "is given, but a preDNAT policy sees incoming traffic only", "write types: [Ingress]")
			}
		}
	}
}

// onlyTier checks that nothing but the tier is given, as stagedAction Delete demands.
func (s *GlobalNetworkPolicySpec) onlyTier(c *checker, at path) {
	s.NetworkPolicySpec.onlyTier(c, at)
	notWithDelete(c, at.at("namespaceSelector"), s.NamespaceSelector != "")
	notWithDelete(c, at.at("doNotTrack"), s.DoNotTrack)
	notWithDelete(c, at.at("preDNAT"), s.PreDNAT)
	notWithDelete(c, at.at("applyOnForward"), s.ApplyOnForward)
}
