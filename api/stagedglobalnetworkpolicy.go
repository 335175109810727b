package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// StagedGlobalNetworkPolicy is a GlobalNetworkPolicy that is evaluated for reports and never enforced.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={sgnp},categories=calico
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Action",type=string,JSONPath=`.spec.stagedAction`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)?$')",message="a policy's name is one label or two joined by a dot",fieldPath=".metadata"
type StagedGlobalNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec StagedGlobalNetworkPolicySpec `json:"spec"`
}

// StagedGlobalNetworkPolicySpec is a policy and what would be done with it.
//
// +kubebuilder:validation:XValidation:rule="self.?stagedAction.orValue('Set') != 'Delete' || !(has(self.order) || has(self.ingress) || has(self.egress) || has(self.selector) || has(self.types) || has(self.serviceAccountSelector) || has(self.performanceHints) || has(self.namespaceSelector) || self.?doNotTrack.orValue(false) || self.?preDNAT.orValue(false) || self.?applyOnForward.orValue(false))",message="with stagedAction Delete only tier may be given",fieldPath=".stagedAction"
type StagedGlobalNetworkPolicySpec struct {
	// +kubebuilder:default=Set
	StagedAction StagedAction `json:"stagedAction,omitempty"`

	GlobalNetworkPolicySpec `json:",inline"`
}

// Default makes the action Set, and fills the policy as a GlobalNetworkPolicy's Default does, unless it is to be
// deleted.
func (p *StagedGlobalNetworkPolicy) Default() {
	setDefault(&p.Spec.StagedAction, StagedSet)
	if p.Spec.StagedAction == StagedDelete {
		setDefault(&p.Spec.Tier, TierDefault)
	} else {
		p.Spec.fill()
	}
	setLabel(&p.ObjectMeta, LabelTier, p.Spec.Tier)
}

// Validate checks the policy.
func (p *StagedGlobalNetworkPolicy) Validate() error {
	var c checker
	c.object(p, globalPolicyName)
	p.Spec.StagedAction.check(&c, "spec")
	if p.Spec.StagedAction == StagedDelete {
		p.Spec.onlyTier(&c, "spec")
	}
	p.Spec.check(&c, "spec")
	return c.err()
}
