package oracle

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// Verdict is whether a packet passes, and what decided so.
type Verdict struct {
	Allowed bool
	By      string // "np/shop/web ingress rule 2", "end of tier default", …
}

// Decide says whether an endpoint's policy lets a packet pass in a direction (spec §3.1); that of a host endpoint in its
// normal pass. An endpoint that nobody knows lets nothing pass, nor does one with a profile that nobody knows.
func (c *Cluster) Decide(endpoint api.Key, d Direction, p Packet) Verdict {
	for _, t := range c.things {
		if t.endpoint && t.key == endpoint {
			action, by := c.evaluate(t, normal, d, p)
			return Verdict{action == api.Allow, by}
		}
	}
	return Verdict{By: "endpoint is not known"}
}

// evaluate is what an endpoint's policies of a pass decide: Allow, Deny, or nothing, which the normal pass never does.
func (c *Cluster) evaluate(self *thing, in pass, d Direction, p Packet) (api.Action, string) {
	if self == nil {
		return "", ""
	}
	if in == normal {
		for _, name := range self.profiles {
			if _, known := c.profiles[name]; !known {
				return api.Deny, "profile " + name + " is not known"
			}
		}
	}
tiers:
	for _, t := range c.tiers {
		applied := false
		for _, q := range t.policies {
			if !slices.Contains(q.passes, in) || !q.covers[d] || !q.applies(self) {
				continue
			}
			applied = true
			action, i := decide(q.rules[d], p)
			switch action {
			case api.Allow, api.Deny:
				return action, fmt.Sprintf("%s %s rule %d", q.id, d, i)
			case api.Pass:
				continue tiers
			}
		}
		// The early passes leave to the later ones what they do not decide.
		if applied && t.action != api.Pass && (in == normal || in == forward) {
			return api.Deny, "end of tier " + t.name
		}
	}
	if in != normal {
		return "", ""
	}
	for _, name := range self.profiles {
		action, i := decide(c.profiles[name][d], p)
		switch action {
		case api.Allow, api.Deny:
			return action, fmt.Sprintf("pro/%s %s rule %d", name, d, i)
		}
	}
	return api.Deny, "no profile decided"
}

// decide is the action of the first rule that matches and decides, and its number; "" if none does.
func decide(rules []rule, p Packet) (api.Action, int) {
	for i, r := range rules {
		if r.action != api.Log && r.matches(p) {
			return r.action, i
		}
	}
	return "", -1
}

// Way is how a packet goes through a node: from one of its workloads, from elsewhere or from the node itself, to one of its
// workloads, to elsewhere or to the node itself. The zero key is elsewhere, which is behind the Uplink.
type Way struct {
	From, To api.Key
	ToHost   bool // to the node itself
	FromHost bool // from the node itself
}

// Settings are what a node is told beside policy.
type Settings struct {
	// Node is the node's name; its host endpoints take part.
	Node string
	// EndpointToHost is what happens to packets to the node itself that policy allowed: Drop (the default), Accept or
	// Return, which leaves them to others and here means that they pass.
	EndpointToHost string
	VXLANPort      uint16 // 0 stands for 4789
	AllowVXLAN     bool   // workloads may send VXLAN
	AllowIPIP      bool   // workloads may send IP-in-IP
	// FailsafeIn and FailsafeOut are the failsafe ports of host endpoints, separated by commas, or none; empty: those of the documents.
	FailsafeIn, FailsafeOut string
}

// Passes says whether the first packet of a connection passes a node (spec §3.1, point 7; §3.2; §3.3).
func (c *Cluster) Passes(w Way, p Packet, s Settings) Verdict { return c.through(w, p, s) }

// toHost is what becomes of a packet from a workload to its own host.
func (c *Cluster) toHost(w Way, p Packet, s Settings) Verdict {
	if p.Protocol == ICMPv6 && p.V6() {
		switch p.Type { // neighbour discovery and multicast listeners, before policy
		case 130, 131, 132, 133, 135, 136:
			return Verdict{true, "neighbour discovery"}
		}
	}
	if v := c.workloads(w, p, s); !v.Allowed {
		return v
	}
	return Verdict{s.EndpointToHost == "Accept" || s.EndpointToHost == "Return", "DefaultEndpointToHostAction"}
}

// workloads is what the workloads say that a packet comes from and goes to.
func (c *Cluster) workloads(w Way, p Packet, s Settings) Verdict {
	if c.lacks(w.From, p) || c.lacks(w.To, p) {
		return Verdict{false, "workload has no address of that family"}
	}
	if w.From != (api.Key{}) {
		port := s.VXLANPort
		if port == 0 {
			port = 4789
		}
		if p.Protocol == UDP && p.DestinationPort == port && !s.AllowVXLAN {
			return Verdict{false, "VXLAN made by a workload"}
		}
		if p.Protocol == IPIP && !s.AllowIPIP {
			return Verdict{false, "IP-in-IP made by a workload"}
		}
		if v := c.Decide(w.From, Egress, p); !v.Allowed {
			return v
		}
	}
	if w.To != (api.Key{}) {
		return c.Decide(w.To, Ingress, p)
	}
	return Verdict{true, "no policy is asked"}
}

// lacks tells whether an endpoint has no address of a packet's family. It neither sends such packets nor gets them.
func (c *Cluster) lacks(endpoint api.Key, p Packet) bool {
	return slices.ContainsFunc(c.things, func(t *thing) bool {
		return t.endpoint && t.key == endpoint && !slices.ContainsFunc(t.nets, func(n netip.Prefix) bool { return n.Addr().Is6() == p.V6() })
	})
}
