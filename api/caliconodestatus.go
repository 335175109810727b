package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CalicoNodeStatus asks a node to report on its BGP, and holds the report.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=caliconodestatuses,shortName={nodestatus,nodestatuses},categories=calico
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Classes",type=string,JSONPath=`.spec.classes`
// +kubebuilder:printcolumn:name="Updated",type=date,JSONPath=`.status.lastUpdated`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CalicoNodeStatus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec   CalicoNodeStatusSpec   `json:"spec"`
	Status CalicoNodeStatusStatus `json:"status,omitzero"`
}

// CalicoNodeStatusSpec says what to report, and how often.
type CalicoNodeStatusSpec struct {
	// Node that reports.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// Classes of information.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	Classes []StatusClass `json:"classes"`
	// UpdatePeriodSeconds is the time between reports; 0 stops them.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	UpdatePeriodSeconds *uint32 `json:"updatePeriodSeconds"`
}

// StatusClass is a class of information.
//
// +kubebuilder:validation:Enum=Agent;BGP;Routes
type StatusClass string

// The classes.
const (
	StatusAgent  StatusClass = "Agent"
	StatusBGP    StatusClass = "BGP"
	StatusRoutes StatusClass = "Routes"
)

// CalicoNodeStatusStatus is the report.
type CalicoNodeStatusStatus struct {
	// LastUpdated is when the report was made.
	// +kubebuilder:validation:Nullable
	LastUpdated metav1.Time     `json:"lastUpdated,omitzero"`
	Agent       AgentStatus     `json:"agent,omitzero"`
	BGP         BGPStatus       `json:"bgp,omitzero"`
	Routes      BGPRoutesStatus `json:"routes,omitzero"`
}

// AgentStatus is the state of the speaker, for each family.
type AgentStatus struct {
	BIRDV4 BGPDaemonStatus `json:"birdV4,omitzero"`
	BIRDV6 BGPDaemonStatus `json:"birdV6,omitzero"`
}

// BGPDaemonStatus is the state of a speaker. Times are as the speaker prints them.
type BGPDaemonStatus struct {
	// +kubebuilder:validation:Enum=Ready;NotReady
	State                   string `json:"state,omitempty"`
	Version                 string `json:"version,omitempty"`
	RouterID                string `json:"routerID,omitempty"`
	LastBootTime            string `json:"lastBootTime,omitempty"`
	LastReconfigurationTime string `json:"lastReconfigurationTime,omitempty"`
}

// BGPStatus is the state of the sessions.
type BGPStatus struct {
	NumberEstablishedV4    int `json:"numberEstablishedV4"`
	NumberNotEstablishedV4 int `json:"numberNotEstablishedV4"`
	NumberEstablishedV6    int `json:"numberEstablishedV6"`
	NumberNotEstablishedV6 int `json:"numberNotEstablishedV6"`
	// +listType=atomic
	PeersV4 []BGPPeerStatus `json:"peersV4,omitempty"`
	// +listType=atomic
	PeersV6 []BGPPeerStatus `json:"peersV6,omitempty"`
}

// BGPPeerStatus is the state of one session.
type BGPPeerStatus struct {
	PeerIP string `json:"peerIP,omitempty"`
	// +kubebuilder:validation:Enum=NodeMesh;NodePeer;GlobalPeer
	Type string `json:"type,omitempty"`
	// +kubebuilder:validation:Enum=Idle;Connect;Active;OpenSent;OpenConfirm;Established;Close
	State string `json:"state,omitempty"`
	Since string `json:"since,omitempty"`
}

// BGPRoutesStatus is what the speaker knows.
type BGPRoutesStatus struct {
	// +listType=atomic
	RoutesV4 []BGPRouteStatus `json:"routesV4,omitempty"`
	// +listType=atomic
	RoutesV6 []BGPRouteStatus `json:"routesV6,omitempty"`
}

// BGPRouteStatus is one route: chosen (FIB) or known (RIB).
type BGPRouteStatus struct {
	// +kubebuilder:validation:Enum=FIB;RIB
	Type        string `json:"type,omitempty"`
	Destination string `json:"destination,omitempty"`
	// Gateway is N/A for a route to a device.
	Gateway string `json:"gateway,omitempty"`
	// Interface is blackhole or unreachable for such routes.
	Interface   string               `json:"interface,omitempty"`
	LearnedFrom BGPRouteSourceStatus `json:"learnedFrom,omitzero"`
}

// BGPRouteSourceStatus is where a route came from.
type BGPRouteSourceStatus struct {
	// +kubebuilder:validation:Enum=Kernel;Static;Direct;NodeMesh;BGPPeer
	SourceType string `json:"sourceType,omitempty"`
	PeerIP     string `json:"peerIP,omitempty"`
}

// Default leaves the request as it is.
func (s *CalicoNodeStatus) Default() {}

// Validate checks the request.
func (s *CalicoNodeStatus) Validate() error {
	var c checker
	c.object(s, subdomainName)
	spec := path("spec")
	if s.Spec.Node == "" {
		c.bad(spec.at("node"), nil, "is missing", "name the node that is to report")
	} else {
		c.name(spec.at("node"), s.Spec.Node)
	}
	if len(s.Spec.Classes) == 0 {
		c.bad(spec.at("classes"), nil, "is empty", "list some of Agent, BGP and Routes")
	}
	for i, class := range s.Spec.Classes {
		oneOf(&c, spec.at("classes").index(i), class, StatusAgent, StatusBGP, StatusRoutes)
	}
	unique(&c, spec.at("classes"), s.Spec.Classes)
	if s.Spec.UpdatePeriodSeconds == nil {
		c.bad(spec.at("updatePeriodSeconds"), nil, "is missing", "write a number of seconds, or 0 for no further reports")
	} else {
		between(&c, spec.at("updatePeriodSeconds"), *s.Spec.UpdatePeriodSeconds, 0, 86400)
	}
	return c.err()
}
