package api

import (
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPPeer is a peering: on which nodes, with whom, and how. With neither node nor nodeSelector it is for all nodes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={bgpp,bgpps},categories=calico
// +kubebuilder:printcolumn:name="Peer IP",type=string,JSONPath=`.spec.peerIP`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Node Selector",type=string,JSONPath=`.spec.nodeSelector`
// +kubebuilder:printcolumn:name="Peer ASN",type=string,JSONPath=`.spec.asNumber`
// +kubebuilder:printcolumn:name="Peer Selector",type=string,JSONPath=`.spec.peerSelector`,priority=1
// +kubebuilder:printcolumn:name="Local ASN",type=string,JSONPath=`.spec.localASNumber`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec BGPPeerSpec `json:"spec"`
}

// BGPPeerSpec is the peering.
//
// +kubebuilder:validation:XValidation:rule=`size(self.?node.orValue("")) == 0 || size(self.?nodeSelector.orValue("")) == 0`,message="node and nodeSelector exclude each other",fieldPath=".nodeSelector"
// +kubebuilder:validation:XValidation:rule=`size(self.?peerIP.orValue("")) == 0 || size(self.?peerSelector.orValue("")) == 0`,message="peerIP and peerSelector exclude each other",fieldPath=".peerSelector"
// +kubebuilder:validation:XValidation:rule=`size(self.?peerSelector.orValue("")) == 0 || !has(self.asNumber) || string(self.asNumber) == '0'`,message="with peerSelector the AS number is that of the selected nodes",fieldPath=".asNumber"
// +kubebuilder:validation:XValidation:rule=`size(self.?localWorkloadSelector.orValue("")) == 0 || size(self.?peerIP.orValue("")) == 0`,message="localWorkloadSelector and peerIP exclude each other",fieldPath=".localWorkloadSelector"
// +kubebuilder:validation:XValidation:rule=`size(self.?localWorkloadSelector.orValue("")) == 0 || size(self.?peerSelector.orValue("")) == 0`,message="localWorkloadSelector and peerSelector exclude each other",fieldPath=".localWorkloadSelector"
// +kubebuilder:validation:XValidation:rule=`size(self.?localWorkloadSelector.orValue("")) == 0 || (has(self.asNumber) && string(self.asNumber) != '0')`,message="localWorkloadSelector needs asNumber",fieldPath=".asNumber"
// +kubebuilder:validation:XValidation:rule=`size(self.?reachableBy.orValue("")) == 0 || size(self.?peerIP.orValue("")) > 0`,message="reachableBy needs peerIP",fieldPath=".reachableBy"
// +kubebuilder:validation:XValidation:rule=`size(self.?reachableBy.orValue("")) == 0 || isIP(self.reachableBy)`,message="reachableBy must be an address",fieldPath=".reachableBy"
// +kubebuilder:validation:XValidation:rule=`size(self.?peerIP.orValue("")) > 0 || size(self.?peerSelector.orValue("")) > 0 || size(self.?localWorkloadSelector.orValue("")) > 0`,message="a peering needs peerIP, peerSelector or localWorkloadSelector",fieldPath=".peerIP"
// +kubebuilder:validation:XValidation:rule="!has(self.reachableBy) || !has(self.peerIP) || !isIP(self.reachableBy) || !isIP(self.peerIP) || ip(self.reachableBy).family() == ip(self.peerIP).family()",message="reachableBy is of another family than peerIP",fieldPath=".reachableBy"
// +kubebuilder:validation:XValidation:rule=`!has(self.longLivedStaleTime) || self.?restartMode.orValue("") == "LongLivedGracefulRestart"`,message="longLivedStaleTime needs restartMode LongLivedGracefulRestart",fieldPath=".longLivedStaleTime"
// +kubebuilder:validation:XValidation:rule="!has(self.localASNumber) || !string(self.localASNumber).matches('^[0.]+$')",message="there is no AS 0",fieldPath=".localASNumber"
// +kubebuilder:validation:XValidation:rule="!self.?keepOriginalNextHop.orValue(false) || !has(self.nextHopMode)",message="keepOriginalNextHop and nextHopMode exclude each other",fieldPath=".nextHopMode"
// +kubebuilder:validation:XValidation:rule="!has(self.holdTime) || (duration(self.holdTime) >= duration('3s') && duration(self.holdTime) <= duration('65535s'))",message="is not a hold time of BGP: write 3s to 65535s: 90s is common",fieldPath=".holdTime"
type BGPPeerSpec struct {
	// Node is the one node that has the peering.
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node,omitempty"`
	// NodeSelector selects the nodes that have the peering.
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
	// PeerIP is the peer's address, optionally with a port: "10.0.0.1", "10.0.0.1:1179", "[fd00::1]:1179".
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule=`self == "" || isIP(self) || self.matches('^([0-9.]+|\\[[0-9a-fA-F:.]+\\]):[1-9][0-9]{0,4}$')`,message="must be an address, with or without a port"
	PeerIP string `json:"peerIP,omitempty"`
	// ASNumber is the peer's AS. With PeerSelector it comes from the nodes.
	ASNumber ASNumber `json:"asNumber,omitempty"`
	// LocalASNumber is the AS that the peer is shown.
	LocalASNumber *ASNumber `json:"localASNumber,omitempty"`
	// PeerSelector selects the nodes that are the peers.
	// +kubebuilder:validation:MaxLength=1024
	PeerSelector string `json:"peerSelector,omitempty"`
	// LocalWorkloadSelector selects pods of the node as peers.
	// +kubebuilder:validation:MaxLength=1024
	LocalWorkloadSelector string `json:"localWorkloadSelector,omitempty"`
	// KeepOriginalNextHop keeps the next hop on eBGP. Deprecated: NextHopMode Keep does it on any session.
	KeepOriginalNextHop bool `json:"keepOriginalNextHop,omitempty"`
	// NextHopMode says what next hop the peer is told. Unset means Auto.
	NextHopMode *NextHopMode `json:"nextHopMode,omitempty"`
	// Password is the key for TCP MD5 signatures (RFC 2385).
	Password *BGPPassword `json:"password,omitempty"`
	// SourceAddress says what address connections come from. Unset means UseNodeIP.
	SourceAddress SourceAddress `json:"sourceAddress,omitempty"`
	// MaxRestartTime is how long the peer keeps our routes while we restart (RFC 4724). Unset means 120s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	MaxRestartTime *metav1.Duration `json:"maxRestartTime,omitempty"`
	// KeepaliveTime is the time between keepalives. Unset means a third of the hold time.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`
	// NumAllowedLocalASNumbers is how often our own AS may occur in the path of a received route.
	// +kubebuilder:validation:Minimum=0
	NumAllowedLocalASNumbers *int32 `json:"numAllowedLocalASNumbers,omitempty"`
	// TTLSecurity is how many hops away the peer is, checked by TTL (RFC 5082); 0 is off.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	TTLSecurity *uint8 `json:"ttlSecurity,omitempty"`
	// ReachableBy is the gateway through which the peer is reached.
	// +kubebuilder:validation:MaxLength=45
	ReachableBy string `json:"reachableBy,omitempty"`
	// Filters names BGPFilters, in the order of their evaluation.
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	// +listType=atomic
	Filters []string `json:"filters,omitempty"`
	// ReversePeering says whether the nodes at the other end get the peering too. Unset means Auto.
	ReversePeering *ReversePeering `json:"reversePeering,omitempty"`
	// HoldTime is how long the peer may be silent before the session is given up; the lower offer of both ends counts
	// (RFC 4271 section 4.2). Unset means 240s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	HoldTime *metav1.Duration `json:"holdTime,omitempty"`
	// FailureDetectionMode says whether BFD watches the peer. Unset means None.
	FailureDetectionMode *FailureDetectionMode `json:"failureDetectionMode,omitempty"`
	// BFD are the parameters of BFD for this peering. What is unset comes from the BGPConfiguration named default.
	BFD *BFD `json:"bfd,omitempty"`
	// RestartMode says how long routes outlive a session. Unset means GracefulRestart.
	RestartMode *RestartMode `json:"restartMode,omitempty"`
	// LongLivedStaleTime is how long, after MaxRestartTime, the peer keeps our routes as a last resort (RFC 9494), with
	// RestartMode LongLivedGracefulRestart. Unset means 24h.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	LongLivedStaleTime *metav1.Duration `json:"longLivedStaleTime,omitempty"`
}

// FailureDetectionMode says whether BFD (RFC 5880) watches a peer: a peer that BFD finds dead loses its routes at once.
//
// +kubebuilder:validation:Enum=None;BFDIfDirectlyConnected;BFD
type FailureDetectionMode string

// The modes of failure detection.
const (
	DetectByTimers        FailureDetectionMode = "None"                   // by BGP's hold time alone
	DetectByBFDOnOneLink  FailureDetectionMode = "BFDIfDirectlyConnected" // by BFD if the peer is on a link of the node
	DetectByBFDEverywhere FailureDetectionMode = "BFD"                    // by BFD, over several hops too (RFC 5883)
)

// BFD are the parameters of BFD sessions. Both ends negotiate: each sends no oftener than the other wants to receive.
//
// +kubebuilder:validation:XValidation:rule="!has(self.minimumSendInterval) || (duration(self.minimumSendInterval) >= duration('10ms') && duration(self.minimumSendInterval) <= duration('1m'))",message="is out of range: write 10ms to 60s",fieldPath=".minimumSendInterval"
// +kubebuilder:validation:XValidation:rule="!has(self.minimumReceiveInterval) || (duration(self.minimumReceiveInterval) >= duration('10ms') && duration(self.minimumReceiveInterval) <= duration('1m'))",message="is out of range: write 10ms to 60s",fieldPath=".minimumReceiveInterval"
type BFD struct {
	// MinimumSendInterval is the least time between our packets. Unset means 300ms.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	MinimumSendInterval *metav1.Duration `json:"minimumSendInterval,omitempty"`
	// MinimumReceiveInterval is the least time between the peer's packets that we ask for. Unset means 300ms.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	MinimumReceiveInterval *metav1.Duration `json:"minimumReceiveInterval,omitempty"`
	// Multiplier is how many packets in a row may be missed. Unset means 3.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=255
	Multiplier *int32 `json:"multiplier,omitempty"`
}

// What the fields of BFD mean when they are set nowhere.
const (
	DefaultBFDInterval   = 300 * time.Millisecond
	DefaultBFDMultiplier = 3
)

// RestartMode says how long routes outlive a session.
//
// +kubebuilder:validation:Enum=GracefulRestart;LongLivedGracefulRestart
type RestartMode string

// The restart modes: RFC 4724, and RFC 9494 on top of it.
const (
	RestartGraceful  RestartMode = "GracefulRestart"
	RestartLongLived RestartMode = "LongLivedGracefulRestart"
)

// DefaultLongLivedStaleTime is what an unset LongLivedStaleTime means.
const DefaultLongLivedStaleTime = 24 * time.Hour

// NextHopMode says what next hop a peer is told.
//
// +kubebuilder:validation:Enum=Auto;Self;Keep
type NextHopMode string

// The next-hop modes.
const (
	NextHopAuto NextHopMode = "Auto" // BGP's own rule: self on eBGP, kept on iBGP
	NextHopSelf NextHopMode = "Self"
	NextHopKeep NextHopMode = "Keep"
)

// SourceAddress says what address a session's connections come from.
//
// +kubebuilder:validation:Enum=UseNodeIP;None
type SourceAddress string

// The sources: the node's own address, or whatever the kernel picks.
const (
	SourceUseNodeIP SourceAddress = "UseNodeIP"
	SourceNone      SourceAddress = "None"
)

// ReversePeering says whether peers that are nodes of this cluster peer back.
//
// +kubebuilder:validation:Enum=Auto;Manual
type ReversePeering string

// The ways of reverse peering.
const (
	ReverseAuto   ReversePeering = "Auto"
	ReverseManual ReversePeering = "Manual"
)

// BGPPassword points to a session's password.
//
// +kubebuilder:validation:XValidation:rule=`has(self.secretKeyRef) && size(self.secretKeyRef.?name.orValue("")) > 0`,message="a password is a key of a Secret: secretKeyRef with name and key",fieldPath=".secretKeyRef"
type BGPPassword struct {
	SecretKeyRef *SecretKeySelector `json:"secretKeyRef,omitempty"`
}

// SecretKeySelector is one key of a secret in the namespace of the system.
type SecretKeySelector struct {
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Key      string `json:"key"`
	Optional *bool  `json:"optional,omitempty"`
}

// Default leaves the peering as it is: what is unset follows from the configuration of BGP.
func (p *BGPPeer) Default() {}

// ParsePeerIP reads a peer's address with or without a port; the port is 0 if there is none.
func ParsePeerIP(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a, 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q is not the address of a peer: write 10.0.0.1, 10.0.0.1:1179, fd00::1 or [fd00::1]:1179", s)
	}
	return ap, nil
}

// Validate checks the peering.
func (p *BGPPeer) Validate() error {
	var c checker
	c.object(p, subdomainName)
	s, spec := &p.Spec, path("spec")
	c.optionalName(spec.at("node"), s.Node)
	c.selector(spec.at("nodeSelector"), s.NodeSelector, false)
	c.selector(spec.at("peerSelector"), s.PeerSelector, false)
	c.selector(spec.at("localWorkloadSelector"), s.LocalWorkloadSelector, false)
	if s.Node != "" && s.NodeSelector != "" {
		c.bad(spec.at("nodeSelector"), s.NodeSelector, "cannot be combined with node", "remove one of the two")
	}
	s.checkPeer(&c, spec)
	c.asNumber(spec.at("localASNumber"), s.LocalASNumber)
	if s.NextHopMode != nil {
		oneOf(&c, spec.at("nextHopMode"), *s.NextHopMode, NextHopAuto, NextHopSelf, NextHopKeep)
		if s.KeepOriginalNextHop {
			c.bad(spec.at("nextHopMode"), string(*s.NextHopMode), "cannot be combined with keepOriginalNextHop", "write nextHopMode: Keep and remove keepOriginalNextHop")
		}
	}
	optionalOneOf(&c, spec.at("sourceAddress"), s.SourceAddress, SourceUseNodeIP, SourceNone)
	if s.ReversePeering != nil {
		oneOf(&c, spec.at("reversePeering"), *s.ReversePeering, ReverseAuto, ReverseManual)
	}
	c.duration(spec.at("maxRestartTime"), s.MaxRestartTime)
	c.duration(spec.at("keepaliveTime"), s.KeepaliveTime)
	c.holdTime(spec.at("holdTime"), s.HoldTime)
	c.detection(spec, "failureDetectionMode", s.FailureDetectionMode)
	c.bfd(spec.at("bfd"), s.BFD)
	if s.RestartMode != nil {
		oneOf(&c, spec.at("restartMode"), *s.RestartMode, RestartGraceful, RestartLongLived)
	}
	c.duration(spec.at("longLivedStaleTime"), s.LongLivedStaleTime)
	if d := s.LongLivedStaleTime; d != nil && (s.RestartMode == nil || *s.RestartMode != RestartLongLived) {
		c.bad(spec.at("longLivedStaleTime"), d.Duration, "has no meaning without long-lived graceful restart", "write restartMode: LongLivedGracefulRestart, or remove it")
	}
	if n := s.NumAllowedLocalASNumbers; n != nil && *n < 0 {
		c.bad(spec.at("numAllowedLocalASNumbers"), *n, "is negative", "write 0 or more")
	}
	for i, name := range s.Filters {
		c.name(spec.at("filters").index(i), name)
	}
	c.password(spec.at("password"), s.Password)
	return c.err()
}

// checkPeer checks who is at the other end.
func (s *BGPPeerSpec) checkPeer(c *checker, spec path) {
	var peer netip.AddrPort
	if s.PeerIP != "" {
		var err error
		if peer, err = ParsePeerIP(s.PeerIP); err != nil {
			c.bad(spec.at("peerIP"), s.PeerIP, "is not an address with or without a port", "write it like 10.0.0.1, 10.0.0.1:1179, fd00::1 or [fd00::1]:1179")
		}
	}
	switch {
	case s.PeerIP == "" && s.PeerSelector == "" && s.LocalWorkloadSelector == "":
		c.bad(spec.at("peerIP"), nil, "is missing, and no selector says who the peer is", "write peerIP, peerSelector or localWorkloadSelector")
	case s.PeerIP != "" && s.PeerSelector != "":
		c.bad(spec.at("peerSelector"), s.PeerSelector, "cannot be combined with peerIP", "remove one of the two")
	}
	if s.PeerSelector != "" && s.ASNumber != 0 {
		c.bad(spec.at("asNumber"), s.ASNumber, "cannot be combined with peerSelector: the AS number is that of the selected nodes", "remove it")
	}
	if s.LocalWorkloadSelector != "" {
		at := spec.at("localWorkloadSelector")
		if s.PeerIP != "" {
			c.bad(at, s.LocalWorkloadSelector, "cannot be combined with peerIP", "remove one of the two")
		}
		if s.PeerSelector != "" {
			c.bad(at, s.LocalWorkloadSelector, "cannot be combined with peerSelector", "remove one of the two")
		}
		if s.ASNumber == 0 {
			c.bad(spec.at("asNumber"), nil, "is missing beside localWorkloadSelector", "write the AS number of the workloads")
		}
	}
	if s.ReachableBy == "" {
		return
	}
	gateway, ok := c.ip(spec.at("reachableBy"), s.ReachableBy, anyFamily)
	switch {
	case s.PeerIP == "":
		c.bad(spec.at("reachableBy"), s.ReachableBy, "is given without peerIP", "write the peer's address, or remove it")
	case ok && peer.IsValid() && familyOf(gateway) != familyOf(peer.Addr()):
		c.bad(spec.at("reachableBy"), s.ReachableBy, "is of another family than peerIP "+s.PeerIP, "write a gateway of the peer's family")
	}
}

// asNumber checks a number of one's own: 0 is nobody's (RFC 7607).
func (c *checker) asNumber(at path, n *ASNumber) {
	if n != nil && *n == 0 {
		c.bad(at, *n, "is no AS number that anyone can have", "write 1 to 4294967295, or remove it")
	}
}

// password checks a reference to a secret.
func (c *checker) password(at path, p *BGPPassword) {
	if p == nil {
		return
	}
	at = at.at("secretKeyRef")
	if p.SecretKeyRef == nil {
		c.bad(at, nil, "is missing", "write name and key of the secret")
		return
	}
	if p.SecretKeyRef.Name == "" {
		c.bad(at.at("name"), nil, "is missing", "name the secret")
	} else {
		c.name(at.at("name"), p.SecretKeyRef.Name)
	}
	if p.SecretKeyRef.Key == "" {
		c.bad(at.at("key"), nil, "is missing", "name the key inside the secret")
	}
}

// holdTime checks an offer of RFC 4271 section 4.2: whole seconds, at least 3, at most 65535.
func (c *checker) holdTime(at path, d *metav1.Duration) {
	if d == nil {
		return
	}
	if d.Duration < 3*time.Second || d.Duration > 65535*time.Second {
		c.bad(at, d.Duration, "is not a hold time of BGP", "write 3s to 65535s; 90s is common")
	}
}

func (c *checker) detection(spec path, field string, m *FailureDetectionMode) {
	if m != nil {
		oneOf(c, spec.at(field), *m, DetectByTimers, DetectByBFDOnOneLink, DetectByBFDEverywhere)
	}
}

// bfd checks parameters of BFD: on the wire an interval is 32 bits of microseconds, and what is shorter than ten milliseconds
// takes a busy machine for a dead one.
func (c *checker) bfd(at path, b *BFD) {
	if b == nil {
		return
	}
	for _, f := range []struct {
		name string
		d    *metav1.Duration
	}{{"minimumSendInterval", b.MinimumSendInterval}, {"minimumReceiveInterval", b.MinimumReceiveInterval}} {
		if f.d != nil && (f.d.Duration < 10*time.Millisecond || f.d.Duration > time.Minute) {
			c.bad(at.at(f.name), f.d.Duration, "is out of range", "write 10ms to 60s; 300ms is the default")
		}
	}
	if m := b.Multiplier; m != nil {
		between(c, at.at("multiplier"), *m, 1, 255)
	}
}
