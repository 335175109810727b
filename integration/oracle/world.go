package oracle

import (
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
)

// World is what users wrote, as far as policy is concerned.
type World struct {
	Objects    []api.Object       // ours, of any kind
	Kubernetes []KubernetesPolicy // policies of Kubernetes itself
	// Cluster-wide policies of Kubernetes (policy.networking.k8s.io).
	Cluster  []v1alpha2.ClusterNetworkPolicy
	Admin    []v1alpha1.AdminNetworkPolicy
	Baseline []v1alpha1.BaselineAdminNetworkPolicy
	Services []Service
}

// KubernetesPolicy is a NetworkPolicy of Kubernetes (networking.k8s.io/v1).
type KubernetesPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	// Spec has the fields that the spec of Kubernetes has.
	Spec api.StagedKubernetesNetworkPolicySpec `json:"spec"`
}

// Service is what stands behind a Service of Kubernetes: an EndpointSlice.
type Service struct {
	Name      string       `json:"name"` // namespace/name of the Service
	Addresses []netip.Addr `json:"addresses"`
	Ports     []Port       `json:"ports,omitempty"`
}

// Port is a port of a protocol.
type Port struct {
	Protocol uint8  `json:"protocol"`
	Number   uint16 `json:"number"`
}

// Numbers of protocols that have something of their own.
const (
	ICMP    = 1
	IPIP    = 4
	TCP     = 6
	UDP     = 17
	ICMPv6  = 58
	SCTP    = 132
	UDPLite = 136
)

// Packet is the first packet of a connection, as far as policy can see it.
type Packet struct {
	Source, Destination         netip.Addr // of one family
	Protocol                    uint8
	SourcePort, DestinationPort uint16 // if the protocol has ports
	Type, Code                  uint8  // of ICMP and ICMPv6
}

// V6 tells whether the packet is of IPv6.
func (p Packet) V6() bool { return p.Source.Is6() }

// icmp tells whether the packet is ICMP of its own family.
func (p Packet) icmp() bool {
	if p.V6() {
		return p.Protocol == ICMPv6
	}
	return p.Protocol == ICMP
}

// Direction is the direction of a packet as an endpoint sees it.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota // to the endpoint
	Egress                   // from the endpoint
)

// String is "ingress" or "egress".
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }
