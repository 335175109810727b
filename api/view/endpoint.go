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

// AddressRequest is how a pod that has no address yet is to get one. Pool names are resolved for the node and namespace.
type AddressRequest struct {
	Pools4 []string     `json:"pools4,omitempty"`
	Pools6 []string     `json:"pools6,omitempty"`
	Fixed  []netip.Addr `json:"fixed,omitempty"`
	MAC    string       `json:"mac,omitempty"`
}

// NAT maps an external (floating) address to one of the endpoint's own.
type NAT struct {
	External netip.Addr `json:"external"`
	Internal netip.Addr `json:"internal"`
}

// QoS limits an endpoint. Rates are bits per second, bursts bits, packet rates packets per second; 0 is no limit.
type QoS struct {
	IngressBandwidth      uint64 `json:"ingressBandwidth,omitempty"`
	IngressBurst          uint64 `json:"ingressBurst,omitempty"`
	EgressBandwidth       uint64 `json:"egressBandwidth,omitempty"`
	EgressBurst           uint64 `json:"egressBurst,omitempty"`
	IngressPacketRate     uint64 `json:"ingressPacketRate,omitempty"`
	EgressPacketRate      uint64 `json:"egressPacketRate,omitempty"`
	IngressMaxConnections uint64 `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  uint64 `json:"egressMaxConnections,omitempty"`
}

// WorkloadEndpoint is an endpoint of the viewing node with all that felix needs to program it.
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
	Request              *AddressRequest // set while the pod has no address
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
