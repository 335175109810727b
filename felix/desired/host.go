package desired

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// HostPass is one of the passes in which policies apply to the packets of a host endpoint (spec §3.3).
type HostPass uint8

// The passes, in the order in which a packet meets them.
const (
	Untracked HostPass = iota // before connection tracking: doNotTrack policies
	PreDNAT                   // before the destination is translated: preDNAT policies
	Forward                   // packets that the host forwards: applyOnForward policies
	Normal                    // packets to the host's own processes, and from them
)

// String is the pass's name, as in names of chains.
func (p HostPass) String() string {
	return [...]string{Untracked: "untracked", PreDNAT: "prednat", Forward: "forward", Normal: "normal"}[p]
}

// AnyInterface is the key of the host endpoint of every interface that has none of its own.
const AnyInterface = "*"

// Chains that exist while there is a Host. Allow in them means that the packet is no matter of the pass: neither its
// policies nor those of other chains of the pass see it. They hold the failsafe ports and, as without it a failsafe port
// cannot be reached over IPv6, neighbour discovery.
const (
	FailsafeIn  = "cali-failsafe-in"  // in Filter and Mangle
	FailsafeOut = "cali-failsafe-out" // in Filter and Mangle
	// The same for packets that are not tracked: with the other direction of what the other chain lets through.
	FailsafeUntrackedIn  = "cali-failsafe-in-untracked"  // in Raw
	FailsafeUntrackedOut = "cali-failsafe-out-untracked" // in Raw
)

// Ways names the chains that judge packets coming in by an interface of the host (Ingress) and leaving by it (Egress). What
// an empty name means is said where Ways are used. A name of a chain that is not there means that every packet is dropped,
// once the failsafe chain has had its say.
type Ways struct{ Ingress, Egress string }

// Of is the name for a direction.
func (w Ways) Of(d Direction) string {
	if d == Egress {
		return w.Egress
	}
	return w.Ingress
}

// Host is the firewall of an interface of the host, by the interface's name, whether it exists or not; under AnyInterface
// that of all interfaces without an entry of their own, loopback and (where said so) workloads' included. An interface
// with an entry is never judged by that of AnyInterface.
//
// A packet meets the following. The interface is that by which it came in ("in"), or leaves ("out"); marks are MarkAccept
// and MarkPass; "accept" lets it leave the hook. A hook in which no Host judges need not exist, and nothing of the below
// costs a packet on a node without hosts.
//
//	raw PREROUTING      (in; not workloads) the marks are cleared first of all. If Untracked.Ingress is named:
//	                    FailsafeUntrackedIn; if allowed: clear the mark and accept. Then the chain; if allowed: do not
//	                    track, keep the mark, accept.
//	raw OUTPUT          (out) the same with Untracked.Egress and FailsafeUntrackedOut; marks are cleared first.
//	mangle PREROUTING   (in; workloads too) established, related, or marked accepted: accept. If PreDNAT.Ingress is named:
//	                    invalid: drop; FailsafeIn; if allowed: clear the mark and accept. Then the chain; if allowed: keep
//	                    the mark, accept.
//	filter INPUT        (in) tunnel packets that Settings admit: accept. What comes from workloads goes Settings'
//	                    EndpointToHost way and no further. Marked accepted: accept. Established or related: accept;
//	                    invalid: drop (unless Settings.AcceptInvalid); FailsafeIn; if allowed: accept. Then the chain of
//	                    Normal.Ingress; if it is not named: drop.
//	filter FORWARD      established or related: accept, as for workloads. (in; workloads too) unless marked accepted: if
//	                    Forward.Ingress is named: invalid: drop; the chain. Then what workloads' policies say, see
//	                    Workload. (out; workloads too) if Forward.Egress is named: invalid: drop; the chain. No failsafes.
//	                    What neither chain denies is left to later rules of the kernel's FORWARD; where it was judged by a
//	                    chain and allowed, or Forward names none at all, it may be accepted instead.
//	filter OUTPUT       (out) marked accepted (by Untracked): accept. To workloads: accept. Tunnel packets that Settings
//	                    admit, to SetVXLANHosts or SetAllHosts: accept. Established or related: accept; invalid: drop.
//	                    A packet whose destination was translated (conntrack status DNAT): MarkLater, accept, since it may
//	                    leave by another interface than it seems here. FailsafeOut; if allowed: accept. Then the chain of
//	                    Normal.Egress; if it is not named: drop.
//	mangle POSTROUTING  (out; not workloads) only what has MarkLater, which forwarded packets never have: FailsafeOut, then
//	                    the chain of Normal.Egress, as in OUTPUT. Denied packets are dropped, never rejected.
//
// Packets on connections that Settings.CutFlows is about are dropped in INPUT and OUTPUT before established ones pass, as
// they are in FORWARD.
type Host struct {
	// Endpoint is the host endpoint's name, for comments and messages.
	Endpoint string
	// Untracked, PreDNAT (ingress only) and Forward judge nothing where they name no chain. Untracked is never set for
	// AnyInterface. Where an interface's own endpoint has no PreDNAT, render fills in that of AnyInterface.
	Untracked, PreDNAT, Forward Ways
	// Normal drops what is not established and no failsafe where it names no chain.
	Normal Ways
	// Counted are, by pass, chains of staged policies where no chain of the same endpoint judges. A packet goes through one before
	// another endpoint's judges there, unless it is known to be established or invalid, or is a failsafe, and goes on as it came; no rule
	// of the above that accepts or drops is there for it. A chain that is not there is left out.
	Counted [Normal]Ways
	// ClosedBecause says what is missing while Normal names no chains.
	ClosedBecause string
}

// Equal tells whether two hosts are the same to the kernel.
func (h Host) Equal(o Host) bool {
	h.ClosedBecause, o.ClosedBecause = "", ""
	return h == o
}

// Of are the chains of a pass.
func (h Host) Of(p HostPass) Ways {
	return [...]Ways{Untracked: h.Untracked, PreDNAT: h.PreDNAT, Forward: h.Forward, Normal: h.Normal}[p]
}

// PassChain is the name of the chain that evaluates a policy list in a pass of a host endpoint: what Host names.
func PassChain(id string, p HostPass, d Direction) string {
	return "cali-hep-" + p.String() + [...]string{Ingress: "-in-", Egress: "-out-"}[d] + id
}

// PassLayers are where the chain of a pass is needed, and with it the chains of the list's policies: in Raw (Untracked), in
// Mangle (PreDNAT), in Filter (Forward and Normal), and for what leaves in the Normal pass also in Mangle.
func PassLayers(p HostPass, d Direction) Layers {
	switch {
	case p == Untracked:
		return Raw
	case p == PreDNAT:
		return Mangle
	case p == Normal && d == Egress:
		return Filter | Mangle
	}
	return Filter
}

// Judges tells whether a list has anything to say in a pass and direction: a policy that is enforced. The Normal pass always
// judges; where nothing is said, its end denies.
func Judges(l view.PolicyList, p HostPass, d Direction) bool {
	if p == Normal {
		return true
	}
	for _, t := range l.Tiers {
		if len(enforced(policiesOf(t, d))) > 0 {
			return p != PreDNAT || d == Ingress
		}
	}
	return false
}

// Counts tells whether all that a list has to say in a pass and direction is what staged policies would decide. The Normal pass, which
// always judges, counts on the way.
func Counts(l view.PolicyList, p HostPass, d Direction) bool {
	return !Judges(l, p, d) && (p != PreDNAT || d == Ingress) &&
		slices.ContainsFunc(l.Tiers, func(t view.TierPolicies) bool { return len(policiesOf(t, d)) > 0 })
}

// PassChains are the chains that evaluate a policy list in a pass, ingress first; one where the list has nothing to say has
// no rules, and one that only counts leaves the marks alone. Only the Normal pass has profiles and ends in a drop; a chain of the others that ends without a decision leaves
// the packet to what follows. Tiers of Untracked and PreDNAT decide nothing at their end either.
func PassChains(l view.PolicyList, p HostPass) [2]Chain {
	var out [2]Chain
	for d := range out {
		d := Direction(d)
		c := Chain{Name: PassChain(l.ID, p, d), In: PassLayers(p, d)}
		if judges := Judges(l, p, d); judges || Counts(l, p, d) {
			c.Rules = slices.DeleteFunc(listRules(l, p, d), func(r Rule) bool { return !judges && r.Do == Reset })
		}
		out[d] = c
	}
	return out
}

// Failsafe is a port that host endpoints never lose.
type Failsafe struct {
	Protocol view.Protocol
	Port     uint16
	Nets     []netip.Prefix // peers it is for; none: all
}

// FailsafeChains are the chains of the failsafe ports.
func FailsafeChains(in, out []Failsafe) []Chain {
	// The port is the destination's of what is let through, and the peer is on the side that the host is not.
	way := func(f Failsafe, incoming, reverse bool) Rule {
		m := &Match{Protocol: f.Protocol}
		peer, port := &m.Destination, &m.Destination
		text := "failsafe"
		if incoming {
			peer = &m.Source
		}
		if reverse {
			text, port = "answers of a failsafe", &m.Source
		}
		peer.Nets = f.Nets
		port.Ports = []view.PortRange{{First: f.Port, Last: f.Port}}
		return Rule{Match: m, Do: Allow, Comment: text}
	}
	chain := func(name string, in Layers, incoming bool, ports, reverse []Failsafe) Chain {
		c := Chain{Name: name, In: in, Rules: neighbors()}
		for _, f := range ports {
			c.Rules = append(c.Rules, way(f, incoming, false))
		}
		for _, f := range reverse {
			c.Rules = append(c.Rules, way(f, incoming, true))
		}
		return c
	}
	return []Chain{
		chain(FailsafeIn, Filter|Mangle, true, in, nil),
		chain(FailsafeOut, Filter|Mangle, false, out, nil),
		chain(FailsafeUntrackedIn, Raw, true, in, out),
		chain(FailsafeUntrackedOut, Raw, false, out, in),
	}
}

// neighbors let a host find its neighbours and routers: multicast listeners (130-132, 143) and neighbour discovery (133-136),
// which is to IPv6 what ARP is to IPv4, and ARP is under no policy.
func neighbors() (out []Rule) {
	const icmpv6 = 58
	for _, t := range []uint8{130, 131, 132, 133, 134, 135, 136, 143} {
		out = append(out, Rule{Match: &Match{IPVersion: 6, Protocol: icmpv6, ICMP: &view.ICMP{Type: t}}, Do: Allow, Comment: "neighbour discovery"})
	}
	return out
}
