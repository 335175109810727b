package oracle

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// Uplink is the interface of a node towards all that is elsewhere.
const Uplink = "eth0"

// pass is one of the ways in which policies apply to a host endpoint (spec §3.3). Workloads have the normal one only.
type pass uint8

const (
	normal pass = iota
	untracked
	preDNAT
	forward
)

// passesOf are those that a policy takes part in, by the first flag that fits.
func passesOf(s *api.GlobalNetworkPolicySpec) []pass {
	switch {
	case s.DoNotTrack:
		return []pass{untracked}
	case s.PreDNAT:
		return []pass{preDNAT}
	case s.ApplyOnForward:
		return []pass{normal, forward}
	}
	return []pass{normal}
}

// Failsafe ports, if nobody says otherwise (spec §3.4, and typha's second port).
const (
	failsafeIn  = "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:5474,tcp:6443,tcp:6666,tcp:6667"
	failsafeOut = "udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:5474,tcp:6443,tcp:6666,tcp:6667"
)

// Failsafe is a port that a host endpoint never loses, towards everybody if no peers are named.
type Failsafe struct {
	Port
	Peers netip.Prefix
}

// Failsafes are the failsafe ports of a direction. An entry is 22 (of TCP), udp:53, tcp:10.0.0.0/8:22 or tcp:[fd00::/8]:22.
func (s Settings) Failsafes(d Direction) (out []Failsafe) {
	text := cmp.Or(s.FailsafeIn, failsafeIn)
	if d == Egress {
		text = cmp.Or(s.FailsafeOut, failsafeOut)
	}
	if text == "none" {
		return nil
	}
	for entry := range strings.SplitSeq(text, ",") {
		f := Failsafe{Port: Port{Protocol: TCP}}
		colon := strings.LastIndex(entry, ":")
		if colon > 0 {
			protocol, peers, limited := strings.Cut(entry[:colon], ":")
			f.Protocol = map[string]uint8{"tcp": TCP, "udp": UDP, "sctp": SCTP}[protocol]
			if limited {
				f.Peers = nets([]string{strings.Trim(peers, "[]")})[0]
			}
		}
		number, err := strconv.ParseUint(entry[colon+1:], 10, 16)
		if err != nil || f.Protocol == 0 {
			panic("oracle: " + entry + " is no failsafe port")
		}
		f.Number = uint16(number)
		out = append(out, f)
	}
	return out
}

// failsafe tells whether a packet is of a failsafe port in a direction. Without tracking, answers are told by their source.
func (s Settings) failsafe(d Direction, p Packet, tracked bool) bool {
	peer, back := p.Source, Egress
	if d == Egress {
		peer, back = p.Destination, Ingress
	}
	if p.V6() && p.Protocol == ICMPv6 && (p.Type >= 130 && p.Type <= 136 || p.Type == 143) {
		return true // without neighbour discovery and multicast listeners no failsafe port could be reached
	}
	of := func(d Direction, number uint16) bool {
		return slices.ContainsFunc(s.Failsafes(d), func(f Failsafe) bool {
			return f.Port == Port{p.Protocol, number} && (!f.Peers.IsValid() || f.Peers.Contains(peer))
		})
	}
	return of(d, p.DestinationPort) || !tracked && of(back, p.SourcePort)
}

// hostEndpoints are those of the uplink (own) and of all interfaces (any) of a node; nil if there is none. The first by
// name counts.
func (c *Cluster) hostEndpoints(node string) (own, any *thing) {
	hosts := slices.Clone(c.things)
	slices.SortFunc(hosts, func(a, b *thing) int { return strings.Compare(a.key.Name, b.key.Name) })
	for _, t := range hosts {
		switch {
		case t.key.Kind != "HostEndpoint" || t.node != node:
		case t.iface == "*" && any == nil:
			any = t
		case t.iface == Uplink && own == nil:
			own = t
		}
	}
	return own, any
}

// has tells whether any policy applies to a host endpoint in a pass.
func (c *Cluster) has(t *thing, in pass, d ...Direction) bool {
	return t != nil && slices.ContainsFunc(c.tiers, func(tier *tier) bool {
		return slices.ContainsFunc(tier.policies, func(p *policy) bool {
			covers := slices.ContainsFunc(d, func(d Direction) bool { return p.covers[d] })
			return covers && slices.Contains(p.passes, in) && p.applies(t)
		})
	})
}

// through takes a packet through the passes of a node's host endpoints and through its workloads' policies, in the order of
// the hooks (spec §3.3).
func (c *Cluster) through(w Way, p Packet, s Settings) Verdict {
	own, any := c.hostEndpoints(s.Node)
	uplink := own // whose the uplink is
	if own == nil {
		uplink = any
	}
	fromWorkload, toWorkload := w.From != (api.Key{}), w.To != (api.Key{})
	in, out := any, any // whose the interfaces are by which it comes in and leaves
	if !fromWorkload {
		in = uplink
	}
	if !toWorkload {
		out = uplink
	}
	accepted := false // by an early pass, which excuses it from the later ones of the same endpoint
	early := func(t *thing, in pass, d Direction) (Verdict, bool) {
		if accepted || t == nil || s.failsafe(d, p, in != untracked) {
			return Verdict{}, false
		}
		action, by := c.evaluate(t, in, d, p)
		accepted = action == api.Allow
		return Verdict{false, by}, action == api.Deny
	}
	if !w.FromHost {
		if !fromWorkload {
			if v, denied := early(own, untracked, Ingress); denied {
				return v
			}
		}
		before := in
		if !c.has(in, preDNAT, Ingress) { // its own counts only if it has such policies
			before = any
		}
		if v, denied := early(before, preDNAT, Ingress); denied {
			return v
		}
	} else if !toWorkload {
		if v, denied := early(own, untracked, Egress); denied {
			return v
		}
	}
	switch {
	case w.ToHost && fromWorkload:
		return c.toHost(w, p, s)
	case w.ToHost:
		return c.local(uplink, Ingress, p, accepted, s)
	case w.FromHost && toWorkload:
		return Verdict{true, "the host reaches its workloads"}
	case w.FromHost:
		return c.local(uplink, Egress, p, accepted, s)
	}
	if !accepted {
		if action, by := c.evaluate(in, forward, Ingress, p); action == api.Deny {
			return Verdict{false, by}
		}
	}
	if v := c.workloads(w, p, s); !v.Allowed {
		return v
	}
	if action, by := c.evaluate(out, forward, Egress, p); action == api.Deny {
		return Verdict{false, by}
	}
	return Verdict{true, "forwarded"}
}

// local judges what goes to the host itself, or comes from it.
func (c *Cluster) local(t *thing, d Direction, p Packet, accepted bool, s Settings) Verdict {
	switch {
	case t == nil:
		return Verdict{true, "no host endpoint"}
	case accepted:
		return Verdict{true, "accepted by an early pass"}
	case s.failsafe(d, p, true):
		return Verdict{true, "failsafe"}
	}
	action, by := c.evaluate(t, normal, d, p)
	return Verdict{action == api.Allow, by}
}
