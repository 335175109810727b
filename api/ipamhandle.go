package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPAMHandle says in which blocks a handle has addresses. Its name is the handle's id.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="ID",type=string,JSONPath=`.spec.handleID`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPAMHandle struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec IPAMHandleSpec `json:"spec"`
}

// IPAMHandleSpec is the handle.
type IPAMHandleSpec struct {
	// HandleID is the id, which is the name.
	HandleID string `json:"handleID"`
	// Block maps the CIDR of a block to the number of addresses there, which may be too high but never too low.
	Block map[string]int `json:"block"`
	// Deleted marks a handle that is about to be removed, where the datastore cannot compare and delete.
	// +optional
	Deleted bool `json:"deleted"`
}

// NewIPAMHandle is a handle without addresses.
func NewIPAMHandle(id string) *IPAMHandle {
	return &IPAMHandle{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "IPAMHandle"},
		ObjectMeta: metav1.ObjectMeta{Name: id},
		Spec:       IPAMHandleSpec{HandleID: id, Block: map[string]int{}},
	}
}

// Default leaves the handle as it is.
func (h *IPAMHandle) Default() {}

// Validate checks that the handle is what its name says.
func (h *IPAMHandle) Validate() error {
	var c checker
	c.object(h, anyName)
	spec := path("spec")
	if h.Spec.HandleID == "" {
		c.bad(spec.at("handleID"), nil, "is missing", "write the handle's id")
	} else if h.Name != h.Spec.HandleID {
		c.bad("metadata.name", h.Name, "is not the id of the handle", "write name: "+h.Spec.HandleID)
	}
	for _, cidr := range sortedKeys(h.Spec.Block) {
		c.blockCIDR(spec.at("block").key(cidr), cidr)
		if n := h.Spec.Block[cidr]; n < 0 {
			c.bad(spec.at("block").key(cidr), n, "is a negative number of addresses", "write 0 or more, or remove the block")
		}
	}
	return c.err()
}
