package view

import "net/netip"

// EndpointID names a workload endpoint on its node.
type EndpointID struct {
	Orchestrator string `json:"orchestrator"` // "k8s", "cni", …
	Workload     string `json:"workload"`     // "namespace/pod" under Kubernetes, else "namespace/containerID"
	Endpoint     string `json:"endpoint"`     // interface name in the pod: "eth0"
}

// String is orchestrator/workload/endpoint.
func (id EndpointID) String() string {
	return id.Orchestrator + "/" + id.Workload + "/" + id.Endpoint
}

// AddressRequest is what a pod asks for by its annotations and those of its namespace, for when it is wired. What is empty the
// network's configuration decides.
type AddressRequest struct {
	Pools4    []string     `json:"pools4,omitempty"`
	Pools6    []string     `json:"pools6,omitempty"`
	Families  []int        `json:"families,omitempty"` // 4, 6: exactly these
	Fixed     []netip.Addr `json:"fixed,omitempty"`
	Unmanaged []netip.Addr `json:"unmanaged,omitempty"` // used as they are, past IPAM
	Floating  []netip.Addr `json:"floating,omitempty"`
	MAC       string       `json:"mac,omitempty"`
	Wrong     string       `json:"wrong,omitempty"` // why it cannot be given, and what to do
}

// NAT maps an external (floating) address to one of the endpoint's own.
type NAT struct {
	External netip.Addr `json:"external"`
	Internal netip.Addr `json:"internal"`
}

// QoS limits an endpoint. Rates are bits per second, bursts bits, minimal bursts bytes, packet rates packets per second and
// packet bursts packets; 0 is no limit.
type QoS struct {
	IngressBandwidth      uint64 `json:"ingressBandwidth,omitempty"`
	IngressBurst          uint64 `json:"ingressBurst,omitempty"`
	IngressPeakrate       uint64 `json:"ingressPeakrate,omitempty"`
	IngressMinburst       uint64 `json:"ingressMinburst,omitempty"`
	EgressBandwidth       uint64 `json:"egressBandwidth,omitempty"`
	EgressBurst           uint64 `json:"egressBurst,omitempty"`
	EgressPeakrate        uint64 `json:"egressPeakrate,omitempty"`
	EgressMinburst        uint64 `json:"egressMinburst,omitempty"`
	IngressPacketRate     uint64 `json:"ingressPacketRate,omitempty"`
	IngressPacketBurst    uint64 `json:"ingressPacketBurst,omitempty"`
	EgressPacketRate      uint64 `json:"egressPacketRate,omitempty"`
	EgressPacketBurst     uint64 `json:"egressPacketBurst,omitempty"`
	IngressMaxConnections uint64 `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  uint64 `json:"egressMaxConnections,omitempty"`
}

// WorkloadEndpoint is an endpoint of the viewing node with all that felix needs to program it. In confd's view are only those
// with a Peering, and of them ID, Addresses and the names of BGPPeers.
type WorkloadEndpoint struct {
	ID          EndpointID
	UID         string // the pod's UID, empty outside Kubernetes
	ContainerID string
	Interface   string // host side, "cali…"
	MAC         string // of the pod's side, empty if unknown
	Addresses   []netip.Addr
	// PolicyList is the id of what applies to it.
	PolicyList string
	// Incomplete lists what is not known yet ("profile kns.shop"); while it is not empty the endpoint stays closed.
	Incomplete           []string
	AllowSpoofedPrefixes []netip.Prefix
	NATs                 []NAT
	QoS                  *QoS
	Request              *AddressRequest // what the pod asks for; nil if nothing, or if it is not known
	Peering              *Peering        `json:",omitempty"` // set if the pod speaks BGP with its node
}

// Peering is how a pod speaks BGP with its node.
type Peering struct {
	BGPPeers []string // those whose localWorkloadSelector selects it
	Port     uint16   // of the node's speaker
	// Gateways are addresses of the node, on the endpoint's interface alone, that the pod may peer with instead of the node's own.
	Gateways []netip.Addr
}

// Key is the endpoint's id.
func (e WorkloadEndpoint) Key() Key { return Key{KindWorkloadEndpoint, e.ID.String()} }

// HostEndpoint is a host endpoint of the viewing node. It has one policy list for each pass (spec §3.3); an empty id
// means that no policy applies in that pass.
type HostEndpoint struct {
	Name        string
	Interface   string // a name, "*", or empty when ExpectedIPs choose the interface
	ExpectedIPs []netip.Addr
	Normal      string
	Untracked   string
	PreDNAT     string
	Forward     string
	Incomplete  []string
}

// Key is the host endpoint's name.
func (e HostEndpoint) Key() Key { return Key{KindHostEndpoint, e.Name} }
