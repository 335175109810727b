package desired

import (
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-net/muslin/api/view"
)

// Marks on packets (spec §4.5): bits handed out from the lowest of mask 0xffff0000.
const (
	MarkAccept = 0x10000 // a chain of the current endpoint said Allow
	MarkPass   = 0x20000 // a policy of the current tier said Pass
	MarkLater  = 0x40000 // locally sent, to be judged when it is known by which interface it leaves; see Host
	MarkSent   = 0x80000 // sent by a workload, to be judged when IPVS has led it on; see Settings.IPVS
	MarkMask   = 0xffff0000
)

// ConnMarkCut marks connections (the conntrack entry's mark, not the packet's) that policy has come to forbid.
const ConnMarkCut = 0x80000

// Ids of the sets that felix itself needs (spec §4.6). They are Sets like any other: SetNet, both families in one.
const (
	SetAllHosts   = "all-hosts-net"    // every node's address: IP-in-IP admission, NATOutgoing exclusions
	SetVXLANHosts = "all-vxlan-net"    // every remote VTEP's node address: VXLAN admission
	SetPools      = "network-ip-pools" // every pool, disabled ones too, except those of LoadBalancer use only
	SetMasqPools  = "masq-ipam-pools"  // pools with natOutgoing
	SetServices   = "service-ips"      // addresses of services that IPVS leads on, where it does
)

// FirewallDelta changes the firewall. All of one delta is committed together, with whatever else is pending: as one
// transaction where the backend can. Sets and chains may be named before they exist; an endpoint whose chains are not
// whole yet stays closed.
type FirewallDelta struct {
	Settings  *Settings               // the new settings; nil: unchanged
	Sets      Delta[string, Set]      // whole sets by id
	Members   map[string]SetDelta     // changes to sets that are there already (after Sets), by id
	Chains    Delta[string, Chain]    // by name
	Workloads Delta[string, Workload] // by name of the host-side interface
	Hosts     Delta[string, Host]     // by name of the host's interface, or AnyInterface
}

// Empty tells whether d changes nothing.
func (d FirewallDelta) Empty() bool {
	return d.Settings == nil && d.Sets.Empty() && len(d.Members) == 0 && d.Chains.Empty() && d.Workloads.Empty() &&
		d.Hosts.Empty()
}

// Set is an IP set with its members, in no order. Prefixes may overlap.
type Set struct {
	Type    view.SetType
	Members []view.Member
}

// SetDelta changes the members of a set. Adding what is there and removing what is not are no errors.
type SetDelta struct {
	Added, Removed []view.Member
}

// HostAction is what happens to packets from a workload to its own host that policy allowed (DefaultEndpointToHostAction).
type HostAction uint8

// The host actions.
const (
	HostDrop   HostAction = iota // drop even what policy allowed
	HostAccept                   // accept
	HostReturn                   // leave it to the rest of the host's INPUT rules
)

// Settings are the parts of the firewall that exist once.
type Settings struct {
	// WorkloadPrefixes are the beginnings of workload interfaces' names (InterfacePrefix), "cali". A packet of an
	// interface that begins so and is not known is dropped.
	WorkloadPrefixes []string
	EndpointToHost   HostAction
	// RejectDenied answers denied packets with an ICMP error instead of dropping them.
	RejectDenied bool
	// LogLimit limits the lines of Log rules (LogActionRateLimit); the zero value does not.
	LogLimit Limit
	// AcceptInvalid leaves packets that connection tracking finds invalid to policy (DisableConntrackInvalidCheck).
	AcceptInvalid bool
	// CutFlows drops both directions of connections that carry ConnMarkCut, before established ones pass. It is off while
	// there are none: each rule costs every packet.
	CutFlows bool
	// AllowVXLANFromWorkloads and AllowIPIPFromWorkloads let pods send tunnel packets of their own.
	AllowVXLANFromWorkloads, AllowIPIPFromWorkloads bool
	// VXLANPort is the port that workloads must not send UDP to, whether the node itself has VXLAN or not: others may. 0
	// stands for DefaultVXLANPort.
	VXLANPort uint16
	// NATOutgoing masquerades packets from SetMasqPools to destinations outside SetPools; nil: off.
	NATOutgoing *NATOutgoing
	// VXLAN4 and VXLAN6 admit tunnel packets of the family and keep them out of connection tracking; nil: off.
	VXLAN4, VXLAN6 *VXLANAdmission
	// IPIP admits IP-in-IP packets (protocol 4) from SetAllHosts on this device and drops others; nil: off.
	IPIP *IPIPAdmission
	// IPVS leads packets to services on to where they go, and does it between INPUT and OUTPUT: its hook in INPUT comes after
	// ours and takes them, and they come by in OUTPUT with another destination, without the interface by which they came.
	//
	//	filter INPUT   (from workloads) behind established ones: MarkSent; to SetServices: accept. (in; others) before Normal of
	//	               host endpoints: to SetServices: Forward.Ingress, then accept.
	//	filter OUTPUT  what is tracked and has a source that is not the host's, first of all: established or related: accept. With
	//	               MarkSent: the egress policy of the workload whose address is the source; if there is none: drop. To
	//	               workloads: their ingress policy. Then Forward.Egress of host endpoints.
	//
	// What is accepted in INPUT still comes to others' rules there: kube-proxy's refuse what is no port of the service, which IPVS would
	// leave to the node's own processes. Ports of the node itself (node ports) are the host's, and judged as such besides.
	IPVS bool
	// NoIPv6 says that no workload of this node has IPv6, and that there are no host endpoints: nothing of that family passes from
	// or to a workload but what finds neighbours, and drivers write no policy of it.
	NoIPv6 bool
	// Floating are the outside addresses that lead to workloads, in an order of their own, each once (FloatingIPs).
	Floating []Floating
	// Rules is for whoever chooses among drivers; to a driver it says nothing.
	Rules Rules
}

// Equal tells whether two settings are the same.
func (s Settings) Equal(o Settings) bool {
	return slices.Equal(s.WorkloadPrefixes, o.WorkloadPrefixes) && s.EndpointToHost == o.EndpointToHost &&
		s.RejectDenied == o.RejectDenied && s.LogLimit == o.LogLimit && s.AcceptInvalid == o.AcceptInvalid && s.CutFlows == o.CutFlows &&
		s.AllowVXLANFromWorkloads == o.AllowVXLANFromWorkloads && s.AllowIPIPFromWorkloads == o.AllowIPIPFromWorkloads &&
		s.VXLANPort == o.VXLANPort && s.IPVS == o.IPVS && s.NoIPv6 == o.NoIPv6 && s.Rules == o.Rules &&
		slices.Equal(s.Floating, o.Floating) &&
		same(s.NATOutgoing, o.NATOutgoing) && same(s.VXLAN4, o.VXLAN4) && same(s.VXLAN6, o.VXLAN6) && same(s.IPIP, o.IPIP)
}

// Limit is how often something may happen, each rule of the kernel by itself.
type Limit struct {
	Rate  int           // how often in a unit of time
	Per   time.Duration // the unit: a second, minute, hour or day
	Burst int           // how often at once, at least 1; no more than in a day, beyond which xtables cannot count
}

// Floating is an outside address that leads to a workload of this node: what is sent to External goes to Internal. What a workload
// sends to itself that way comes from the first External of its Internal, so that the answer goes the same way back.
type Floating struct {
	External, Internal netip.Addr
}

func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// NATOutgoing says how packets that leave the pools get a new source.
type NATOutgoing struct {
	ExcludeHosts   bool       // not towards SetAllHosts either (NATOutgoingExclusions=IPPoolsAndHostIPs)
	OutInterface   string     // only packets that leave by this interface; empty: any
	Source4        netip.Addr // this source instead of the outgoing interface's (NATOutgoingAddress)
	Source6        netip.Addr
	Ports          view.PortRange // source ports for TCP and UDP (NATPortRange); zero: the kernel chooses
	RandomizePorts bool           // choose ports at random (--random-fully)
}

// VXLANAdmission admits the VXLAN packets of one family: UDP to Port from SetVXLANHosts to this host, and drops others.
// What the host itself sends into Device from another of its addresses is masqueraded to the device's own, so that the
// answer finds its way back.
type VXLANAdmission struct {
	Port   uint16
	Device string
}

// IPIPAdmission admits IP-in-IP packets; see VXLANAdmission.
type IPIPAdmission struct {
	Device string
}

// Workload is the firewall of one workload endpoint, by its host-side interface. The zero value drops everything in both
// directions: an endpoint is open only when told so.
type Workload struct {
	// Endpoint is the endpoint's id, for comments and messages.
	Endpoint string
	// Ingress and Egress are the names of the chains that decide on packets to and from the workload. An empty one is
	// closed: all packets of that direction are dropped, established flows too.
	Ingress, Egress string
	// ClosedBecause says what is missing while a direction is closed.
	ClosedBecause string
	// Addresses are the workload's own. They are routed to it, so that naming them allows nothing; it is a short cut for
	// kernels, where a look-up in the routes costs more.
	Addresses []netip.Addr
	// AllowedSources are prefixes the workload may use as source although no route to them leads to it. Without them a
	// packet passes only if the host would route its source address back to the same interface.
	AllowedSources []netip.Prefix
	// SpeakerPort is the TCP port of the node's BGP speaker, for a workload that speaks BGP with it: what policy allows to there
	// is accepted whatever Settings.EndpointToHost says. 0: none.
	SpeakerPort uint16
}

// Equal tells whether two workloads are the same to the kernel.
func (w Workload) Equal(o Workload) bool {
	return w.Endpoint == o.Endpoint && w.Ingress == o.Ingress && w.Egress == o.Egress && w.SpeakerPort == o.SpeakerPort &&
		slices.Equal(w.Addresses, o.Addresses) && slices.Equal(w.AllowedSources, o.AllowedSources)
}

// Chain is the name of the chain that decides on packets of a direction.
func (w Workload) Chain(d Direction) string {
	if d == Egress {
		return w.Egress
	}
	return w.Ingress
}

// Closed tells whether at least one direction is closed.
func (w Workload) Closed() bool { return w.Ingress == "" || w.Egress == "" }
