package api

// Action is what a matching rule does, or a tier at its end.
type Action string

// The actions.
const (
	Allow Action = "Allow" // accept for this endpoint
	Deny  Action = "Deny"  // drop
	Log   Action = "Log"   // write a kernel log line and go on with the next rule
	Pass  Action = "Pass"  // leave this tier and go on with the next
)

// PolicyType is a direction that a policy decides.
//
// +kubebuilder:validation:Enum=Ingress;Egress
type PolicyType string

// The directions, as seen from the selected endpoint.
const (
	Ingress PolicyType = "Ingress"
	Egress  PolicyType = "Egress"
)

// Rule matches packets and acts on them. All criteria given must match; a rule without any matches every packet.
//
// +kubebuilder:validation:XValidation:rule="!has(self.http) || self.action == 'Allow'",message="http is only for rules with action Allow",fieldPath=".http"
// +kubebuilder:validation:XValidation:rule="!has(self.http) || !has(self.protocol) || (self.protocol == 6 || self.protocol in ['TCP', 'tcp', '6'])",message="http needs protocol TCP, or none",fieldPath=".protocol"
// +kubebuilder:validation:XValidation:rule="!has(self.icmp) || (has(self.protocol) && (self.protocol == 1 || self.protocol == 58 || self.protocol in ['ICMP', 'icmp', '1', 'ICMPv6', 'icmpv6', '58']))",message="icmp needs protocol ICMP or ICMPv6",fieldPath=".icmp"
// +kubebuilder:validation:XValidation:rule="!has(self.ipVersion) || !has(self.protocol) || !(self.ipVersion == 4 ? (self.protocol == 58 || self.protocol in ['ICMPv6', 'icmpv6', '58']) : (self.protocol == 1 || self.protocol in ['ICMP', 'icmp', '1']))",message="protocol ICMP implies ipVersion 4, ICMPv6 implies 6",fieldPath=".ipVersion"
// +kubebuilder:validation:XValidation:rule="!has(self.ipVersion) || !has(self.notProtocol) || !(self.ipVersion == 4 ? (self.notProtocol == 58 || self.notProtocol in ['ICMPv6', 'icmpv6', '58']) : (self.notProtocol == 1 || self.notProtocol in ['ICMP', 'icmp', '1']))",message="notProtocol ICMP implies ipVersion 4, ICMPv6 implies 6",fieldPath=".ipVersion"
// +kubebuilder:validation:XValidation:rule="!has(self.destination) || !has(self.destination.services) || (size(self.destination.?ports.orValue([])) == 0 && size(self.destination.?notPorts.orValue([])) == 0)",message="destination.services already stands for the ports of the service: ports and notPorts cannot be given beside it",fieldPath=".destination"
// +kubebuilder:validation:XValidation:rule="!has(self.source) || !has(self.protocol) || (size(self.source.?ports.orValue([])) == 0 && size(self.source.?notPorts.orValue([])) == 0) || self.protocol in ['TCP', 'tcp', 'UDP', 'udp', 'SCTP', 'sctp', '6', '17', '132'] || self.protocol == 6 || self.protocol == 17 || self.protocol == 132",message="ports need protocol TCP, UDP or SCTP",fieldPath=".source.ports"
// +kubebuilder:validation:XValidation:rule="!has(self.destination) || !has(self.protocol) || (size(self.destination.?ports.orValue([])) == 0 && size(self.destination.?notPorts.orValue([])) == 0) || self.protocol in ['TCP', 'tcp', 'UDP', 'udp', 'SCTP', 'sctp', '6', '17', '132'] || self.protocol == 6 || self.protocol == 17 || self.protocol == 132",message="ports need protocol TCP, UDP or SCTP",fieldPath=".destination.ports"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) || !has(self.source) || !has(self.source.ports) || self.source.ports.all(p, type(p) == string && !p.matches('^[0-9:]+$'))",message="a port number needs protocol TCP, UDP or SCTP",fieldPath=".source.ports"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) || !has(self.source) || !has(self.source.notPorts) || self.source.notPorts.all(p, type(p) == string && !p.matches('^[0-9:]+$'))",message="a port number needs protocol TCP, UDP or SCTP",fieldPath=".source.notPorts"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) || !has(self.destination) || !has(self.destination.ports) || self.destination.ports.all(p, type(p) == string && !p.matches('^[0-9:]+$'))",message="a port number needs protocol TCP, UDP or SCTP",fieldPath=".destination.ports"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) || !has(self.destination) || !has(self.destination.notPorts) || self.destination.notPorts.all(p, type(p) == string && !p.matches('^[0-9:]+$'))",message="a port number needs protocol TCP, UDP or SCTP",fieldPath=".destination.notPorts"
// +kubebuilder:validation:XValidation:rule="!((has(self.source) && has(self.source.nets) && size(self.source.nets) > 0 && self.source.nets[0].contains(':')) || (has(self.source) && has(self.source.notNets) && size(self.source.notNets) > 0 && self.source.notNets[0].contains(':')) || (has(self.destination) && has(self.destination.nets) && size(self.destination.nets) > 0 && self.destination.nets[0].contains(':')) || (has(self.destination) && has(self.destination.notNets) && size(self.destination.notNets) > 0 && self.destination.notNets[0].contains(':'))) || !(self.?ipVersion.orValue(6) == 4 || (has(self.source) && has(self.source.nets) && size(self.source.nets) > 0 && !self.source.nets[0].contains(':')) || (has(self.source) && has(self.source.notNets) && size(self.source.notNets) > 0 && !self.source.notNets[0].contains(':')) || (has(self.destination) && has(self.destination.nets) && size(self.destination.nets) > 0 && !self.destination.nets[0].contains(':')) || (has(self.destination) && has(self.destination.notNets) && size(self.destination.notNets) > 0 && !self.destination.notNets[0].contains(':')))",message="the networks of a rule are all of one family, that of ipVersion: write one rule for IPv4 and one for IPv6"
// +kubebuilder:validation:XValidation:rule="self.?ipVersion.orValue(4) == 4 || !((has(self.source) && has(self.source.nets) && size(self.source.nets) > 0 && !self.source.nets[0].contains(':')) || (has(self.source) && has(self.source.notNets) && size(self.source.notNets) > 0 && !self.source.notNets[0].contains(':')) || (has(self.destination) && has(self.destination.nets) && size(self.destination.nets) > 0 && !self.destination.nets[0].contains(':')) || (has(self.destination) && has(self.destination.notNets) && size(self.destination.notNets) > 0 && !self.destination.notNets[0].contains(':')))",message="the networks are not of the rule's ipVersion",fieldPath=".ipVersion"
type Rule struct {
	// +kubebuilder:validation:Enum=Allow;Deny;Log;Pass
	Action Action `json:"action"`

	// IPVersion limits the rule to one family: 4 or 6.
	// +kubebuilder:validation:Enum=4;6
	IPVersion *int `json:"ipVersion,omitempty"`

	// Protocol matches packets of this protocol.
	Protocol *Protocol `json:"protocol,omitempty"`
	// ICMP matches type and code; it needs protocol ICMP or ICMPv6.
	ICMP *ICMPFields `json:"icmp,omitempty"`
	// NotProtocol matches packets of every other protocol.
	NotProtocol *Protocol `json:"notProtocol,omitempty"`
	// NotICMP matches every other type and code.
	NotICMP *ICMPFields `json:"notICMP,omitempty"`

	// Source says where packets come from.
	Source EntityRule `json:"source,omitzero"`
	// Destination says where packets go to.
	Destination EntityRule `json:"destination,omitzero"`

	// HTTP matches requests. It is enforced by the proxy that speaks policy-sync, not by the kernel.
	HTTP *HTTPMatch `json:"http,omitempty"`

	// Metadata is carried with the rule and has no effect.
	Metadata *RuleMetadata `json:"metadata,omitempty"`
}

// ICMPFields matches an ICMP or ICMPv6 type, and optionally one code of it.
//
// +kubebuilder:validation:XValidation:rule="!has(self.code) || has(self.type)",message="code needs a type",fieldPath=".code"
type ICMPFields struct {
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=254
	Type *int `json:"type,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	Code *int `json:"code,omitempty"`
}

// EntityRule matches one end of a packet's way. Different fields are ANDed; the items of one list are ORed.
//
// +kubebuilder:validation:XValidation:rule="!has(self.selector) || !self.selector.contains('global(')",message="global() is only for namespaceSelector",fieldPath=".selector"
// +kubebuilder:validation:XValidation:rule="!has(self.notSelector) || !self.notSelector.contains('global(')",message="global() is only for namespaceSelector",fieldPath=".notSelector"
// +kubebuilder:validation:XValidation:rule=`!has(self.services) || (size(self.?selector.orValue("")) == 0 && size(self.?notSelector.orValue("")) == 0 && size(self.?namespaceSelector.orValue("")) == 0)`,message="services excludes selector, notSelector and namespaceSelector",fieldPath=".services"
// +kubebuilder:validation:XValidation:rule="!has(self.services) || (size(self.?nets.orValue([])) == 0 && size(self.?notNets.orValue([])) == 0)",message="services excludes nets and notNets",fieldPath=".services"
// +kubebuilder:validation:XValidation:rule="!has(self.services) || !has(self.serviceAccounts)",message="services excludes serviceAccounts",fieldPath=".services"
// +kubebuilder:validation:XValidation:rule="!has(self.nets) || self.nets.filter(n, n.contains(':')).size() in [0, size(self.nets)]",message="the networks of a rule are all of one family: write one rule for IPv4 and one for IPv6",fieldPath=".nets"
// +kubebuilder:validation:XValidation:rule="!has(self.namespaceSelector) || !self.namespaceSelector.contains('global(') || self.namespaceSelector.trim() == 'global()'",message="global() stands alone",fieldPath=".namespaceSelector"
type EntityRule struct {
	// Nets matches addresses inside any of these networks. All networks of a rule are of one family.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=set
	Nets []string `json:"nets,omitempty"`
	// Selector matches endpoints and network sets by label.
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`
	// NamespaceSelector says in which namespaces the selectors look. Without it a namespaced policy looks in its own
	// namespace and a global one everywhere. global(), alone, means endpoints that have no namespace.
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// Services matches the endpoints behind a Kubernetes service.
	Services *ServiceMatch `json:"services,omitempty"`
	// Ports matches any of these ports. Numbers need protocol TCP, UDP or SCTP.
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	Ports []Port `json:"ports,omitempty"`
	// NotNets matches addresses outside all of these networks.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +kubebuilder:validation:items:XValidation:rule="self != '0.0.0.0/0' && self != '::/0'",message="excludes every address, so the rule could never match"
	// +listType=set
	NotNets []string `json:"notNets,omitempty"`
	// NotSelector matches every address that is not of an endpoint it selects, known to us or not.
	// +kubebuilder:validation:MaxLength=1024
	NotSelector string `json:"notSelector,omitempty"`
	// NotPorts matches every other port.
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	NotPorts []Port `json:"notPorts,omitempty"`
	// ServiceAccounts matches pods by the service account they run as.
	ServiceAccounts *ServiceAccountMatch `json:"serviceAccounts,omitempty"`
}

// ServiceMatch names a Kubernetes service.
//
// +kubebuilder:validation:XValidation:rule=`size(self.?name.orValue("")) > 0`,message="a service needs a name",fieldPath=".name"
type ServiceMatch struct {
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// Namespace of the service. A namespaced policy may leave it out and means its own.
	// +kubebuilder:validation:MaxLength=253
	Namespace string `json:"namespace,omitempty"`
}

// ServiceAccountMatch matches service accounts by name and by label; both given, both must match.
type ServiceAccountMatch struct {
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +listType=set
	Names []string `json:"names,omitempty"`
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`
}

// HTTPMatch matches a request with any of the methods and any of the paths; an empty list matches all.
type HTTPMatch struct {
	// +kubebuilder:validation:MaxItems=20
	// +kubebuilder:validation:items:MaxLength=64
	// +listType=set
	Methods []string `json:"methods,omitempty"`
	// +kubebuilder:validation:MaxItems=20
	// +listType=atomic
	Paths []HTTPPath `json:"paths,omitempty"`
}

// HTTPPath matches a path wholly or by its beginning.
//
// +kubebuilder:validation:XValidation:rule=`(size(self.?exact.orValue("")) > 0) != (size(self.?prefix.orValue("")) > 0)`,message="a path is either exact or prefix"
type HTTPPath struct {
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^(/[^?# ]*)?$`
	Exact string `json:"exact,omitempty"`
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^(/[^?# ]*)?$`
	Prefix string `json:"prefix,omitempty"`
}

// RuleMetadata is for people and tools.
type RuleMetadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
}

// EndpointPort names a port of an endpoint, for rules that give ports by name.
type EndpointPort struct {
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9_.-]+$`
	Name string `json:"name"`
	// Protocol is TCP, UDP or SCTP.
	// +kubebuilder:validation:XValidation:rule="self in ['TCP', 'tcp', 'UDP', 'udp', 'SCTP', 'sctp', '6', '17', '132'] || self == 6 || self == 17 || self == 132",message="must be TCP, UDP or SCTP"
	Protocol Protocol `json:"protocol"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port uint16 `json:"port"`
}
