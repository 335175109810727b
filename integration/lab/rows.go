package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Row is one row of the table that says what each mode of a pool does in which network.
type Row struct {
	Mode    Mode
	Check   bool // the fabric checks sources and destinations, at all nodes
	Backend Backend
	// Same and Other are what happens between pods on two nodes of one subnet, and on nodes of two subnets.
	Same, Other Fate
	// SameRoute and OtherRoute are the routes of the first node to the blocks of the other two, with names in braces for
	// addresses: {same} and {other} are nodes, {vtep} is the other one's end of the VXLAN tunnel, {gateway} is the first
	// node's gateway, {uplink} its interface.
	SameRoute, OtherRoute string
	// Why is the reason of it all, for people who see it the first time.
	Why string
}

// Fate is what happens to packets from one pod to another.
type Fate string

// The fates that the table knows.
const (
	Bare       Fate = "yes, bare"
	InIPIP     Fate = "yes, proto 4"
	InVXLAN    Fate = "yes, UDP 4789, VNI 4096"
	Refused    Fate = "times out: the fabric drops it"
	Unroutable Fate = "times out: the router has no route"
)

// labVNI is the VXLAN network identifier of Calico and Muslin, unless FelixConfiguration says otherwise.
const labVNI = 4096

// Rows is the table.
func Rows() []Row {
	return []Row{
		{
			Mode: ModeIPIP, Check: true, Backend: BackendBird, Same: InIPIP, Other: InIPIP,
			SameRoute: "via {same} dev tunl0 onlink", OtherRoute: "via {other} dev tunl0 onlink",
			Why: "A new cluster does this when nobody sets anything. Each packet between nodes travels inside another IP packet, from node " +
				"address to node address, so the network need not know that there are pods.",
		},
		{
			Mode: ModeDirect, Check: true, Backend: BackendBird, Same: Refused, Other: Refused,
			SameRoute: "via {same} dev {uplink}", OtherRoute: "via {gateway} dev {uplink}",
			Why: "Without encapsulation the pods' own addresses are on the wire. A cloud that checks sources and destinations sees an " +
				"address that is not the node's, and drops the frame without a word.",
		},
		{
			Mode: ModeDirect, Check: false, Backend: BackendBird, Same: Bare, Other: Unroutable,
			SameRoute: "via {same} dev {uplink}", OtherRoute: "via {gateway} dev {uplink}",
			Why: "With the check off, nodes of one subnet hand each other bare packets, which costs nothing. To the other subnet the packet " +
				"has to pass the router, and that knows no pod: plain routing needs a network that is told of the pods.",
		},
		{
			Mode: ModeIPIPCrossSubnet, Check: false, Backend: BackendBird, Same: Bare, Other: InIPIP,
			SameRoute: "via {same} dev {uplink}", OtherRoute: "via {other} dev tunl0 onlink",
			Why: "CrossSubnet takes the better of both for each pair of nodes: bare inside a subnet, wrapped only where a router is between " +
				"them.",
		},
		{
			Mode: ModeVXLAN, Check: true, Backend: BackendVXLAN, Same: InVXLAN, Other: InVXLAN,
			SameRoute: "via {same-vtep} dev vxlan.calico onlink", OtherRoute: "via {vtep} dev vxlan.calico onlink",
			Why: "VXLAN wraps the packet into UDP, which also passes where only TCP and UDP do. The nodes learn each other's tunnel ends from " +
				"Typha, so BGP is not needed: here calico_backend becomes vxlan, and no bird runs.",
		},
		{
			Mode: ModeVXLANCrossSubnet, Check: false, Backend: BackendVXLAN, Same: Bare, Other: InVXLAN,
			SameRoute: "via {same} dev {uplink}", OtherRoute: "via {vtep} dev vxlan.calico onlink",
			Why: "The same choice as before with VXLAN as the tunnel, still without BGP: Typha also tells which nodes are neighbours.",
		},
	}
}

// Title names the row.
func (r Row) Title() string {
	return fmt.Sprintf("%s, source/destination check %s", r.modeText(), onOff(r.Check))
}

func (r Row) modeText() string {
	switch ipip, vxlan := r.Mode.Fields(); {
	case ipip != "Never":
		return "ipip " + ipip
	case vxlan != "Never":
		return "vxlan " + vxlan
	}
	return "direct"
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// RowSeen is what was observed of a row.
type RowSeen struct {
	Table       string // the first node's pod routes, as the ip command prints them
	Same, Other CellSeen
	// SameRoute and OtherRoute are where the first node's routes to the others' blocks lead; empty if there is none.
	SameRoute, OtherRoute string
	// Sessions are the established BGP connections of all nodes, both ends counted.
	Sessions int
	names    map[string]string // what the names in a row's routes stand for
}

// CellSeen is what was observed of packets from one pod to another.
type CellSeen struct {
	From, To actor
	Probe    ProbeResult
	Refused  uint64 // frames that the fabric refused at the sender's port meanwhile
	NoRoute  uint64 // packets that the router had no route for meanwhile
}

// actor is a pod and its node.
type actor struct {
	Pod, Node      string
	Addr, NodeAddr netip.Addr
	Block          netip.Prefix // that holds the pod's address
}

// Fate is what happened.
func (c CellSeen) Fate() Fate {
	switch {
	case c.Probe.OK && c.Probe.Path == PathDirect:
		return Bare
	case c.Probe.OK && c.Probe.Path == PathIPIP:
		return InIPIP
	case c.Probe.OK && c.Probe.Path == PathVXLAN:
		return InVXLAN
	case !c.Probe.OK && c.Refused > 0:
		return Refused
	case !c.Probe.OK && c.NoRoute > 0:
		return Unroutable
	case c.Probe.OK:
		return Fate("yes, " + string(c.Probe.Path))
	}
	return Fate("no: " + c.Probe.Error)
}

// Wrong returns a line for each cell of the row that is not as the table says.
func (r Row) Wrong(seen RowSeen) []string {
	var lines []string
	wrong := func(cell, format string, args ...any) {
		lines = append(lines, fmt.Sprintf("%s: %s: %s", r.Title(), cell, fmt.Sprintf(format, args...)))
	}
	for _, c := range []struct {
		seen CellSeen
		want Fate
	}{{seen.Same, r.Same}, {seen.Other, r.Other}} {
		cell := c.seen.From.Pod + " to " + c.seen.To.Pod
		if got := c.seen.Fate(); got != c.want {
			wrong(cell, "expected %q, got %q", c.want, got)
		}
		for _, line := range c.seen.wrongOnWire(c.want) {
			wrong(cell, "%s", line)
		}
	}
	for _, c := range []struct{ cell, want, got string }{
		{"route to the same subnet", r.SameRoute, seen.SameRoute},
		{"route to the other subnet", r.OtherRoute, seen.OtherRoute},
	} {
		if want := seen.fill(c.want); !sameWay(want, c.got) {
			wrong(c.cell, "expected %q, got %q", want, cmp.Or(c.got, "none"))
		}
	}
	if r.Backend == BackendVXLAN && seen.Sessions > 0 {
		wrong("BGP", "expected no session, got %d ends of sessions", seen.Sessions)
	}
	return lines
}

// sameWay compares routes. A gateway in the device's own subnet needs no onlink, so there the word makes no difference.
func sameWay(want, got string) bool {
	if !strings.HasSuffix(want, " onlink") {
		got = strings.TrimSuffix(got, " onlink")
	}
	return want == got
}

// fill replaces the names in a row's route by addresses.
func (s RowSeen) fill(route string) string {
	for name, value := range s.names {
		route = strings.ReplaceAll(route, "{"+name+"}", value)
	}
	return route
}

// wrongOnWire checks each captured packet of the cell: that its outer addresses are those of the nodes, or if it is bare
// those of the pods, and that a lost one was sent, bare, and did not come.
func (c CellSeen) wrongOnWire(want Fate) []string {
	var lines []string
	encap := map[Fate]Encapsulation{InIPIP: EncapIPIP, InVXLAN: EncapVXLAN}[want]
	encap = cmp.Or(encap, EncapNone)
	outer := pair(c.From.Addr, c.To.Addr)
	if encap != EncapNone {
		outer = pair(c.From.NodeAddr, c.To.NodeAddr)
	}
	for _, s := range c.Probe.Seen {
		switch {
		case s.Encap != encap:
			lines = append(lines, fmt.Sprintf("expected packets with encapsulation %s on the wire, saw on %s: %s", encap, s.Node, s.Packet))
		case pair(s.Outer.Src, s.Outer.Dst) != outer:
			lines = append(lines, fmt.Sprintf("expected outer addresses %s and %s, saw on %s: %s", outer[0], outer[1], s.Node, s.Packet))
		case s.Encap == EncapVXLAN && s.VNI != labVNI:
			lines = append(lines, fmt.Sprintf("expected VNI %d, saw on %s: %s", labVNI, s.Node, s.Packet))
		case pair(s.Inner.Src, s.Inner.Dst) != pair(c.From.Addr, c.To.Addr):
			lines = append(lines, fmt.Sprintf("expected the pods' addresses inside, saw on %s: %s", s.Node, s.Packet))
		case (want == Refused || want == Unroutable) && s.Node == c.To.Node:
			lines = append(lines, fmt.Sprintf("expected nothing to come to %s, saw: %s", s.Node, s.Packet))
		default:
			continue
		}
		break // the first one is enough
	}
	if len(c.Probe.Seen) == 0 {
		lines = append(lines, "no packet of it was captured between the nodes")
	}
	return lines
}

// pair is two addresses whichever way.
func pair(a, b netip.Addr) [2]netip.Addr {
	p := []netip.Addr{a, b}
	slices.SortFunc(p, netip.Addr.Compare)
	return [2]netip.Addr{p[0], p[1]}
}
