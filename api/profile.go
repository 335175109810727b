package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Profile gives rules and labels to the endpoints that name it. Its rules count only where no policy decides. Under
// Kubernetes profiles are made from namespaces ("kns.<namespace>") and service accounts ("ksa.<namespace>.<name>").
//
// +kubebuilder:object:root=true
type Profile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec ProfileSpec `json:"spec"`
}

// ProfileSpec is what a profile gives to its endpoints.
type ProfileSpec struct {
	Ingress []Rule `json:"ingress,omitempty"`
	Egress  []Rule `json:"egress,omitempty"`
	// LabelsToApply are labels of every endpoint of the profile, unless the endpoint has its own of that name.
	LabelsToApply map[string]string `json:"labelsToApply,omitempty"`
}

// ProfileDefaultAllow is the name of the built-in profile that allows everything. It cannot be changed.
const ProfileDefaultAllow = "projectcalico-default-allow"

// DefaultAllowProfile makes the built-in profile. It is virtual: no datastore holds it.
func DefaultAllowProfile() *Profile {
	return &Profile{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "Profile"},
		ObjectMeta: metav1.ObjectMeta{Name: ProfileDefaultAllow, ResourceVersion: "1"},
		Spec: ProfileSpec{
			Ingress: []Rule{{Action: Allow}},
			Egress:  []Rule{{Action: Allow}},
		},
	}
}

// Default leaves the profile as it is.
func (p *Profile) Default() {}

// Validate checks the profile.
func (p *Profile) Validate() error {
	var c checker
	c.object(p, subdomainName)
	c.rules("spec.ingress", p.Spec.Ingress, ruleScope{direction: Ingress})
	c.rules("spec.egress", p.Spec.Egress, ruleScope{direction: Egress})
	c.labels("spec.labelsToApply", p.Spec.LabelsToApply)
	return c.err()
}
