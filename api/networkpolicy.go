package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NetworkPolicy decides about the traffic of the endpoints it selects in its own namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName={cnp,caliconetworkpolicy},categories=calico
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^(([a-z0-9]([-a-z0-9]*[a-z0-9])?)([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)?|(knp|ossg)[.]default[.].+)$')",message="a policy's name is one label or two joined by a dot",fieldPath=".metadata"
type NetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec NetworkPolicySpec `json:"spec"`
}

// NetworkPolicySpec is what a policy says. Endpoints are judged tier by tier, in each tier policy by policy, in each
// policy rule by rule; the first rule that matches and decides ends it.
//
// +kubebuilder:validation:XValidation:rule="!has(self.selector) || !self.selector.contains('global(')",message="global() is only for namespaceSelector",fieldPath=".selector"
// +kubebuilder:validation:XValidation:rule="!has(self.serviceAccountSelector) || !self.serviceAccountSelector.contains('global(')",message="global() is only for namespaceSelector",fieldPath=".serviceAccountSelector"
// +kubebuilder:validation:XValidation:rule="!has(self.egress) || self.egress.all(r, !has(r.http))",message="http is only for ingress rules",fieldPath=".egress"
// +kubebuilder:validation:XValidation:rule="!has(self.egress) || self.egress.all(r, !has(r.source) || !has(r.source.services))",message="egress rules take services in their destination only",fieldPath=".egress"
// +kubebuilder:validation:XValidation:rule="!has(self.ingress) || self.ingress.all(r, !has(r.destination) || !has(r.destination.services))",message="ingress rules take services in their source only",fieldPath=".ingress"
type NetworkPolicySpec struct {
	// Tier that the policy belongs to; it must exist.
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Tier string `json:"tier,omitempty"`
	// Order within the tier, lowest first; without it the policy comes last. Equal ones go by name.
	Order *float64 `json:"order,omitempty"`
	// Ingress rules judge packets to the endpoint.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Ingress []Rule `json:"ingress,omitempty"`
	// Egress rules judge packets from the endpoint.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Egress []Rule `json:"egress,omitempty"`
	// Selector says which endpoints the policy is for; empty means all.
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`
	// Types are the directions the policy decides. Left empty they follow from the rules: Egress alone if only egress
	// rules are given, both if both are, Ingress otherwise.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	Types []PolicyType `json:"types,omitempty"`
	// ServiceAccountSelector limits the policy to pods whose service account has these labels.
	// +kubebuilder:validation:MaxLength=1024
	ServiceAccountSelector string `json:"serviceAccountSelector,omitempty"`
	// PerformanceHints change speed, never meaning.
	// +kubebuilder:validation:MaxItems=1
	// +listType=set
	PerformanceHints []PolicyPerformanceHint `json:"performanceHints,omitempty"`
}

// PolicyPerformanceHint tells the computation something that it cannot know.
//
// +kubebuilder:validation:Enum=AssumeNeededOnEveryNode
type PolicyPerformanceHint string

// AssumeNeededOnEveryNode has the policy and its sets ready on nodes before the first endpoint that needs them.
const AssumeNeededOnEveryNode PolicyPerformanceHint = "AssumeNeededOnEveryNode"

// Default puts the policy into tier default unless it names one, works out the directions, and labels it with its tier.
func (p *NetworkPolicy) Default() {
	p.Spec.fill()
	setLabel(&p.ObjectMeta, LabelTier, p.Spec.Tier)
}

// Validate checks the policy.
func (p *NetworkPolicy) Validate() error {
	var c checker
	c.object(p, policyName)
	p.Spec.check(&c, "spec", ruleScope{namespaced: true})
	return c.err()
}

func (s *NetworkPolicySpec) fill() {
	setDefault(&s.Tier, TierDefault)
	if len(s.Types) > 0 {
		return
	}
	if len(s.Ingress) > 0 || len(s.Egress) == 0 {
		s.Types = append(s.Types, Ingress)
	}
	if len(s.Egress) > 0 {
		s.Types = append(s.Types, Egress)
	}
}

func (s *NetworkPolicySpec) check(c *checker, at path, scope ruleScope) {
	if s.Tier != "" {
		labelName(c, at.at("tier"), s.Tier)
	}
	c.selector(at.at("selector"), s.Selector, false)
	c.selector(at.at("serviceAccountSelector"), s.ServiceAccountSelector, false)
	for i, t := range s.Types {
		oneOf(c, at.at("types").index(i), t, Ingress, Egress)
	}
	unique(c, at.at("types"), s.Types)
	for i, h := range s.PerformanceHints {
		oneOf(c, at.at("performanceHints").index(i), h, AssumeNeededOnEveryNode)
	}
	unique(c, at.at("performanceHints"), s.PerformanceHints)
	scope.direction = Ingress
	c.rules(at.at("ingress"), s.Ingress, scope)
	scope.direction = Egress
	c.rules(at.at("egress"), s.Egress, scope)
}

// onlyTier checks that nothing but the tier is given, as stagedAction Delete demands.
func (s *NetworkPolicySpec) onlyTier(c *checker, at path) {
	for _, field := range []struct {
		name  string
		given bool
	}{
		{"order", s.Order != nil},
		{"selector", s.Selector != ""},
		{"serviceAccountSelector", s.ServiceAccountSelector != ""},
		{"types", len(s.Types) > 0},
		{"ingress", len(s.Ingress) > 0},
		{"egress", len(s.Egress) > 0},
		{"performanceHints", len(s.PerformanceHints) > 0},
	} {
		notWithDelete(c, at.at(field.name), field.given)
	}
}

func notWithDelete(c *checker, at path, given bool) {
	if given {
		c.bad(at, nil, "is given beside stagedAction Delete", "remove it: only the tier may be given")
	}
}
