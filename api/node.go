package api

import (
	"crypto/sha1" //nolint:gosec // see VXLANMAC
	"encoding/base64"
	"fmt"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is a machine of the cluster. In Kubernetes it is the core Node object and annotations on it.
//
// +kubebuilder:object:root=true
type Node struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status,omitzero"`
}

// NodeSpec is how the node is reached.
type NodeSpec struct {
	// BGP holds the node's addresses. It is unset when the node takes no part in the network.
	BGP *NodeBGPSpec `json:"bgp,omitempty"`
	// IPv4VXLANTunnelAddr is the address of the device vxlan.calico.
	IPv4VXLANTunnelAddr string `json:"ipv4VXLANTunnelAddr,omitempty"`
	// VXLANTunnelMACAddr is its Ethernet address. One that is stored wins over the computed one.
	VXLANTunnelMACAddr string `json:"vxlanTunnelMACAddr,omitempty"`
	// IPv6VXLANTunnelAddr is the address of the device vxlan-v6.calico.
	IPv6VXLANTunnelAddr string `json:"ipv6VXLANTunnelAddr,omitempty"`
	// VXLANTunnelMACAddrV6 is its Ethernet address.
	VXLANTunnelMACAddrV6 string `json:"vxlanTunnelMACAddrV6,omitempty"`
	// OrchRefs are the node's names in orchestrators.
	OrchRefs []OrchRef `json:"orchRefs,omitempty"`
	// Wireguard holds the addresses of the WireGuard devices.
	Wireguard *NodeWireguardSpec `json:"wireguard,omitempty"`
	// Addresses are all addresses by which the node is known.
	Addresses []NodeAddress `json:"addresses,omitempty"`
	// Interfaces are the node's own interfaces and their addresses.
	Interfaces []NodeInterface `json:"interfaces,omitempty"`
}

// NodeBGPSpec is what other nodes need to peer with the node and to tunnel to it.
type NodeBGPSpec struct {
	// ASNumber is the node's own AS; unset means that of BGPConfiguration.
	ASNumber *ASNumber `json:"asNumber,omitempty"`
	// IPv4Address is the node's address with the prefix length of its subnet: "10.0.0.7/24".
	IPv4Address string `json:"ipv4Address,omitempty"`
	// IPv6Address is the same for IPv6.
	IPv6Address string `json:"ipv6Address,omitempty"`
	// IPv4IPIPTunnelAddr is the address of the device tunl0.
	IPv4IPIPTunnelAddr string `json:"ipv4IPIPTunnelAddr,omitempty"`
	// RouteReflectorClusterID makes the node a route reflector (RFC 4456). It is written like an IPv4 address.
	RouteReflectorClusterID string `json:"routeReflectorClusterID,omitempty"`
}

// NodeWireguardSpec holds the addresses of the WireGuard devices.
type NodeWireguardSpec struct {
	InterfaceIPv4Address string `json:"interfaceIPv4Address,omitempty"`
	InterfaceIPv6Address string `json:"interfaceIPv6Address,omitempty"`
}

// NodeAddress is one address of a node: an address, or for CalicoNodeIP one with the prefix length of its subnet.
type NodeAddress struct {
	Address string          `json:"address"`
	Type    NodeAddressType `json:"type,omitempty"`
}

// NodeAddressType is where an address comes from.
type NodeAddressType string

// The types of address.
const (
	AddressCalicoNode NodeAddressType = "CalicoNodeIP"
	AddressInternal   NodeAddressType = "InternalIP"
	AddressExternal   NodeAddressType = "ExternalIP"
)

// NodeInterface is an interface of a node.
type NodeInterface struct {
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// OrchRef is the node's name in an orchestrator.
type OrchRef struct {
	NodeName     string `json:"nodeName,omitempty"`
	Orchestrator string `json:"orchestrator"`
}

// Annotations of nodes, which are additions to Calico's.
const (
	// AnnotationIPAMEpoch is the epoch of the node's journal of addresses, a number that only grows.
	AnnotationIPAMEpoch = "muslin.net/ipam-epoch"
	// AnnotationEndpointsAsked is the name of a question to the node: which endpoints has it? kube-controllers puts it before
	// they release addresses that nothing on the node seems to have.
	AnnotationEndpointsAsked = "muslin.net/endpoints-asked"
	// AnnotationEndpointsTold is the name of the last such question that has been answered: felix has reported all its
	// endpoints since it was put, and all of them are stored. It is typha's word.
	AnnotationEndpointsTold = "muslin.net/endpoints-told"
)

// IPAMEpoch is the epoch of the node's journal of addresses; 0 if it has none.
func (n *Node) IPAMEpoch() uint64 {
	epoch, err := strconv.ParseUint(n.Annotations[AnnotationIPAMEpoch], 10, 64)
	if err != nil {
		return 0
	}
	return epoch
}

// NodeStatus is what the node has reported.
type NodeStatus struct {
	// WireguardPublicKey is the IPv4 device's key, base64.
	WireguardPublicKey string `json:"wireguardPublicKey,omitempty"`
	// WireguardPublicKeyV6 is the IPv6 device's key, base64.
	WireguardPublicKeyV6 string `json:"wireguardPublicKeyV6,omitempty"`
	// PodCIDRs are the ranges that Kubernetes gave to the node.
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Conditions are what the node says of itself, and what its kernel lacks of what pools want. An addition to Calico's
	// status, as is the next field.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Kernel is what the node found its kernel able to do; unset while the node has not said.
	Kernel *NodeKernel `json:"kernel,omitempty"`
}

// ConditionConnected is the condition of nodes that tells whether the node's felix is connected to typha; the message names
// the replica. It is typha's word. A node that never had it may or may not be there.
const (
	ConditionConnected = "Connected"
	ReasonConnected    = "Connected"
	ReasonNotConnected = "ConnectionLost"
)

// ConditionBGPPeersReady is the condition of nodes that tells whether all BGP sessions that the node is to have are up; the
// message names those that are not, and why. It is confd's word, and no reason to take the node out of service.
const (
	ConditionBGPPeersReady = "BGPPeersReady"
	ReasonPeersUp          = "PeersUp"
	ReasonNoPeers          = "NoPeers"
	ReasonPeersDown        = "PeersDown"
	ReasonSpeakerAway      = "SpeakerAway"
)

// ConditionDataplaneProgrammed is the condition of nodes that is False while the kernel refuses, for more than a moment, part
// of what felix programs; the message names it. What cannot be programmed is closed, and tried again.
const (
	ConditionDataplaneProgrammed = "DataplaneProgrammed"
	ReasonProgrammingFails       = "ProgrammingFails"
	ReasonSetTooLarge            = "SetTooLarge"
)

// NodeKernel is what a kernel can do.
type NodeKernel struct {
	// Features has a detail for each feature that was tried and works, such as "ipip": "tc BPF". One that is missing does
	// not work.
	Features map[string]string `json:"features"`
}

// Features of kernels that modes of pools ask for.
const (
	FeatureIPIP  = "ipip"
	FeatureVXLAN = "vxlan"
)

// VXLANMAC is the Ethernet address of the node's VXLAN device of a family: the stored one, else 66 and the first five
// bytes of the SHA-1 of the node's name, with "-v6" for IPv6, as in Calico. All nodes must come to the same one, since
// nobody asks for it on the wire.
func (n *Node) VXLANMAC(v6 bool) string {
	stored, seed := n.Spec.VXLANTunnelMACAddr, n.Name
	if v6 {
		stored, seed = n.Spec.VXLANTunnelMACAddrV6, n.Name+"-v6"
	}
	if stored != "" {
		return stored
	}
	sum := sha1.Sum([]byte(seed)) //nolint:gosec // the rule that all nodes compute by, not a matter of security
	return fmt.Sprintf("66:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4])
}

// Default leaves the node as it is.
func (n *Node) Default() {}

// Validate checks the node.
func (n *Node) Validate() error {
	var c checker
	c.object(n, subdomainName)
	s, spec := &n.Spec, path("spec")
	if s.BGP != nil {
		s.BGP.check(&c, spec.at("bgp"))
	}
	c.optionalIP(spec.at("ipv4VXLANTunnelAddr"), s.IPv4VXLANTunnelAddr, ipv4)
	c.optionalIP(spec.at("ipv6VXLANTunnelAddr"), s.IPv6VXLANTunnelAddr, ipv6)
	c.optionalMAC(spec.at("vxlanTunnelMACAddr"), s.VXLANTunnelMACAddr)
	c.optionalMAC(spec.at("vxlanTunnelMACAddrV6"), s.VXLANTunnelMACAddrV6)
	if w := s.Wireguard; w != nil {
		c.optionalIP(spec.at("wireguard").at("interfaceIPv4Address"), w.InterfaceIPv4Address, ipv4)
		c.optionalIP(spec.at("wireguard").at("interfaceIPv6Address"), w.InterfaceIPv6Address, ipv6)
	}
	for i, a := range s.Addresses {
		c.cidr(spec.at("addresses").index(i).at("address"), a.Address, anyFamily)
		optionalOneOf(&c, spec.at("addresses").index(i).at("type"), a.Type, AddressCalicoNode, AddressInternal, AddressExternal)
	}
	for i, iface := range s.Interfaces {
		here := spec.at("interfaces").index(i)
		c.iface(here.at("name"), iface.Name)
		for j, a := range iface.Addresses {
			c.cidr(here.at("addresses").index(j), a, anyFamily)
		}
	}
	for i, r := range s.OrchRefs {
		if r.Orchestrator == "" {
			c.bad(spec.at("orchRefs").index(i).at("orchestrator"), nil, "is missing", "name the orchestrator, such as k8s")
		}
	}
	c.wireguardKey("status.wireguardPublicKey", n.Status.WireguardPublicKey)
	c.wireguardKey("status.wireguardPublicKeyV6", n.Status.WireguardPublicKeyV6)
	for i, cidr := range n.Status.PodCIDRs {
		c.cidr(path("status.podCIDRs").index(i), cidr, anyFamily)
	}
	return c.err()
}

func (b *NodeBGPSpec) check(c *checker, at path) {
	if *b == (NodeBGPSpec{}) {
		c.bad(at, nil, "is empty", "write at least an address, or remove bgp")
	}
	if b.IPv4Address != "" {
		c.cidr(at.at("ipv4Address"), b.IPv4Address, ipv4)
	}
	if b.IPv6Address != "" {
		c.cidr(at.at("ipv6Address"), b.IPv6Address, ipv6)
	}
	c.asNumber(at.at("asNumber"), b.ASNumber)
	c.optionalIP(at.at("ipv4IPIPTunnelAddr"), b.IPv4IPIPTunnelAddr, ipv4)
	c.optionalIP(at.at("routeReflectorClusterID"), b.RouteReflectorClusterID, ipv4)
}

// wireguardKey checks a public key: 32 bytes in base64.
func (c *checker) wireguardKey(at path, key string) {
	if key == "" {
		return
	}
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != 32 {
		c.bad(at, key, "is not a WireGuard key", "write 32 bytes in base64")
	}
}
