package api

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Tier groups policies. Tiers are evaluated in order; what no policy of a tier decides, although some applies, gets the
// tier's default action.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=calico
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Order",type=number,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="DefaultAction",type=string,JSONPath=`.spec.defaultAction`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.conditions[?(@.type=='Ready')].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",message="a tier's name is one label of at most 63 characters, without dots",fieldPath=".metadata"
// +kubebuilder:validation:XValidation:rule="self.metadata.name != 'default' || (self.spec.?order.orValue(1000000.0) == 1000000.0 && self.spec.?defaultAction.orValue('Deny') == 'Deny')",message="tier default keeps order 1000000 and defaultAction Deny",fieldPath=".metadata"
// +kubebuilder:validation:XValidation:rule=`self.metadata.name != 'kube-admin' || (self.spec.?order.orValue(0.0) == 1000.0 && self.spec.?defaultAction.orValue("") == 'Pass')`,message="tier kube-admin keeps order 1000 and defaultAction Pass",fieldPath=".metadata"
// +kubebuilder:validation:XValidation:rule=`self.metadata.name != 'kube-baseline' || (self.spec.?order.orValue(0.0) == 10000000.0 && self.spec.?defaultAction.orValue("") == 'Pass')`,message="tier kube-baseline keeps order 10000000 and defaultAction Pass",fieldPath=".metadata"
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec   TierSpec   `json:"spec"`
	Status TierStatus `json:"status,omitzero"`
}

// TierSpec places a tier.
type TierSpec struct {
	// Order among the tiers, lowest first; without it 1,000,000. Equal ones go by name.
	Order *float64 `json:"order,omitempty"`
	// DefaultAction ends the tier: Deny or Pass.
	// +kubebuilder:default=Deny
	// +kubebuilder:validation:Enum=Deny;Pass
	DefaultAction *Action `json:"defaultAction,omitempty"`
}

// TierStatus is what the tier controller found.
type TierStatus struct {
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ConditionPoliciesValid is the condition of tiers with policies that came from where nobody validated them and do not make
// sense. They fail closed; the message names them, and says what is wrong. A tier without such policies does not have it.
const (
	ConditionPoliciesValid = "PoliciesValid"
	ReasonInvalidPolicies  = "InvalidPolicies"
)

// The built-in tiers. They exist in every cluster, keep their order and action, and cannot be deleted.
const (
	TierKubeAdmin    = "kube-admin"
	TierDefault      = "default"
	TierKubeBaseline = "kube-baseline"
)

// The orders of the built-in tiers. A tier without an order has that of the default tier.
const (
	OrderKubeAdmin    float64 = 1_000
	OrderDefault      float64 = 1_000_000
	OrderKubeBaseline float64 = 10_000_000
)

// TierFinalizer keeps a tier while policies are in it, where kube-controllers guard that.
const TierFinalizer = "projectcalico.org/tier-controller"

// builtinTier gives the fixed properties of a built-in tier.
func builtinTier(name string) (order float64, action Action, ok bool) {
	switch name {
	case TierKubeAdmin:
		return OrderKubeAdmin, Pass, true
	case TierDefault:
		return OrderDefault, Deny, true
	case TierKubeBaseline:
		return OrderKubeBaseline, Pass, true
	}
	return 0, "", false
}

// IsBuiltinTier tells whether a tier exists in every cluster.
func IsBuiltinTier(name string) bool {
	_, _, ok := builtinTier(name)
	return ok
}

// BuiltinTiers makes the built-in tiers, in their order.
func BuiltinTiers() []*Tier {
	var tiers []*Tier
	for _, name := range []string{TierKubeAdmin, TierDefault, TierKubeBaseline} {
		t := &Tier{
			TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "Tier"},
			ObjectMeta: metav1.ObjectMeta{Name: name},
		}
		t.Default()
		tiers = append(tiers, t)
	}
	return tiers
}

// EffectiveOrder is the tier's order, that of the default tier if it has none.
func (t *Tier) EffectiveOrder() float64 {
	if t.Spec.Order == nil {
		return OrderDefault
	}
	return *t.Spec.Order
}

// EffectiveAction is the tier's default action, Deny if it has none.
func (t *Tier) EffectiveAction() Action {
	if t.Spec.DefaultAction == nil {
		return Deny
	}
	return *t.Spec.DefaultAction
}

// Default makes the action Deny, and gives a built-in tier its own order and action.
func (t *Tier) Default() {
	order, action, builtin := builtinTier(t.Name)
	if !builtin {
		action = Deny
	} else if t.Spec.Order == nil {
		t.Spec.Order = new(order)
	}
	if t.Spec.DefaultAction == nil {
		t.Spec.DefaultAction = new(action)
	}
}

// Validate checks the tier. The order and action of a built-in one are fixed.
func (t *Tier) Validate() error {
	var c checker
	c.object(t, labelName)
	order, action := path("spec.order"), path("spec.defaultAction")
	if t.Spec.DefaultAction != nil {
		oneOf(&c, action, *t.Spec.DefaultAction, Deny, Pass)
	}
	if fixedOrder, fixedAction, ok := builtinTier(t.Name); ok {
		if t.EffectiveOrder() != fixedOrder {
			c.bad(order, t.EffectiveOrder(), "is not the order of the built-in tier "+t.Name+", which is fixed", fmt.Sprintf("write order: %.0f", fixedOrder))
		}
		if t.EffectiveAction() != fixedAction {
			c.bad(action, string(t.EffectiveAction()), "is not the action of the built-in tier "+t.Name+", which is fixed", "write defaultAction: "+string(fixedAction))
		}
	}
	return c.err()
}
