package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WorkloadEndpoint is an interface of a pod or another workload. In Kubernetes it is made from the Pod.
//
// +kubebuilder:object:root=true
type WorkloadEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec WorkloadEndpointSpec `json:"spec"`
}

// WorkloadEndpointSpec is the endpoint.
type WorkloadEndpointSpec struct {
	// Orchestrator is "k8s", "cni", "libnetwork" or another.
	Orchestrator string `json:"orchestrator,omitempty"`
	// Workload identifies the workload where neither pod nor container does.
	Workload string `json:"workload,omitempty"`
	// Node is where it runs.
	Node string `json:"node,omitempty"`
	// ContainerID is the CNI container id; a late DEL of another container leaves the endpoint alone.
	ContainerID string `json:"containerID,omitempty"`
	// Pod is the pod's name.
	Pod string `json:"pod,omitempty"`
	// Endpoint is the interface's name inside the workload.
	Endpoint string `json:"endpoint,omitempty"`
	// ServiceAccountName is what the pod runs as.
	ServiceAccountName string `json:"serviceAccountName,omitempty"`
	// IPNetworks are its addresses, as /32 or /128.
	IPNetworks []string `json:"ipNetworks,omitempty"`
	// IPNATs map outside addresses to its own.
	IPNATs []IPNAT `json:"ipNATs,omitempty"`
	// IPv4Gateway is the gateway that the workload is told.
	IPv4Gateway string `json:"ipv4Gateway,omitempty"`
	// IPv6Gateway is the gateway that the workload is told.
	IPv6Gateway string `json:"ipv6Gateway,omitempty"`
	// Profiles whose rules and labels it takes, in order.
	Profiles []string `json:"profiles,omitempty"`
	// InterfaceName is the interface on the host's side.
	InterfaceName string `json:"interfaceName,omitempty"`
	// MAC is the Ethernet address on the workload's side.
	MAC string `json:"mac,omitempty"`
	// Ports have names for policies, and host ports.
	Ports []WorkloadEndpointPort `json:"ports,omitempty"`
	// AllowSpoofedSourcePrefixes may be used as source addresses beside its own.
	AllowSpoofedSourcePrefixes []string `json:"allowSpoofedSourcePrefixes,omitempty"`
	// QoSControls limit its traffic.
	QoSControls *QoSControls `json:"qosControls,omitempty"`
}

// WorkloadEndpointPort is a port with a name, or one that the host forwards.
type WorkloadEndpointPort struct {
	Name     string   `json:"name"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
	HostPort uint16   `json:"hostPort"`
	HostIP   string   `json:"hostIP"`
}

// IPNAT maps an outside (floating) address to one of the endpoint's.
type IPNAT struct {
	InternalIP string `json:"internalIP"`
	ExternalIP string `json:"externalIP"`
}

// QoSControls limit an endpoint; 0 is no limit. Bandwidths are in bits per second, bursts in bits, minimal bursts in
// bytes, packet rates in packets per second and packet bursts in packets.
type QoSControls struct {
	IngressBandwidth      int64 `json:"ingressBandwidth,omitempty"`
	IngressBurst          int64 `json:"ingressBurst,omitempty"`
	IngressPeakrate       int64 `json:"ingressPeakrate,omitempty"`
	IngressMinburst       int64 `json:"ingressMinburst,omitempty"`
	EgressBandwidth       int64 `json:"egressBandwidth,omitempty"`
	EgressBurst           int64 `json:"egressBurst,omitempty"`
	EgressPeakrate        int64 `json:"egressPeakrate,omitempty"`
	EgressMinburst        int64 `json:"egressMinburst,omitempty"`
	IngressPacketRate     int64 `json:"ingressPacketRate,omitempty"`
	IngressPacketBurst    int64 `json:"ingressPacketBurst,omitempty"`
	EgressPacketRate      int64 `json:"egressPacketRate,omitempty"`
	EgressPacketBurst     int64 `json:"egressPacketBurst,omitempty"`
	IngressMaxConnections int64 `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  int64 `json:"egressMaxConnections,omitempty"`
	// DSCP is set on packets that leave the cluster.
	DSCP *DSCP `json:"dscp,omitempty"`
}

// Orchestrators that this project knows.
const (
	OrchestratorKubernetes = "k8s"
	OrchestratorCNI        = "cni"
	OrchestratorLibnetwork = "libnetwork"
)

// WorkloadEndpointName is the name of an endpoint, made of where it is and what it belongs to: node, orchestrator,
// workload and interface, joined by dashes, those inside the parts doubled. It fails if a part is missing, or begins or
// ends with a dash, since the name could not be taken apart again.
func WorkloadEndpointName(s WorkloadEndpointSpec) (string, error) {
	var c checker
	name := s.name(&c)
	return name, c.err()
}

// name makes the endpoint's name; it is empty if it cannot be made.
func (s *WorkloadEndpointSpec) name(c *checker) string {
	workload, field := s.workload()
	var name strings.Builder
	for i, part := range []struct{ field, value string }{
		{"node", s.Node}, {"orchestrator", s.Orchestrator}, {field, workload}, {"endpoint", s.Endpoint},
	} {
		switch {
		case part.value == "":
			c.bad(path("spec").at(part.field), nil, "is missing, and the name is made of it", "fill it in")
			return ""
		case strings.HasPrefix(part.value, "-") || strings.HasSuffix(part.value, "-"):
			c.bad(path("spec").at(part.field), part.value, "begins or ends with a dash, which the name cannot have", "choose a name without")
			return ""
		}
		if i > 0 {
			name.WriteByte('-')
		}
		name.WriteString(strings.ReplaceAll(part.value, "-", "--"))
	}
	return name.String()
}

// workload is what identifies the workload on its node, and the field it is in.
func (s *WorkloadEndpointSpec) workload() (value, field string) {
	switch s.Orchestrator {
	case OrchestratorKubernetes:
		return s.Pod, "pod"
	case OrchestratorCNI:
		return s.ContainerID, "containerID"
	case OrchestratorLibnetwork:
		return OrchestratorLibnetwork, "orchestrator"
	}
	return s.Workload, "workload"
}

// ParseWorkloadEndpointName takes the name of an endpoint apart into node, orchestrator, workload and interface.
func ParseWorkloadEndpointName(name string) (node, orchestrator, workload, endpoint string, err error) {
	var parts []string
	start := 0
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++ // a doubled dash belongs to the part
			continue
		}
		parts = append(parts, name[start:i])
		start = i + 1
	}
	parts = append(parts, name[start:])
	if len(parts) != 4 || slices.Contains(parts, "") {
		return "", "", "", "", fmt.Errorf("%q does not name a workload endpoint: write node-orchestrator-workload-interface with dashes inside the parts doubled", name)
	}
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], "--", "-")
	}
	return parts[0], parts[1], parts[2], parts[3], nil
}

// Default gives the endpoint its name.
func (e *WorkloadEndpoint) Default() {
	if e.Name != "" {
		return
	}
	if name, err := WorkloadEndpointName(e.Spec); err == nil {
		e.Name = name
	}
}

// Validate checks the endpoint.
func (e *WorkloadEndpoint) Validate() error {
	var c checker
	c.object(e, subdomainName)
	s, spec := &e.Spec, path("spec")
	if name := s.name(&c); name != "" && e.Name != "" && e.Name != name {
		c.bad("metadata.name", e.Name, "is not the name that the spec makes", "write name: "+name)
	}
	c.optionalName(spec.at("node"), s.Node)
	c.optionalName(spec.at("serviceAccountName"), s.ServiceAccountName)
	if s.InterfaceName == "" {
		c.bad(spec.at("interfaceName"), nil, "is missing", "name the interface on the host")
	} else {
		c.iface(spec.at("interfaceName"), s.InterfaceName)
	}
	c.optionalMAC(spec.at("mac"), s.MAC)
	c.optionalIP(spec.at("ipv4Gateway"), s.IPv4Gateway, ipv4)
	c.optionalIP(spec.at("ipv6Gateway"), s.IPv6Gateway, ipv6)
	for i, name := range s.Profiles {
		c.name(spec.at("profiles").index(i), name)
	}
	unique(&c, spec.at("profiles"), s.Profiles)
	s.checkAddresses(&c, spec)
	for i, p := range s.Ports {
		s.checkPort(&c, spec.at("ports").index(i), p)
	}
	c.nets(spec.at("allowSpoofedSourcePrefixes"), s.AllowSpoofedSourcePrefixes, anyFamily, c.cidr)
	if q := s.QoSControls; q != nil && q.DSCP != nil {
		if _, ok := q.DSCP.Number(); !ok {
			c.bad(spec.at("qosControls").at("dscp"), string(*q.DSCP), "is not a DSCP", "write 0 to 63, or a name such as EF, AF11 or CS3")
		}
	}
	return c.err()
}

func (s *WorkloadEndpointSpec) checkAddresses(c *checker, spec path) {
	var own []netip.Addr
	for i, n := range s.IPNetworks {
		at := spec.at("ipNetworks").index(i)
		if p, ok := c.net(at, n, anyFamily); !ok {
			continue
		} else if !p.IsSingleIP() {
			c.bad(at, n, "has more than one address", "write a /32 or /128")
		} else {
			own = append(own, p.Addr())
		}
	}
	unique(c, spec.at("ipNetworks"), s.IPNetworks)
	for i, nat := range s.IPNATs {
		at := spec.at("ipNATs").index(i)
		internal, ok1 := c.ip(at.at("internalIP"), nat.InternalIP, anyFamily)
		external, ok2 := c.ip(at.at("externalIP"), nat.ExternalIP, anyFamily)
		if ok1 && !slices.Contains(own, internal) {
			c.bad(at.at("internalIP"), nat.InternalIP, "is not one of the endpoint's addresses", "write one of spec.ipNetworks")
		}
		if ok1 && ok2 && familyOf(internal) != familyOf(external) {
			c.bad(at.at("externalIP"), nat.ExternalIP, "is of another family than internalIP", "write an address of that family")
		}
	}
}

func (s *WorkloadEndpointSpec) checkPort(c *checker, at path, p WorkloadEndpointPort) {
	switch {
	case p.Name != "":
		c.portName(at.at("name"), p.Name)
	case p.HostPort == 0:
		c.bad(at.at("name"), nil, "is missing, and so is hostPort", "write one of the two")
	}
	c.portedProtocol(at.at("protocol"), p.Protocol)
	if p.Port == 0 {
		c.bad(at.at("port"), p.Port, "is not a port", "write a number from 1 to 65535")
	}
	c.optionalIP(at.at("hostIP"), p.HostIP, anyFamily)
}
