package verdict

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
)

// Pass is one of the passes in which policies apply to the packets of host endpoints (spec §3.3).
type Pass string

// The passes, in the order in which a packet meets them.
const (
	Untracked Pass = "untracked" // before connection tracking: doNotTrack policies
	PreDNAT   Pass = "preDNAT"   // before a service's address is translated
	Forward   Pass = "forward"   // what the host forwards: applyOnForward policies
	Normal    Pass = "normal"    // to the host's own processes and from them
)

// ends tells whether the ends of tiers deny: the early passes leave to later ones what they do not decide.
func (p Pass) ends() bool { return p == Normal || p == Forward }

// Failsafe is a port that host endpoints never lose.
type Failsafe struct {
	Protocol view.Protocol
	Port     uint16
	Peers    netip.Prefix // for whom; all if not valid
}

// Node is what takes part on a node beside the workloads that a packet is from and to.
type Node struct {
	// Own is the host endpoint of the interface towards elsewhere, Any that of all interfaces that have none of their own,
	// workloads' among them; nil: there is none.
	Own, Any *view.HostEndpoint
	// FailsafeIn and FailsafeOut are the ports that stay open.
	FailsafeIn, FailsafeOut []Failsafe
	// WorkloadsToHost tells whether what policy allows from workloads reaches the node itself (DefaultEndpointToHostAction).
	WorkloadsToHost bool
	// VXLANPort is the port of tunnel packets, which workloads may make only if AllowVXLAN; so with AllowIPIP.
	VXLANPort             uint16
	AllowVXLAN, AllowIPIP bool
}

// Way is how a packet goes through a node: from and to a workload of it, the node itself, or elsewhere where neither is said.
type Way struct {
	From, To         *view.WorkloadEndpoint
	FromHost, ToHost bool
}

// Step is what one endpoint says of a packet in one pass.
type Step struct {
	Decision
	Endpoint string // a workload's id, or HostPrefix and the name of a host endpoint
	Egress   bool
	Pass     Pass // of a host endpoint; workloads have no passes
}

// HostPrefix stands before the names of host endpoints, so that they are no workloads'.
const HostPrefix = "host/"

// Cross is what is said of the first packet of a connection on its way through a node, in the order in which it meets those
// who say it. It passes if each allows it; each is asked whatever those before have said.
func Cross(v View, n Node, w Way, p packet.Packet) []Step {
	c := crossing{view: v, node: n, packet: p}
	outer := n.Own // the endpoint of the interface towards elsewhere
	if outer == nil {
		outer = n.Any
	}
	in, out := n.Any, n.Any // of the interfaces by which it comes and goes
	if w.From == nil {
		in = outer
	}
	if w.To == nil {
		out = outer
	}
	switch {
	case w.FromHost && w.To == nil:
		c.early(n.Own, Untracked, true)
	case !w.FromHost:
		if w.From == nil {
			c.early(n.Own, Untracked, false)
		}
		first := in
		if !c.has(in, PreDNAT) { // an interface's own counts in this pass only if it has policies of it
			first = n.Any
		}
		c.early(first, PreDNAT, false)
	}
	switch {
	case w.FromHost && w.To != nil: // the host reaches its workloads
	case w.FromHost:
		c.own(outer, true)
	case w.ToHost && w.From == nil:
		c.own(outer, false)
	case w.ToHost:
		c.from(w.From)
		if !n.WorkloadsToHost {
			c.deny(w.From, "defaultEndpointToHostAction Drop")
		}
	default:
		if !c.accepted {
			c.forward(in, false)
		}
		c.from(w.From)
		if w.To != nil {
			c.say(w.To.ID.String(), "", false, Decide(v, *w.To, false, p))
		}
		c.forward(out, true)
	}
	return c.steps
}

// crossing is a packet on its way.
type crossing struct {
	view     View
	node     Node
	packet   packet.Packet
	accepted bool // by an early pass: the later ones do not judge what comes in any more
	steps    []Step
}

func (c *crossing) say(endpoint string, in Pass, egress bool, d Decision) {
	c.steps = append(c.steps, Step{Decision: d, Endpoint: endpoint, Egress: egress, Pass: in})
}

// list is the policy list of a host endpoint in a pass.
func list(e *view.HostEndpoint, in Pass) string {
	switch in {
	case Untracked:
		return e.Untracked
	case PreDNAT:
		return e.PreDNAT
	case Forward:
		return e.Forward
	}
	return e.Normal
}

// has tells whether a host endpoint has policies for what comes in in a pass.
func (c *crossing) has(e *view.HostEndpoint, in Pass) bool {
	if e == nil || list(e, in) == "" {
		return false
	}
	l, known := c.view.List(list(e, in))
	return !known || slices.ContainsFunc(l.Tiers, func(t view.TierPolicies) bool {
		return slices.ContainsFunc(t.Ingress, func(id string) bool {
			p, known := c.view.Policy(id)
			return known && !p.Staged
		})
	})
}

// early is the untracked or the preDNAT pass.
func (c *crossing) early(e *view.HostEndpoint, in Pass, egress bool) {
	if c.accepted || e == nil || list(e, in) == "" || c.failsafe(egress, in == Untracked) != "" {
		return
	}
	d, decides := decide(c.view, list(e, in), in, egress, c.packet)
	c.accepted = decides && d.Allowed
	c.perhaps(e, in, egress, d, decides)
}

// forward is the pass of what the host forwards. It knows no failsafe ports, since these are the host's own.
func (c *crossing) forward(e *view.HostEndpoint, egress bool) {
	if e == nil || list(e, Forward) == "" {
		return
	}
	d, decides := decide(c.view, list(e, Forward), Forward, egress, c.packet)
	c.perhaps(e, Forward, egress, d, decides)
}

// perhaps says what a pass has decided, or that rules of it might have.
func (c *crossing) perhaps(e *view.HostEndpoint, in Pass, egress bool, d Decision, decides bool) {
	switch {
	case decides:
		c.say(HostPrefix+e.Name, in, egress, d)
	case len(d.Open) > 0:
		c.say(HostPrefix+e.Name, in, egress, Decision{true, "no rule is known to match", EndOfAll, d.Open})
	}
}

// own is the pass of what is to the host's own processes, or from them.
func (c *crossing) own(e *view.HostEndpoint, egress bool) {
	if e == nil || c.accepted {
		return
	}
	d := Decision{Allowed: true, By: c.failsafe(egress, false), Rule: EndOfAll}
	switch {
	case d.By != "":
	case len(e.Incomplete) > 0:
		d = Decision{By: "the endpoint is closed but for failsafe ports: " + e.Incomplete[0], Rule: EndOfAll}
	default:
		d, _ = decide(c.view, e.Normal, Normal, egress, c.packet)
	}
	c.say(HostPrefix+e.Name, Normal, egress, d)
}

// from is what a workload that sends is asked.
func (c *crossing) from(e *view.WorkloadEndpoint) {
	const ipip, udp = 4, 17
	if e == nil {
		return
	}
	switch {
	case !c.node.AllowVXLAN && c.packet.Protocol == udp && c.packet.DestinationPort == c.node.VXLANPort:
		c.deny(e, "VXLAN made by a workload")
	case !c.node.AllowIPIP && c.packet.Protocol == ipip:
		c.deny(e, "IP-in-IP made by a workload")
	}
	c.say(e.ID.String(), "", true, Decide(c.view, *e, true, c.packet))
}

func (c *crossing) deny(sender *view.WorkloadEndpoint, by string) {
	c.say(sender.ID.String(), "", true, Decision{By: by, Rule: EndOfAll})
}

// failsafe tells by what a packet of the host is let through whatever policy says; "" if policy is asked. Where connections
// are not tracked, what comes from a failsafe port is an answer.
func (c *crossing) failsafe(egress, untracked bool) string {
	p := &c.packet
	if p.Protocol == packet.ICMPv6 && p.Source.Is6() && p.ICMP != nil && (p.ICMP.Type >= 130 && p.ICMP.Type <= 136 || p.ICMP.Type == 143) {
		return "neighbour discovery"
	}
	there, back, peer := c.node.FailsafeIn, c.node.FailsafeOut, p.Source
	if egress {
		there, back, peer = back, there, p.Destination
	}
	of := func(all []Failsafe, port uint16) bool {
		return slices.ContainsFunc(all, func(f Failsafe) bool {
			return f.Protocol == p.Protocol && f.Port == port && (!f.Peers.IsValid() || f.Peers.Contains(peer))
		})
	}
	switch {
	case of(there, p.DestinationPort):
		return "failsafe port " + strconv.Itoa(int(p.DestinationPort))
	case untracked && of(back, p.SourcePort):
		return "answer of failsafe port " + strconv.Itoa(int(p.SourcePort))
	}
	return ""
}
