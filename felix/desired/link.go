package desired

import (
	"net/netip"
	"strconv"
	"strings"
)

// Addresses that every pod uses to reach its host (spec §4.1).
var (
	// Gateway4 is the IPv4 gateway in every pod. No interface has it; the host answers for it by proxy ARP.
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	// HostLinkLocal is the IPv6 gateway in every pod: the link-local address that follows from HostMAC.
	HostLinkLocal = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")
)

// WorkloadLink is the host side of a workload's veth pair. The CNI call creates the pair; the link driver keeps the host
// side as described here, and lists links that are missing.
type WorkloadLink struct {
	Name string
	MTU  int // 0: leave as it is
	// Netns is the path of the pod's network namespace, where the other end has the same MTU: a packet that is larger than
	// the MTU of the end it comes out of is dropped without a word; and where Egress is bounded. Empty: the other end is left
	// alone.
	Netns string
	IPv4  bool
	IPv6  bool
	// Ingress and Egress are what the pod may get and send.
	Ingress, Egress Shape
	// Gateway4 and Gateway6 are addresses of the node for this pod alone, by which it may know the node as a BGP peer. Not valid:
	// none.
	Gateway4, Gateway6 netip.Addr
	// AllowSpoofing turns the kernel's own reverse-path filter off; the firewall's (Workload.AllowedSources) remains.
	AllowSpoofing bool
}

// Shape bounds the bandwidth of one direction: what comes faster waits for a moment, or is dropped. The zero value bounds
// nothing.
type Shape struct {
	Rate     uint64 // bits per second
	Burst    uint64 // bits that may pass at once; 0: see Bytes
	Peakrate uint64 // bits per second within a burst; 0: as fast as the link
	Minburst uint64 // bytes that may pass at once at the peak rate; 0: one packet
}

// A burst that nobody chose is what the rate carries in burstTime, and no less than some large packets, since offloads hand
// the kernel packets of up to 64 KiB.
const (
	burstTime = 100 // ms
	minBurst  = 128 << 10
)

// Bytes is the burst in bytes.
func (s Shape) Bytes() uint64 {
	if s.Burst != 0 {
		return max(1, s.Burst/8)
	}
	return max(minBurst, s.Rate/8/1000*burstTime)
}

// Sysctl is one kernel parameter.
type Sysctl struct {
	Path       string // under /proc/sys, with slashes: "net/ipv4/ip_forward"
	Value      string
	BestEffort bool // a kernel that does not have it, or refuses, is no error
}

// HostSysctls are the parameters of the whole node. Forwarding is left alone when the configuration says
// IPForwarding=Disabled.
func HostSysctls(forwarding bool) []Sysctl {
	s := []Sysctl{{Path: "net/netfilter/nf_conntrack_acct", Value: "1", BestEffort: true}}
	if forwarding {
		s = append(s,
			Sysctl{Path: "net/ipv4/ip_forward", Value: "1"},
			Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1", BestEffort: true})
	}
	return s
}

// Sysctls are the parameters of a workload's link. rpFilter is the node's default (net/ipv4/conf/default/rp_filter), as
// found before felix changed anything.
func (l WorkloadLink) Sysctls(rpFilter int) []Sysctl {
	if l.AllowSpoofing {
		rpFilter = 0
	}
	// A name may hold a dot ("vxlan.calico"), never a slash; with slashes as separators the path needs no quoting.
	four, six := "net/ipv4/conf/"+l.Name+"/", "net/ipv6/conf/"+l.Name+"/"
	var s []Sysctl
	if l.IPv4 {
		s = append(s,
			// Packets to 127.0.0.0/8 that a node-local proxy redirects must be routable here.
			Sysctl{Path: four + "route_localnet", Value: "1"},
			// Answer for the gateway at once, not after the kernel's random delay.
			Sysctl{Path: strings.Replace(four, "/conf/", "/neigh/", 1) + "proxy_delay", Value: "0", BestEffort: true},
			Sysctl{Path: four + "proxy_arp", Value: "1"},
			Sysctl{Path: four + "forwarding", Value: "1"},
			Sysctl{Path: four + "rp_filter", Value: strconv.Itoa(rpFilter)})
	}
	if l.IPv6 {
		s = append(s,
			Sysctl{Path: six + "proxy_ndp", Value: "1"},
			Sysctl{Path: six + "forwarding", Value: "1"})
	}
	// A pod must never teach the host routes by router advertisements, whether or not it was given an IPv6 address.
	return append(s, Sysctl{Path: six + "accept_ra", Value: "0", BestEffort: true})
}
