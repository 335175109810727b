package api

import (
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IPPool is a range of addresses for workloads and tunnels, and how packets to it travel between nodes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={ipp,ipps},categories=calico
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="VXLAN",type=string,JSONPath=`.spec.vxlanMode`
// +kubebuilder:printcolumn:name="IPIP",type=string,JSONPath=`.spec.ipipMode`
// +kubebuilder:printcolumn:name="NAT",type=boolean,JSONPath=`.spec.natOutgoing`
// +kubebuilder:printcolumn:name="Allocatable",type=string,JSONPath=`.status.conditions[?(@.type=='Allocatable')].status`
// +kubebuilder:printcolumn:name="Disabled",type=boolean,JSONPath=`.spec.disabled`,priority=1
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.nodeSelector`,priority=1
// +kubebuilder:printcolumn:name="Sends",type=string,JSONPath=`.status.transport.send`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec   IPPoolSpec    `json:"spec"`
	Status *IPPoolStatus `json:"status,omitempty"`
}

// IPPoolSpec describes a pool.
//
// +kubebuilder:validation:XValidation:rule="isCIDR(self.cidr) && cidr(self.cidr).masked() == cidr(self.cidr)",message="cidr must be a network with no bits set after its prefix",fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !(cidr('169.254.0.0/16').containsCIDR(cidr(self.cidr)) || cidr('fe80::/10').containsCIDR(cidr(self.cidr)) || cidr(self.cidr).containsCIDR(cidr('169.254.0.0/16')) || cidr(self.cidr).containsCIDR(cidr('fe80::/10')))",message="cidr must not touch the link-local ranges 169.254.0.0/16 and fe80::/10",fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || self.?blockSize.orValue(0) == 0 || (cidr(self.cidr).ip().family() == 4 ? (self.blockSize >= 20 && self.blockSize <= 32) : (self.blockSize >= 116 && self.blockSize <= 128))",message="blockSize is 20 to 32 for IPv4 and 116 to 128 for IPv6",fieldPath=".blockSize"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || self.?disabled.orValue(false) || cidr(self.cidr).prefixLength() <= (self.?blockSize.orValue(0) != 0 ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122))",message="the pool is smaller than one block",fieldPath=".blockSize"
// +kubebuilder:validation:XValidation:rule="(!has(self.ipipMode) || self.ipipMode == 'Never') || (!has(self.vxlanMode) || self.vxlanMode == 'Never')",message="a pool uses ipipMode or vxlanMode, not both",fieldPath=".vxlanMode"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 4 || (!has(self.ipipMode) || self.ipipMode == 'Never')",message="IP-in-IP carries IPv4 only",fieldPath=".ipipMode"
// +kubebuilder:validation:XValidation:rule="!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || size(self.allowedUses) == 1",message="allowedUses LoadBalancer cannot be mixed with others",fieldPath=".allowedUses"
// +kubebuilder:validation:XValidation:rule="!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || ((!has(self.ipipMode) || self.ipipMode == 'Never') && (!has(self.vxlanMode) || self.vxlanMode == 'Never'))",message="a LoadBalancer pool cannot use ipipMode or vxlanMode",fieldPath=".allowedUses"
// +kubebuilder:validation:XValidation:rule="!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || !self.?disableBGPExport.orValue(false)",message="a LoadBalancer pool cannot set disableBGPExport",fieldPath=".disableBGPExport"
// +kubebuilder:validation:XValidation:rule="!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || !has(self.nodeSelector) || self.nodeSelector == 'all()'",message="a LoadBalancer pool needs nodeSelector all()",fieldPath=".nodeSelector"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.allowedUses) || !('LoadBalancer' in oldSelf.allowedUses) || (has(self.allowedUses) && 'LoadBalancer' in self.allowedUses)",message="a LoadBalancer pool cannot be turned into another use",fieldPath=".allowedUses"
// +kubebuilder:validation:XValidation:rule=`!has(self.allowedUses) || !('Tunnel' in self.allowedUses) || size(self.?namespaceSelector.orValue("")) == 0`,message="namespaceSelector cannot be combined with allowedUses Tunnel",fieldPath=".namespaceSelector"
// +kubebuilder:validation:XValidation:rule="!has(self.nodeSelector) || !self.nodeSelector.contains('global(')",message="global() selects no node",fieldPath=".nodeSelector"
// +kubebuilder:validation:XValidation:rule="!has(self.namespaceSelector) || !self.namespaceSelector.contains('global(')",message="global() selects no namespace",fieldPath=".namespaceSelector"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !isCIDR(oldSelf.cidr) || (self.?blockSize.orValue(0) != 0 ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122)) == (oldSelf.?blockSize.orValue(0) != 0 ? oldSelf.blockSize : (cidr(oldSelf.cidr).ip().family() == 4 ? 26 : 122))",message="blockSize cannot be changed",fieldPath=".blockSize"
type IPPoolSpec struct {
	// CIDR is the pool's range. It cannot be changed.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="self == oldSelf || (isCIDR(self) && isCIDR(oldSelf) && cidr(self) == cidr(oldSelf) && self == string(cidr(self)))",message="cidr cannot be changed"
	CIDR string `json:"cidr"`
	// VXLANMode says when packets between nodes are carried in VXLAN.
	VXLANMode VXLANMode `json:"vxlanMode,omitempty"`
	// IPIPMode says when packets between nodes are carried in IP-in-IP.
	IPIPMode IPIPMode `json:"ipipMode,omitempty"`
	// NATOutgoing masquerades packets from the pool to destinations outside every pool.
	NATOutgoing bool `json:"natOutgoing,omitempty"`
	// Disabled stops new allocations; what is allocated goes on working.
	Disabled bool `json:"disabled,omitempty"`
	// DisableBGPExport keeps the pool's routes out of BGP.
	DisableBGPExport bool `json:"disableBGPExport,omitempty"`
	// BlockSize is the prefix length of the blocks that nodes take from the pool. It cannot be changed.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	BlockSize int `json:"blockSize,omitempty"`
	// NodeSelector says which nodes may take addresses from the pool.
	// +kubebuilder:default="all()"
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
	// NamespaceSelector says for pods of which namespaces; empty means all.
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// AllowedUses says what the addresses may be used for.
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	AllowedUses []IPPoolUse `json:"allowedUses,omitempty"`
	// AssignmentMode Manual keeps the pool for those who ask for it by name.
	// +kubebuilder:default=Automatic
	AssignmentMode *AssignmentMode `json:"assignmentMode,omitempty"`
}

// VXLANMode says when packets between nodes are carried in VXLAN (RFC 7348).
//
// +kubebuilder:validation:Enum=Never;Always;CrossSubnet
type VXLANMode string

// The VXLAN modes. CrossSubnet tunnels only between nodes of different subnets.
const (
	VXLANNever       VXLANMode = "Never"
	VXLANAlways      VXLANMode = "Always"
	VXLANCrossSubnet VXLANMode = "CrossSubnet"
)

// IPIPMode says when packets between nodes are carried in IP-in-IP (RFC 2003).
//
// +kubebuilder:validation:Enum=Never;Always;CrossSubnet
type IPIPMode string

// The IP-in-IP modes. CrossSubnet tunnels only between nodes of different subnets.
const (
	IPIPNever       IPIPMode = "Never"
	IPIPAlways      IPIPMode = "Always"
	IPIPCrossSubnet IPIPMode = "CrossSubnet"
)

// IPPoolUse is something that a pool's addresses may be used for.
//
// +kubebuilder:validation:Enum=Workload;Tunnel;LoadBalancer
type IPPoolUse string

// The uses.
const (
	UseWorkload     IPPoolUse = "Workload"
	UseTunnel       IPPoolUse = "Tunnel"
	UseLoadBalancer IPPoolUse = "LoadBalancer"
)

// AssignmentMode says whether a pool is used without being asked for.
//
// +kubebuilder:validation:Enum=Automatic;Manual
type AssignmentMode string

// The assignment modes.
const (
	AssignAutomatic AssignmentMode = "Automatic"
	AssignManual    AssignmentMode = "Manual"
)

// IPPoolStatus is what the pool controller found.
type IPPoolStatus struct {
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Transport is how nodes carry packets to the pool's addresses now. It is an addition to Calico's status.
	Transport *PoolTransport `json:"transport,omitempty"`
}

// PoolTransport is how nodes carry packets to a pool's addresses now. It differs from the pool's mode while that changes,
// and is what a typha that starts in the middle of a change goes on from.
type PoolTransport struct {
	// Send is how packets are sent between nodes; with CrossSubnet only to nodes outside the sender's subnet.
	Send        Encapsulation `json:"send"`
	CrossSubnet bool          `json:"crossSubnet,omitempty"`
	// Receive lists the ways in which some node may still send, all of which nodes accept.
	// +listType=set
	Receive []Encapsulation `json:"receive"`
}

// Encapsulation is a way in which packets travel between nodes.
//
// +kubebuilder:validation:Enum=None;IPIP;VXLAN
type Encapsulation string

// The encapsulations.
const (
	EncapsulationNone  Encapsulation = "None"
	EncapsulationIPIP  Encapsulation = "IPIP"
	EncapsulationVXLAN Encapsulation = "VXLAN"
)

// ConditionAllocatable is the condition that tells whether addresses may be taken from a pool; its reasons follow.
const (
	ConditionAllocatable = "Allocatable"

	ReasonOK           = "OK"
	ReasonCIDROverlap  = "CIDROverlap"
	ReasonTerminating  = "Terminating"
	ReasonPoolDisabled = "PoolDisabled"
)

// ConditionDataplaneSupported is the condition, of pools and of nodes, that is False where a pool's mode asks for what a
// node's kernel lacks; otherwise it is absent. Its reasons follow.
const (
	ConditionDataplaneSupported = "DataplaneSupported"

	ReasonKernelLacksIPIP  = "KernelLacksIPIP"
	ReasonKernelLacksVXLAN = "KernelLacksVXLAN"
)

// IPPoolFinalizer keeps a pool until its block affinities are released, where kube-controllers do that.
const IPPoolFinalizer = "projectcalico.org/ippool-finalizer"

// Block sizes of pools that do not say: prefix lengths.
const (
	DefaultBlockSize4 = 26
	DefaultBlockSize6 = 122
)

// Prefix is the pool's range; it is invalid if the text is.
func (p *IPPool) Prefix() netip.Prefix {
	prefix, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix.Masked()
}

// EffectiveBlockSize is the prefix length of the pool's blocks.
func (p *IPPool) EffectiveBlockSize() int {
	switch {
	case p.Spec.BlockSize != 0:
		return p.Spec.BlockSize
	case p.Prefix().Addr().Is4():
		return DefaultBlockSize4
	default:
		return DefaultBlockSize6
	}
}

// Allows tells whether the pool's addresses may be used for something.
func (p *IPPool) Allows(use IPPoolUse) bool { return slices.Contains(p.effectiveUses(), use) }

// effectiveUses are the uses that hold if none are given. A pool for chosen namespaces cannot serve tunnels, which
// belong to none.
func (p *IPPool) effectiveUses() []IPPoolUse {
	switch {
	case len(p.Spec.AllowedUses) > 0:
		return p.Spec.AllowedUses
	case p.Spec.NamespaceSelector != "":
		return []IPPoolUse{UseWorkload}
	default:
		return []IPPoolUse{UseWorkload, UseTunnel}
	}
}

// Default fills what is not set.
func (p *IPPool) Default() {
	s := &p.Spec
	setDefault(&s.IPIPMode, IPIPNever)
	setDefault(&s.VXLANMode, VXLANNever)
	setDefault(&s.NodeSelector, "all()")
	if p.Prefix().IsValid() {
		s.BlockSize = p.EffectiveBlockSize()
	}
	s.AllowedUses = p.effectiveUses()
	if s.AssignmentMode == nil {
		s.AssignmentMode = new(AssignAutomatic)
	}
}

// Validate checks the pool.
func (p *IPPool) Validate() error {
	var c checker
	c.object(p, subdomainName)
	s, spec := &p.Spec, path("spec")
	optionalOneOf(&c, spec.at("ipipMode"), s.IPIPMode, IPIPNever, IPIPAlways, IPIPCrossSubnet)
	optionalOneOf(&c, spec.at("vxlanMode"), s.VXLANMode, VXLANNever, VXLANAlways, VXLANCrossSubnet)
	if s.tunnelsIPIP() && s.tunnelsVXLAN() {
		c.bad(spec.at("vxlanMode"), string(s.VXLANMode), "cannot be combined with ipipMode "+string(s.IPIPMode), "write Never for one of the two")
	}
	if s.AssignmentMode != nil {
		oneOf(&c, spec.at("assignmentMode"), *s.AssignmentMode, AssignAutomatic, AssignManual)
	}
	c.selector(spec.at("nodeSelector"), s.NodeSelector, false)
	c.selector(spec.at("namespaceSelector"), s.NamespaceSelector, false)
	p.checkRange(&c, spec)
	p.checkUses(&c, spec)
	return c.err()
}

func (s *IPPoolSpec) tunnelsIPIP() bool  { return s.IPIPMode != "" && s.IPIPMode != IPIPNever }
func (s *IPPoolSpec) tunnelsVXLAN() bool { return s.VXLANMode != "" && s.VXLANMode != VXLANNever }

// linkLocal are the ranges that no pool may touch: they never leave a link.
var linkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")}

func (p *IPPool) checkRange(c *checker, spec path) {
	s, at := &p.Spec, spec.at("cidr")
	if s.CIDR == "" {
		c.bad(at, nil, "is missing", "write the pool's range, such as 192.168.0.0/16")
		return
	}
	prefix, err := netip.ParsePrefix(s.CIDR)
	switch {
	case err != nil:
		c.bad(at, s.CIDR, "is not a CIDR", "write it like 192.168.0.0/16 or fd00:10::/64")
		return
	case prefix != prefix.Masked():
		c.bad(at, s.CIDR, "has bits set after its prefix", "write "+prefix.Masked().String())
		return
	}
	for _, reserved := range linkLocal {
		if prefix.Overlaps(reserved) {
			c.bad(at, s.CIDR, "touches the link-local range "+reserved.String(), "choose a range outside it")
		}
	}
	low, high := 20, 32
	if prefix.Addr().Is6() {
		low, high = 116, 128
		if s.tunnelsIPIP() {
			c.bad(spec.at("ipipMode"), string(s.IPIPMode), "is for IPv4 pools only", "write ipipMode: Never; vxlanMode carries IPv6")
		}
	}
	if size := p.EffectiveBlockSize(); size < low || size > high {
		c.bad(spec.at("blockSize"), size, "is out of range for "+familyOf(prefix.Addr()).String()+" pools", fmt.Sprintf("write a prefix length from %d to %d", low, high))
	} else if prefix.Bits() > size && !s.Disabled {
		c.bad(spec.at("blockSize"), size, "is larger than the pool "+s.CIDR, fmt.Sprintf("write a blockSize from %d to %d, or a larger cidr", max(prefix.Bits(), low), high))
	}
}

func (p *IPPool) checkUses(c *checker, spec path) {
	s, at := &p.Spec, spec.at("allowedUses")
	for i, use := range s.AllowedUses {
		oneOf(c, at.index(i), use, UseWorkload, UseTunnel, UseLoadBalancer)
	}
	unique(c, at, s.AllowedUses)
	if p.Allows(UseTunnel) && s.NamespaceSelector != "" {
		c.bad(spec.at("namespaceSelector"), s.NamespaceSelector, "cannot be combined with use Tunnel, since tunnels belong to no namespace", "write allowedUses: [Workload]")
	}
	if !p.Allows(UseLoadBalancer) {
		return
	}
	if len(s.AllowedUses) > 1 {
		c.bad(at, fmt.Sprint(s.AllowedUses), "mixes LoadBalancer with other uses", "make a pool of its own for LoadBalancer")
	}
	if s.tunnelsIPIP() {
		c.bad(spec.at("ipipMode"), string(s.IPIPMode), "is not for LoadBalancer pools", "write ipipMode: Never")
	}
	if s.tunnelsVXLAN() {
		c.bad(spec.at("vxlanMode"), string(s.VXLANMode), "is not for LoadBalancer pools", "write vxlanMode: Never")
	}
	if s.DisableBGPExport {
		c.bad(spec.at("disableBGPExport"), true, "is not for LoadBalancer pools", "write disableBGPExport: false")
	}
	if s.NodeSelector != "" && s.NodeSelector != "all()" {
		c.bad(spec.at("nodeSelector"), s.NodeSelector, "is not for LoadBalancer pools, whose addresses belong to no node", "write nodeSelector: all()")
	}
}

// validateUpdate keeps the range and the size of the blocks, from which addresses are taken already.
func (p *IPPool) validateUpdate(c *checker, old Object) {
	was := old.(*IPPool)
	// A stored spelling that is not the canonical one may be put right, and nothing else.
	if same := p.Prefix() == was.Prefix() && p.Spec.CIDR == p.Prefix().String(); p.Spec.CIDR != was.Spec.CIDR && !same {
		c.bad("spec.cidr", p.Spec.CIDR, "cannot be changed from "+was.Spec.CIDR, "make a new pool, disable this one, and restart its pods")
	}
	if p.EffectiveBlockSize() != was.EffectiveBlockSize() {
		c.bad("spec.blockSize", p.EffectiveBlockSize(), fmt.Sprintf("cannot be changed from %d", was.EffectiveBlockSize()), "make a new pool of another range, disable this one, and restart its pods")
	}
	if was.Allows(UseLoadBalancer) && !p.Allows(UseLoadBalancer) {
		c.bad("spec.allowedUses", fmt.Sprint(p.Spec.AllowedUses), "cannot be changed from LoadBalancer", "make a new pool for the other use")
	}
}
