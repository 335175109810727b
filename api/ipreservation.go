package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPReservation keeps addresses from being assigned automatically. Those in use already stay in use.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=calico
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.spec.reservedCIDRs`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPReservation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec IPReservationSpec `json:"spec"`
}

// IPReservationSpec lists what is reserved.
type IPReservationSpec struct {
	// ReservedCIDRs are CIDRs or single addresses.
	// +kubebuilder:validation:MaxItems=10000
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) || isIP(self)",message="must be a CIDR or an address"
	// +listType=set
	ReservedCIDRs []string `json:"reservedCIDRs,omitempty"`
}

// Default leaves the reservation as it is.
func (r *IPReservation) Default() {}

// Validate checks the reservation.
func (r *IPReservation) Validate() error {
	var c checker
	c.object(r, subdomainName)
	c.nets("spec.reservedCIDRs", r.Spec.ReservedCIDRs, anyFamily, c.cidr)
	return c.err()
}
