package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// HostEndpoint puts interfaces of a node itself under policy.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={hep,heps},categories=calico
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Interface",type=string,JSONPath=`.spec.interfaceName`
// +kubebuilder:printcolumn:name="IPs",type=string,JSONPath=`.spec.expectedIPs`,priority=1
// +kubebuilder:printcolumn:name="Profiles",type=string,JSONPath=`.spec.profiles`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type HostEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec HostEndpointSpec `json:"spec"`
}

// HostEndpointSpec is the endpoint.
//
// +kubebuilder:validation:XValidation:rule=`size(self.?node.orValue("")) > 0`,message="node is required",fieldPath=".node"
// +kubebuilder:validation:XValidation:rule=`size(self.?interfaceName.orValue("")) > 0 || size(self.?expectedIPs.orValue([])) > 0`,message="interfaceName or expectedIPs is required",fieldPath=".interfaceName"
type HostEndpointSpec struct {
	// Node that has the interface.
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node,omitempty"`
	// InterfaceName is the interface, or * for all that have no endpoint of their own.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^([*]|[a-zA-Z0-9_.-]{0,15})$`
	InterfaceName string `json:"interfaceName,omitempty"`
	// ExpectedIPs are the interface's addresses. They find the interface if no name is given, and they are what
	// selectors in other policies match.
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="must be an address"
	// +listType=set
	ExpectedIPs []string `json:"expectedIPs,omitempty"`
	// Profiles whose rules and labels it takes, in order.
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +listType=set
	Profiles []string `json:"profiles,omitempty"`
	// Ports have names for policies.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=atomic
	Ports []EndpointPort `json:"ports,omitempty"`
}

// Default leaves the endpoint as it is.
func (e *HostEndpoint) Default() {}

// Validate checks the endpoint.
func (e *HostEndpoint) Validate() error {
	var c checker
	c.object(e, subdomainName)
	s, spec := &e.Spec, path("spec")
	if s.Node == "" {
		c.bad(spec.at("node"), nil, "is missing", "name the node that has the interface")
	} else {
		c.name(spec.at("node"), s.Node)
	}
	switch {
	case s.InterfaceName == "" && len(s.ExpectedIPs) == 0:
		c.bad(spec.at("interfaceName"), nil, "is missing, and so is expectedIPs", "write one of them, or interfaceName: \"*\" for all interfaces")
	case s.InterfaceName != "" && s.InterfaceName != "*":
		c.iface(spec.at("interfaceName"), s.InterfaceName)
	}
	for i, ip := range s.ExpectedIPs {
		c.ip(spec.at("expectedIPs").index(i), ip, anyFamily)
	}
	unique(&c, spec.at("expectedIPs"), s.ExpectedIPs)
	for i, name := range s.Profiles {
		c.name(spec.at("profiles").index(i), name)
	}
	unique(&c, spec.at("profiles"), s.Profiles)
	for i, p := range s.Ports {
		c.endpointPort(spec.at("ports").index(i), p.Name, p.Protocol, p.Port)
	}
	return c.err()
}

// endpointPort checks a port of an endpoint.
func (c *checker) endpointPort(at path, name string, protocol Protocol, port uint16) {
	c.portName(at.at("name"), name)
	c.portedProtocol(at.at("protocol"), protocol)
	if port == 0 {
		c.bad(at.at("port"), port, "is not a port", "write a number from 1 to 65535")
	}
}
