package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// StagedAction is what a staged policy would do to the policy of its name, were it enforced.
//
// +kubebuilder:validation:Enum=Set;Delete;Learn;Ignore
type StagedAction string

// The staged actions.
const (
	StagedSet    StagedAction = "Set"    // create or replace it
	StagedDelete StagedAction = "Delete" // remove it
	StagedLearn  StagedAction = "Learn"
	StagedIgnore StagedAction = "Ignore"
)

// StagedNetworkPolicy is a NetworkPolicy that is evaluated for reports and never enforced.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName={snp},categories=calico
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Action",type=string,JSONPath=`.spec.stagedAction`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^(([a-z0-9]([-a-z0-9]*[a-z0-9])?)([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)?|(knp|ossg)[.]default[.].+)$')",message="a policy's name is one label or two joined by a dot",fieldPath=".metadata"
type StagedNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec StagedNetworkPolicySpec `json:"spec"`
}

// StagedNetworkPolicySpec is a policy and what would be done with it.
//
// +kubebuilder:validation:XValidation:rule="self.?stagedAction.orValue('Set') != 'Delete' || !(has(self.order) || has(self.ingress) || has(self.egress) || has(self.selector) || has(self.types) || has(self.serviceAccountSelector) || has(self.performanceHints))",message="with stagedAction Delete only tier may be given",fieldPath=".stagedAction"
type StagedNetworkPolicySpec struct {
	// +kubebuilder:default=Set
	StagedAction StagedAction `json:"stagedAction,omitempty"`

	NetworkPolicySpec `json:",inline"`
}

// Default makes the action Set, and fills the policy as a NetworkPolicy's Default does, unless it is to be deleted.
func (p *StagedNetworkPolicy) Default() {
	setDefault(&p.Spec.StagedAction, StagedSet)
	if p.Spec.StagedAction == StagedDelete {
		setDefault(&p.Spec.Tier, TierDefault)
	} else {
		p.Spec.fill()
	}
	setLabel(&p.ObjectMeta, LabelTier, p.Spec.Tier)
}

// Validate checks the policy.
func (p *StagedNetworkPolicy) Validate() error {
	var c checker
	c.object(p, policyName)
	p.Spec.StagedAction.check(&c, "spec")
	if p.Spec.StagedAction == StagedDelete {
		p.Spec.onlyTier(&c, "spec")
	}
	p.Spec.check(&c, "spec", ruleScope{namespaced: true})
	return c.err()
}

func (a StagedAction) check(c *checker, at path) {
	optionalOneOf(c, at.at("stagedAction"), a, StagedSet, StagedDelete, StagedLearn, StagedIgnore)
}
