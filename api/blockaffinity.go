package api

import (
	"fmt"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BlockAffinity says that a block belongs to a node. Its name is "<type>/<node>/<cidr>"; see AffinityName.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={affinity,affinities}
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.spec.state`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BlockAffinity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec BlockAffinitySpec `json:"spec"`
}

// BlockAffinitySpec is the affinity.
type BlockAffinitySpec struct {
	// State of the claim; empty, in old data, means confirmed.
	State AffinityState `json:"state"`
	// Node is the owner.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// Type of the owner; empty means host.
	Type AffinityType `json:"type,omitempty"`
	// CIDR is the block.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self).masked() == cidr(self)",message="must be a network with no bits set after its prefix"
	CIDR string `json:"cidr"`
	// Deleted marks an affinity that is about to be removed, where the datastore cannot compare and delete.
	// +kubebuilder:default=false
	Deleted bool `json:"deleted"`
}

// AffinityState is how far a claim or its release has come.
//
// +kubebuilder:validation:Enum="";pending;confirmed;pendingDeletion
type AffinityState string

// The states: a claim is pending until the block names the owner too, a release is pendingDeletion until it does not.
const (
	AffinityPending         AffinityState = "pending"
	AffinityConfirmed       AffinityState = "confirmed"
	AffinityPendingDeletion AffinityState = "pendingDeletion"
)

// AffinityType is the kind of owner.
//
// +kubebuilder:validation:Enum="";host;virtual
type AffinityType string

// The types: nodes own blocks as hosts, load-balancer services as a virtual node.
const (
	AffinityHost    AffinityType = "host"
	AffinityVirtual AffinityType = "virtual"
)

// VirtualLoadBalancer is the virtual node that owns the blocks of load-balancer services.
const VirtualLoadBalancer = "load-balancer"

// AffinityName is the name of the affinity of a block to a node.
func AffinityName(t AffinityType, node string, cidr netip.Prefix) string {
	if t == "" {
		t = AffinityHost
	}
	return string(t) + "/" + node + "/" + BlockName(cidr)
}

// ParseAffinityName takes the name of an affinity apart.
func ParseAffinityName(name string) (AffinityType, string, netip.Prefix, error) {
	parts := strings.SplitN(name, "/", 3)
	if len(parts) == 3 && (parts[0] == string(AffinityHost) || parts[0] == string(AffinityVirtual)) && parts[1] != "" {
		if cidr, err := netip.ParsePrefix(parts[2]); err == nil && cidr.Masked() == cidr {
			return AffinityType(parts[0]), parts[1], cidr, nil
		}
	}
	return "", "", netip.Prefix{}, fmt.Errorf("%q does not name a block affinity: write host/<node>/<cidr> or virtual/<name>/<cidr>", name)
}

// NewBlockAffinity is the affinity of a block to a node.
func NewBlockAffinity(t AffinityType, node string, cidr netip.Prefix, state AffinityState) *BlockAffinity {
	if t == "" {
		t = AffinityHost
	}
	return &BlockAffinity{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "BlockAffinity"},
		ObjectMeta: metav1.ObjectMeta{Name: AffinityName(t, node, cidr)},
		Spec:       BlockAffinitySpec{State: state, Node: node, Type: t, CIDR: BlockName(cidr)},
	}
}

// Default makes the type host and the state, which old data leaves empty, confirmed.
func (a *BlockAffinity) Default() {
	setDefault(&a.Spec.Type, AffinityHost)
	setDefault(&a.Spec.State, AffinityConfirmed)
}

// Validate checks that the affinity is what its name says.
func (a *BlockAffinity) Validate() error {
	var c checker
	c.object(a, anyName)
	s, spec := &a.Spec, path("spec")
	optionalOneOf(&c, spec.at("state"), s.State, AffinityPending, AffinityConfirmed, AffinityPendingDeletion)
	optionalOneOf(&c, spec.at("type"), s.Type, AffinityHost, AffinityVirtual)
	if s.Node == "" {
		c.bad(spec.at("node"), nil, "is missing", "name the owner")
	} else {
		c.name(spec.at("node"), s.Node)
	}
	if cidr, ok := c.blockCIDR(spec.at("cidr"), s.CIDR); ok && a.Name != AffinityName(s.Type, s.Node, cidr) {
		c.bad("metadata.name", a.Name, "is not the name of this affinity", "write name: "+AffinityName(s.Type, s.Node, cidr))
	}
	return c.err()
}
