package api

import (
	"math"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPConfiguration configures BGP: "default" for the cluster, "node.<name>" for what one node does differently. A node's
// object may set listenPort, logSeverityScreen, and prefixAdvertisements with their communities.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={bgpconfig,bgpconfigs},categories=calico
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="LogSeverity",type=string,JSONPath=`.spec.logSeverityScreen`
// +kubebuilder:printcolumn:name="MeshEnabled",type=boolean,JSONPath=`.spec.nodeToNodeMeshEnabled`
// +kubebuilder:printcolumn:name="ASNumber",type=string,JSONPath=`.spec.asNumber`
// +kubebuilder:printcolumn:name="Reflection",type=string,JSONPath=`.status.reflection.message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.startsWith('node.') || !(has(self.spec.asNumber) || has(self.spec.nodeToNodeMeshEnabled) || has(self.spec.nodeMeshPassword) || has(self.spec.nodeMeshMaxRestartTime) || has(self.spec.nodeMeshHoldTime) || has(self.spec.nodeMeshFailureDetectionMode) || has(self.spec.bfd) || has(self.spec.routeReflectors) || has(self.spec.serviceClusterIPs) || has(self.spec.serviceExternalIPs) || has(self.spec.serviceLoadBalancerIPs))",message="asNumber, the mesh, BFD, reflectors and the service addresses are set in the object named default only",fieldPath=".spec"
type BGPConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec   BGPConfigurationSpec    `json:"spec"`
	Status *BGPConfigurationStatus `json:"status,omitempty"`
}

// BGPConfigurationSpec is the configuration.
//
// +kubebuilder:validation:XValidation:rule="self.?nodeToNodeMeshEnabled.orValue(true) || !has(self.nodeMeshPassword)",message="nodeMeshPassword needs the mesh",fieldPath=".nodeMeshPassword"
// +kubebuilder:validation:XValidation:rule="self.?nodeToNodeMeshEnabled.orValue(true) || !has(self.nodeMeshMaxRestartTime)",message="nodeMeshMaxRestartTime needs the mesh",fieldPath=".nodeMeshMaxRestartTime"
// +kubebuilder:validation:XValidation:rule="size(self.?communities.orValue([])) == 0 || size(self.?prefixAdvertisements.orValue([])) > 0",message="communities are given for prefixAdvertisements, of which there are none",fieldPath=".communities"
// +kubebuilder:validation:XValidation:rule=`self.?localWorkloadPeeringIPV4.orValue("") == "" || (isIP(self.localWorkloadPeeringIPV4) && ip(self.localWorkloadPeeringIPV4).family() == 4)`,message="must be an IPv4 address",fieldPath=".localWorkloadPeeringIPV4"
// +kubebuilder:validation:XValidation:rule=`self.?localWorkloadPeeringIPV6.orValue("") == "" || (isIP(self.localWorkloadPeeringIPV6) && ip(self.localWorkloadPeeringIPV6).family() == 6)`,message="must be an IPv6 address",fieldPath=".localWorkloadPeeringIPV6"
// +kubebuilder:validation:XValidation:rule="!has(self.asNumber) || !string(self.asNumber).matches('^[0.]+$')",message="there is no AS 0",fieldPath=".asNumber"
// +kubebuilder:validation:XValidation:rule="!has(self.nodeMeshHoldTime) || (duration(self.nodeMeshHoldTime) >= duration('3s') && duration(self.nodeMeshHoldTime) <= duration('65535s'))",message="is not a hold time of BGP: write 3s to 65535s: 90s is common",fieldPath=".nodeMeshHoldTime"
type BGPConfigurationSpec struct {
	// LogSeverityScreen is how much the BGP components log.
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeverityScreen string `json:"logSeverityScreen,omitempty"`
	// NodeToNodeMeshEnabled has every node peer with every other. Unset means true.
	NodeToNodeMeshEnabled *bool `json:"nodeToNodeMeshEnabled,omitempty"`
	// ASNumber is the AS of nodes that have none of their own. Unset means 64512.
	ASNumber *ASNumber `json:"asNumber,omitempty"`
	// ServiceLoadBalancerIPs are the ranges in which addresses of load-balancer services are announced.
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ServiceLoadBalancerIPs []ServiceIPBlock `json:"serviceLoadBalancerIPs,omitempty"`
	// ServiceExternalIPs are the ranges in which external addresses of services are announced.
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ServiceExternalIPs []ServiceIPBlock `json:"serviceExternalIPs,omitempty"`
	// ServiceClusterIPs are the ranges in which cluster addresses of services are announced.
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ServiceClusterIPs []ServiceIPBlock `json:"serviceClusterIPs,omitempty"`
	// ServiceLoadBalancerAggregation Disabled announces the addresses of load-balancer services one by one. Unset means
	// Enabled.
	// +kubebuilder:validation:Enum=Enabled;Disabled
	ServiceLoadBalancerAggregation *string `json:"serviceLoadBalancerAggregation,omitempty"`
	// Communities give names to community values, for PrefixAdvertisements.
	// +kubebuilder:validation:MaxItems=500
	// +listType=map
	// +listMapKey=name
	Communities []Community `json:"communities,omitempty"`
	// PrefixAdvertisements tag the routes inside a range with communities.
	// +kubebuilder:validation:MaxItems=500
	// +listType=atomic
	PrefixAdvertisements []PrefixAdvertisement `json:"prefixAdvertisements,omitempty"`
	// ListenPort is the TCP port of BGP. Unset means 179.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	ListenPort uint16 `json:"listenPort,omitempty"`
	// NodeMeshPassword protects all sessions of the mesh.
	NodeMeshPassword *BGPPassword `json:"nodeMeshPassword,omitempty"`
	// NodeMeshMaxRestartTime is the graceful-restart time of the mesh. Unset means 120s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	NodeMeshMaxRestartTime *metav1.Duration `json:"nodeMeshMaxRestartTime,omitempty"`
	// BindMode says which addresses BGP listens on. Unset means None.
	// +kubebuilder:validation:Enum=None;NodeIP
	BindMode *BindMode `json:"bindMode,omitempty"`
	// IgnoredInterfaces are left out of the directly connected routes; * stands for any characters.
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MaxLength=15
	// +kubebuilder:validation:items:Pattern=`^[a-zA-Z0-9_.*-]{1,15}$`
	// +kubebuilder:validation:items:XValidation:rule="self != '*'",message="* alone would ignore every interface"
	// +listType=set
	IgnoredInterfaces []string `json:"ignoredInterfaces,omitempty"`
	// LocalWorkloadPeeringIPV4 is the address that pods peer with.
	// +kubebuilder:validation:MaxLength=15
	LocalWorkloadPeeringIPV4 string `json:"localWorkloadPeeringIPV4,omitempty"`
	// LocalWorkloadPeeringIPV6 is the address that pods peer with.
	// +kubebuilder:validation:MaxLength=45
	LocalWorkloadPeeringIPV6 string `json:"localWorkloadPeeringIPV6,omitempty"`
	// ProgramClusterRoutes is accepted for compatibility: felix programs every route. It complements the field of that
	// name in FelixConfiguration. Unset means EnabledNoEncapOnly.
	ProgramClusterRoutes *ProgramClusterRoutes `json:"programClusterRoutes,omitempty"`
	// IPv4NormalRoutePriority is the metric of workload routes; it equals Felix's. Unset means 1024.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv4NormalRoutePriority *int `json:"ipv4NormalRoutePriority,omitempty"`
	// IPv6NormalRoutePriority is the metric of workload routes; it equals Felix's. Unset means 1024.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv6NormalRoutePriority *int `json:"ipv6NormalRoutePriority,omitempty"`
	// NodeMeshHoldTime is the hold time of the mesh, like BGPPeer's holdTime. Unset means 240s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	NodeMeshHoldTime *metav1.Duration `json:"nodeMeshHoldTime,omitempty"`
	// NodeMeshFailureDetectionMode says whether BFD watches the peers of the mesh. Unset means None.
	NodeMeshFailureDetectionMode *FailureDetectionMode `json:"nodeMeshFailureDetectionMode,omitempty"`
	// BFD are the parameters of BFD for the mesh, and for peerings that set none of their own.
	BFD *BFD `json:"bfd,omitempty"`
	// RouteReflectors has route reflectors chosen among the nodes.
	RouteReflectors *RouteReflectors `json:"routeReflectors,omitempty"`
}

// RouteReflectors says how nodes become route reflectors (RFC 4456) for the others, which then need no mesh.
type RouteReflectors struct {
	// Mode says who chooses. Unset means Manual.
	Mode ReflectorMode `json:"mode,omitempty"`
	// MinNodes is how many nodes there must be; with fewer the mesh stays. Unset means 50.
	// +kubebuilder:validation:Minimum=1
	MinNodes *int32 `json:"minNodes,omitempty"`
	// Count is how many reflectors there are. Unset means 3.
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=16
	Count *int32 `json:"count,omitempty"`
	// NodeSelector selects the nodes that may become reflectors. Unset means all.
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
}

// ReflectorMode says who chooses the route reflectors.
//
// +kubebuilder:validation:Enum=Manual;Auto
type ReflectorMode string

// The modes: whoever writes routeReflectorClusterID into Nodes, or the controller, which leaves such Nodes alone.
const (
	ReflectorsManual ReflectorMode = "Manual"
	ReflectorsAuto   ReflectorMode = "Auto"
)

// BGPConfigurationStatus is what has become of a BGPConfiguration. An addition to Calico's. kube-controllers alone writes it.
type BGPConfigurationStatus struct {
	// Reflection is what stands in for the full mesh now; unset means nothing does. Nodes go by it, and not by what the
	// spec asks for: it changes step by step.
	Reflection *Reflection `json:"reflection,omitempty"`
}

// Reflection says which of the sessions between nodes there are.
type Reflection struct {
	// Mesh has every node peer with every other, if nodeToNodeMeshEnabled does. Otherwise there are sessions with the
	// Reflectors alone.
	Mesh bool `json:"mesh"`
	// Reflectors are the nodes, by name, that peer with every node and pass on what they learn.
	// +listType=atomic
	Reflectors []string `json:"reflectors,omitempty"`
	// Message says why it is as it is, for people.
	Message string `json:"message,omitempty"`
}

// What fields of RouteReflectors mean when they are not set.
const (
	DefaultReflectorMinNodes = 50
	DefaultReflectorCount    = 3
)

// BindMode says which addresses BGP listens on.
type BindMode string

// The bind modes: every address, or the node's only.
const (
	BindNone   BindMode = "None"
	BindNodeIP BindMode = "NodeIP"
)

// ProgramClusterRoutes says who writes routes to remote blocks.
//
// +kubebuilder:validation:Enum=Disabled;Enabled;EnabledIPIPOnly;EnabledNoEncapOnly
type ProgramClusterRoutes string

// The values.
const (
	ProgramNone        ProgramClusterRoutes = "Disabled"
	ProgramAll         ProgramClusterRoutes = "Enabled"
	ProgramIPIPOnly    ProgramClusterRoutes = "EnabledIPIPOnly"
	ProgramNoEncapOnly ProgramClusterRoutes = "EnabledNoEncapOnly"
)

// ServiceIPBlock is a range of service addresses.
type ServiceIPBlock struct {
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:XValidation:rule=`self == "" || isIP(self) || (isCIDR(self) && cidr(self).masked() == cidr(self))`,message="must be a CIDR with no bits set after its prefix"
	CIDR string `json:"cidr,omitempty"`
}

// Community gives a name to a community value.
type Community struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name  string         `json:"name"`
	Value CommunityValue `json:"value"`
}

// PrefixAdvertisement tags the routes inside a range.
type PrefixAdvertisement struct {
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:XValidation:rule="isIP(self) || (isCIDR(self) && cidr(self).masked() == cidr(self))",message="must be a CIDR with no bits set after its prefix"
	CIDR string `json:"cidr"`
	// Communities are names from the same object, or values.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=atomic
	Communities []string `json:"communities"`
}

// DefaultASNumber is the AS of nodes if nothing else is said.
const DefaultASNumber ASNumber = 64512

// What other fields of BGPConfiguration mean when they are not set.
const (
	DefaultBGPPort       = 179
	DefaultRoutePriority = 1024
)

// Default fills what is not set in the object for the cluster. One for a node stays as it is: a default there would
// overrule what the cluster's says.
func (b *BGPConfiguration) Default() {
	if b.Name != DefaultName {
		return
	}
	setDefault(&b.Spec.LogSeverityScreen, "Info")
	if b.Spec.ServiceLoadBalancerAggregation == nil {
		b.Spec.ServiceLoadBalancerAggregation = new("Enabled")
	}
}

// MeshEnabled tells whether every node peers with every other.
func (s *BGPConfigurationSpec) MeshEnabled() bool {
	return s.NodeToNodeMeshEnabled == nil || *s.NodeToNodeMeshEnabled
}

// logSeverities are the levels of BGP and felix, in any case.
var logSeverities = []string{"Trace", "Debug", "Info", "Warning", "Error", "Fatal"}

// Validate checks the configuration.
func (b *BGPConfiguration) Validate() error {
	var c checker
	c.object(b, subdomainName)
	s, spec := &b.Spec, path("spec")
	c.choice(spec.at("logSeverityScreen"), s.LogSeverityScreen, logSeverities)
	if b.Name != DefaultName {
		s.checkNodeOnly(&c, spec)
	}
	c.asNumber(spec.at("asNumber"), s.ASNumber)
	if !s.MeshEnabled() {
		if s.NodeMeshPassword != nil {
			c.bad(spec.at("nodeMeshPassword"), nil, "is given, but the mesh is off", "remove it, or write nodeToNodeMeshEnabled: true")
		}
		if s.NodeMeshMaxRestartTime != nil {
			c.bad(spec.at("nodeMeshMaxRestartTime"), s.NodeMeshMaxRestartTime.Duration, "is given, but the mesh is off", "remove it, or write nodeToNodeMeshEnabled: true")
		}
	}
	c.password(spec.at("nodeMeshPassword"), s.NodeMeshPassword)
	c.duration(spec.at("nodeMeshMaxRestartTime"), s.NodeMeshMaxRestartTime)
	c.holdTime(spec.at("nodeMeshHoldTime"), s.NodeMeshHoldTime)
	c.detection(spec, "nodeMeshFailureDetectionMode", s.NodeMeshFailureDetectionMode)
	c.bfd(spec.at("bfd"), s.BFD)
	s.RouteReflectors.check(&c, spec.at("routeReflectors"))
	if s.ServiceLoadBalancerAggregation != nil {
		oneOf(&c, spec.at("serviceLoadBalancerAggregation"), *s.ServiceLoadBalancerAggregation, "Enabled", "Disabled")
	}
	if s.BindMode != nil {
		oneOf(&c, spec.at("bindMode"), *s.BindMode, BindNone, BindNodeIP)
	}
	if s.ProgramClusterRoutes != nil {
		oneOf(&c, spec.at("programClusterRoutes"), *s.ProgramClusterRoutes, ProgramNone, ProgramAll, ProgramIPIPOnly, ProgramNoEncapOnly)
	}
	for i, name := range s.IgnoredInterfaces {
		if name == "*" || !interfaceGlob.MatchString(name) {
			c.bad(spec.at("ignoredInterfaces").index(i), name, "is not a pattern of some interfaces' names", "write 1 to 15 letters, digits, _ . - and * for any characters; * alone would be all")
		}
	}
	unique(&c, spec.at("ignoredInterfaces"), s.IgnoredInterfaces)
	c.optionalIP(spec.at("localWorkloadPeeringIPV4"), s.LocalWorkloadPeeringIPV4, ipv4)
	c.optionalIP(spec.at("localWorkloadPeeringIPV6"), s.LocalWorkloadPeeringIPV6, ipv6)
	if s.IPv4NormalRoutePriority != nil {
		between(&c, spec.at("ipv4NormalRoutePriority"), *s.IPv4NormalRoutePriority, 1, maxPriority)
	}
	if s.IPv6NormalRoutePriority != nil {
		between(&c, spec.at("ipv6NormalRoutePriority"), *s.IPv6NormalRoutePriority, 1, maxPriority)
	}
	for _, list := range s.serviceLists() {
		for i, block := range list.blocks {
			if block.CIDR != "" {
				c.net(spec.at(list.name).index(i).at("cidr"), block.CIDR, anyFamily)
			}
		}
	}
	s.checkCommunities(&c, spec)
	return c.err()
}

// serviceList is one of the lists of service addresses.
//
// +kubebuilder:object:generate=false
type serviceList struct {
	name   string
	blocks []ServiceIPBlock
}

func (s *BGPConfigurationSpec) serviceLists() []serviceList {
	return []serviceList{
		{"serviceClusterIPs", s.ServiceClusterIPs},
		{"serviceExternalIPs", s.ServiceExternalIPs},
		{"serviceLoadBalancerIPs", s.ServiceLoadBalancerIPs},
	}
}

func (r *RouteReflectors) check(c *checker, at path) {
	if r == nil {
		return
	}
	optionalOneOf(c, at.at("mode"), r.Mode, ReflectorsManual, ReflectorsAuto)
	if r.MinNodes != nil {
		between(c, at.at("minNodes"), *r.MinNodes, 1, math.MaxInt32)
	}
	if r.Count != nil {
		between(c, at.at("count"), *r.Count, 2, 16)
	}
	c.selector(at.at("nodeSelector"), r.NodeSelector, false)
}

// checkNodeOnly checks that an object which is not the cluster's sets nothing that only the cluster's can.
func (s *BGPConfigurationSpec) checkNodeOnly(c *checker, spec path) {
	forbid := func(name string, value any, given bool) {
		if given {
			c.bad(spec.at(name), value, "is for the whole cluster", "set it in the BGPConfiguration named "+DefaultName)
		}
	}
	if s.ASNumber != nil {
		forbid("asNumber", *s.ASNumber, true)
	}
	if s.NodeToNodeMeshEnabled != nil {
		forbid("nodeToNodeMeshEnabled", *s.NodeToNodeMeshEnabled, true)
	}
	forbid("nodeMeshPassword", nil, s.NodeMeshPassword != nil)
	forbid("nodeMeshMaxRestartTime", nil, s.NodeMeshMaxRestartTime != nil)
	forbid("nodeMeshHoldTime", nil, s.NodeMeshHoldTime != nil)
	forbid("nodeMeshFailureDetectionMode", nil, s.NodeMeshFailureDetectionMode != nil)
	forbid("bfd", nil, s.BFD != nil)
	forbid("routeReflectors", nil, s.RouteReflectors != nil)
	for _, list := range s.serviceLists() {
		forbid(list.name, nil, len(list.blocks) > 0)
	}
}

// maxCommunities is how many communities and how many advertisements there may be.
const maxCommunities = 500

func (s *BGPConfigurationSpec) checkCommunities(c *checker, spec path) {
	communities, advertisements := spec.at("communities"), spec.at("prefixAdvertisements")
	c.atMost(communities, len(s.Communities), maxCommunities)
	c.atMost(advertisements, len(s.PrefixAdvertisements), maxCommunities)
	if len(s.Communities) > 0 && len(s.PrefixAdvertisements) == 0 {
		c.bad(communities, s.Communities[0].Name, "is given, but no prefixAdvertisement uses it", "add prefixAdvertisements, or remove the communities")
	}
	names := map[string]bool{}
	for i, community := range s.Communities {
		c.name(communities.index(i).at("name"), community.Name)
		c.community(communities.index(i).at("value"), string(community.Value))
		if names[community.Name] {
			c.bad(communities.index(i).at("name"), community.Name, "is given to two communities", "choose another name for one of them")
		}
		names[community.Name] = true
	}
	for i, a := range s.PrefixAdvertisements {
		here := advertisements.index(i)
		c.net(here.at("cidr"), a.CIDR, anyFamily)
		if len(a.Communities) == 0 {
			c.bad(here.at("communities"), nil, "is empty", "list communities, by name or value")
		}
		c.atMost(here.at("communities"), len(a.Communities), 50)
		for j, name := range a.Communities {
			if !names[name] && !isCommunity(name) {
				c.bad(here.at("communities").index(j), name, "is neither a community nor the name of one", "add it to communities, or write a value such as 64512:120")
			}
		}
	}
}
