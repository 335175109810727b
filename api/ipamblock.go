package api

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPAMBlock is a block of addresses and who has which. Its name is its CIDR; see BlockName.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Affinity",type=string,JSONPath=`.spec.affinity`
// +kubebuilder:printcolumn:name="ClaimTime",type=date,JSONPath=`.spec.affinityClaimTime`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPAMBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec IPAMBlockSpec `json:"spec"`
}

// IPAMBlockSpec is the block. An address is known by its ordinal: its distance from the block's first address.
type IPAMBlockSpec struct {
	// CIDR is the range of the block.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self).masked() == cidr(self)",message="must be a network with no bits set after its prefix"
	CIDR string `json:"cidr"`
	// Affinity is "host:<node>" or "virtual:load-balancer"; unset when nobody owns the block.
	// +kubebuilder:validation:MaxLength=265
	// +kubebuilder:validation:Pattern=`^(host|virtual):[a-zA-Z0-9._-]+$`
	Affinity *string `json:"affinity,omitempty"`
	// AffinityClaimTime is when the owner claimed the block.
	AffinityClaimTime *metav1.Time `json:"affinityClaimTime,omitempty"`
	// controller-gen cannot say that items may be null; the gen target of the Makefile adds it to the CRD.

	// Allocations has one entry for each ordinal: null if it is free, else an index into Attributes.
	// +listType=atomic
	Allocations []*int `json:"allocations"`
	// Unallocated lists the free ordinals in the order in which they will be handed out.
	// +listType=atomic
	Unallocated []int `json:"unallocated"`
	// Attributes say who has addresses. Equal ones are shared by several ordinals.
	// +listType=atomic
	Attributes []AllocationAttribute `json:"attributes"`
	// SequenceNumber starts at the time of creation in nanoseconds and grows by one with each write.
	// +kubebuilder:default=0
	// +optional
	SequenceNumber uint64 `json:"sequenceNumber"`
	// SequenceNumberForAllocation holds, for an ordinal in use (as a string), the block's sequence number when it was
	// last assigned or released.
	SequenceNumberForAllocation map[string]uint64 `json:"sequenceNumberForAllocation,omitempty"`
	// Deleted marks a block that is about to be removed, where the datastore cannot compare and delete.
	// +optional
	Deleted bool `json:"deleted"`
}

// AllocationAttribute is the owner of addresses, or the mark of their cool-down.
type AllocationAttribute struct {
	// HandleID is the handle under which the address was assigned.
	HandleID *string `json:"handle_id,omitempty"`
	// Owner describes who uses the address: node, timestamp, pod, namespace, type and others.
	Owner map[string]string `json:"secondary,omitempty"`
	// AlternateOwner is who takes over at the end of a live migration.
	AlternateOwner map[string]string `json:"alternateOwnerAttrs,omitempty"`
	// ReleasedAt is when the address was released; with it nothing else is set.
	ReleasedAt *metav1.Time `json:"releasedAt,omitempty"`
}

// BlockName is the name of the block of a range.
func BlockName(cidr netip.Prefix) string { return cidr.Masked().String() }

// NewIPAMBlock is an empty block without affinity: all addresses free, in order.
func NewIPAMBlock(cidr netip.Prefix) *IPAMBlock {
	cidr = cidr.Masked()
	size := 1 << (cidr.Addr().BitLen() - cidr.Bits())
	b := &IPAMBlock{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "IPAMBlock"},
		ObjectMeta: metav1.ObjectMeta{Name: BlockName(cidr)},
		Spec: IPAMBlockSpec{
			CIDR:        cidr.String(),
			Allocations: make([]*int, size),
			Unallocated: make([]int, size),
			Attributes:  []AllocationAttribute{},
		},
	}
	for i := range size {
		b.Spec.Unallocated[i] = i
	}
	return b
}

// Keys of AllocationAttribute.Owner.
const (
	OwnerNode      = "node"
	OwnerTimestamp = "timestamp" // as time.Time prints itself, in UTC
	OwnerPod       = "pod"
	OwnerNamespace = "namespace"
	OwnerType      = "type" // what a tunnel's address is for, or TypeWarmPool
	OwnerService   = "service"
	// OwnerEndpoint is the id of the workload endpoint (orchestrator/namespace/name/interface) that felix made with the
	// address and reports as long as it lives. It is an addition to Calico's keys: an address without it may belong to
	// something that nobody reports.
	OwnerEndpoint = "endpoint"
	// OwnerMachine is the name of the KubeVirt machine that keeps the address.
	OwnerMachine = "vmi-name"
)

// TypeWarmPool is the OwnerType of an address that a node holds ready for its pods.
const TypeWarmPool = "warmPool"

// Default leaves the block as it is.
func (b *IPAMBlock) Default() {}

// Validate checks that the block is what its name says and that its parts agree.
func (b *IPAMBlock) Validate() error {
	var c checker
	c.object(b, anyName)
	s, spec := &b.Spec, path("spec")
	cidr, ok := c.blockCIDR(spec.at("cidr"), s.CIDR)
	if !ok {
		return c.err()
	}
	if b.Name != BlockName(cidr) {
		c.bad("metadata.name", b.Name, "is not the name of block "+s.CIDR, "write name: "+BlockName(cidr))
	}
	if s.Affinity != nil && !affinityForm.MatchString(*s.Affinity) {
		c.bad(spec.at("affinity"), *s.Affinity, "does not name an owner", "write host:<node>, virtual:load-balancer, or leave it out")
	}
	size := 1 << (cidr.Addr().BitLen() - cidr.Bits())
	if len(s.Allocations) != size {
		c.bad(spec.at("allocations"), len(s.Allocations), "is the number of entries, but the block has another number of addresses", fmt.Sprintf("write %d entries", size))
		return c.err()
	}
	for i, index := range s.Allocations {
		if index != nil && (*index < 0 || *index >= len(s.Attributes)) {
			c.bad(spec.at("allocations").index(i), *index, "is not the index of an attribute", "write null, or an index into spec.attributes")
		}
	}
	unique(&c, spec.at("unallocated"), s.Unallocated)
	for i, ordinal := range s.Unallocated {
		switch {
		case ordinal < 0 || ordinal >= size:
			c.bad(spec.at("unallocated").index(i), ordinal, "is outside the block", fmt.Sprintf("write an ordinal from 0 to %d", size-1))
		case s.Allocations[ordinal] != nil:
			c.bad(spec.at("unallocated").index(i), ordinal, "is also allocated", "remove it here, or make its allocation null")
		}
	}
	for _, key := range sortedKeys(s.SequenceNumberForAllocation) {
		if n, err := strconv.Atoi(key); err != nil || n < 0 || n >= size {
			c.bad(spec.at("sequenceNumberForAllocation").key(key), key, "is not an ordinal of the block", "remove it")
		}
	}
	return c.err()
}

var affinityForm = regexp.MustCompile(`^(host|virtual):[a-zA-Z0-9._-]+$`)

// maxBlockBits limits a block to 4096 addresses, as the sizes that pools can have do.
const maxBlockBits = 12

// blockCIDR checks the range of a block.
func (c *checker) blockCIDR(at path, s string) (netip.Prefix, bool) {
	cidr, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		c.bad(at, s, "is not a CIDR", "write the block's range, such as 10.9.0.4/30")
	case cidr != cidr.Masked():
		c.bad(at, s, "has bits set after its prefix", "write "+cidr.Masked().String())
	case cidr.Addr().BitLen()-cidr.Bits() > maxBlockBits:
		c.bad(at, s, "is too large for a block", "write a range of at most 4096 addresses")
	default:
		return cidr, true
	}
	return cidr, false
}
