package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NetworkSet gives labels to networks, so that the policies of its namespace can select them.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName={netsets},categories=calico
// +kubebuilder:printcolumn:name="Nets",type=string,JSONPath=`.spec.nets`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec NetworkSetSpec `json:"spec"`
}

// NetworkSetSpec lists the networks.
type NetworkSetSpec struct {
	// Nets are CIDRs or single addresses, of either family.
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=set
	Nets []string `json:"nets,omitempty"`
}

// Default leaves the set as it is.
func (s *NetworkSet) Default() {}

// Validate checks the set.
func (s *NetworkSet) Validate() error {
	var c checker
	c.object(s, subdomainName)
	c.networkSet(s.Labels, s.Spec.Nets)
	return c.err()
}

// networkSet checks what both kinds of set have. The namespace label is for the system to give: with it a set would pass
// for one of another namespace.
func (c *checker) networkSet(labels map[string]string, nets []string) {
	if value, ok := labels[LabelNamespace]; ok {
		c.bad(path("metadata.labels").key(LabelNamespace), value, "is a label that the system gives", "remove it; choose another key")
	}
	c.nets("spec.nets", nets, anyFamily, c.cidr)
}
