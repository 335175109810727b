package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// GlobalNetworkSet gives labels to networks, so that global policies can select them. It belongs to no namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={gnetsets},categories=calico
// +kubebuilder:printcolumn:name="Nets",type=string,JSONPath=`.spec.nets`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GlobalNetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec GlobalNetworkSetSpec `json:"spec"`
}

// GlobalNetworkSetSpec lists the networks.
type GlobalNetworkSetSpec struct {
	// Nets are CIDRs or single addresses, of either family.
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=set
	Nets []string `json:"nets,omitempty"`
}

// Default leaves the set as it is.
func (s *GlobalNetworkSet) Default() {}

// Validate checks the set.
func (s *GlobalNetworkSet) Validate() error {
	var c checker
	c.object(s, subdomainName)
	c.networkSet(s.Labels, s.Spec.Nets)
	return c.err()
}
