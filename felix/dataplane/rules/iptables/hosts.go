package iptables

import (
	"fmt"

	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Host endpoints: desired.Host says what a packet meets. Each hook that is needed for them goes to a dispatch tree, which
// finds the chain of the packet's interface, or that of all others.
//
// Where a packet is to leave a hook, others' rules of the tables raw and mangle still see it; in filter it is accepted, as
// Calico does, whatever the policy of the kernel's chain is.

// hostChain is the kernel's name of an interface's chain at a station.
func hostChain(s model.Station, iface string) string { return fitted(s.Chain(iface)) }

// dispatch is the kernel's name of the chain that finds them.
func dispatch(s model.Station) string {
	if s.Pass == desired.Forward {
		return [2]string{chainFromHostFwd, chainToHostFwd}[s.Dir]
	}
	return [2]string{chainFromHost, chainToHostBy}[s.Dir]
}

// leave is the target with which a packet leaves the hook.
func leave(layer desired.Layers) string {
	if layer == desired.Filter {
		return accept
	}
	return "-j RETURN"
}

// hostChains are the chains of interfaces at the stations of a layer, and the dispatch to them.
func (b *bases) hostChains(layer desired.Layers, out map[string][]rule) {
	for _, s := range model.Stations() {
		if s.Layer != layer || !b.model.Needs(s) {
			continue
		}
		out[chainFailsafe] = []rule{{"", clearMarks, "to be judged by the passes that follow"}, {"", leave(layer), "a failsafe port"}}
		targets := map[string]rule{}
		var last []rule
		for iface, h := range b.model.Hosts {
			to := rule{"", "-j RETURN", h.Endpoint + " has nothing to do here"}
			if s.Stops(h) {
				out[hostChain(s, iface)] = b.hostRules(s, h)
				to = rule{"", "-g " + hostChain(s, iface), h.Endpoint}
			}
			switch {
			case iface != desired.AnyInterface:
				targets[iface] = to // one that has nothing to do here is not left to that of all interfaces
			case s.Stops(h):
				last = []rule{to}
			}
		}
		b.tree(out, dispatch(s), [2]string{"-i", "-o"}[s.Dir], targets, last)
		if s == model.ForwardIn && b.model.Marked() {
			out[dispatch(s)] = append([]rule{{ifAllowed, "-j RETURN", "accepted before"}}, out[dispatch(s)]...)
		}
	}
}

// hostRules are the chain of an interface at a station.
func (b *bases) hostRules(s model.Station, h desired.Host) (out []rule) {
	if s.Pass == desired.Normal {
		out = append(out, b.cutFlows()...)
		out = append(out, rule{established, leave(s.Layer), "established"})
	}
	switch {
	case s.Pass == desired.Untracked || s == model.NormalLater:
	case s.Judges(h):
		out = append(out, b.invalid()...)
	case !b.settings().AcceptInvalid: // it would not come to policy in force
		out = append(out, rule{"-m conntrack --ctstate INVALID ", "-j RETURN", "invalid"})
	}
	if safe := s.Failsafe(); safe != "" && b.hasChain(safe, s.Layer) {
		if s.Pass == desired.Normal { // the other passes come upon clean marks
			out = append(out, rule{"", clearMarks, "start"})
		}
		out = append(out, rule{"", "-j " + kernelChain(safe), "failsafe ports"}, rule{ifAllowed, "-g " + chainFailsafe, "a failsafe port"})
	}
	if counts := s.Counts(h); b.hasChain(counts, s.Layer) {
		out = append(out, rule{"", "-j " + kernelChain(counts), "staged policies of host endpoint " + h.Endpoint})
	}
	name := h.Of(s.Pass).Of(s.Dir)
	switch {
	case !s.Judges(h):
		return out
	case name == "":
		return append(out, rule{"", drop, "host endpoint " + h.Endpoint + " is closed"})
	case !b.hasChain(name, s.Layer):
		return append(out, rule{"", drop, "policy of host endpoint " + h.Endpoint + " is not known"})
	}
	out = append(out, rule{"", "-j " + kernelChain(name), "host endpoint " + h.Endpoint})
	switch s.Pass {
	case desired.Untracked:
		out = append(out, rule{ifAllowed, "-j CT --notrack", "allowed without tracking"})
	case desired.Normal:
		out = append(out, rule{ifAllowed, leave(s.Layer), "allowed"})
	}
	return out
}

// find leads a packet to the chain of its interface, or of all others. It is the end of a chain: what comes back from there
// is done.
func (b *bases) find(s model.Station) []rule {
	if !b.model.Needs(s) {
		return nil
	}
	return []rule{{"", "-g " + dispatch(s), "host endpoint by interface"}}
}

// marksOfOthers forgets what a packet brought along.
var marksOfOthers = rule{"", clearMarks, "marks that others made"}

// hostRaw puts what host endpoints need around the rules of raw PREROUTING.
func (b *bases) hostRaw(rules []rule) []rule {
	if b.model.Early() {
		rules = append([]rule{marksOfOthers}, rules...)
	}
	return append(rules, b.find(model.UntrackedIn)...)
}

// hostRawOutput does it to those of raw OUTPUT.
func (b *bases) hostRawOutput(rules []rule) []rule {
	if b.model.Needs(model.UntrackedOut) {
		rules = append([]rule{marksOfOthers}, rules...)
	}
	return append(rules, b.find(model.UntrackedOut)...)
}

// preDNAT is mangle PREROUTING.
func (b *bases) preDNAT() (out []rule) {
	if !b.model.Needs(model.PreDNATIn) {
		return nil
	}
	out = append(out, rule{established, leave(desired.Mangle), "established"})
	if b.model.Judges(model.UntrackedIn) {
		out = append(out, rule{ifAllowed, leave(desired.Mangle), "accepted before"})
	}
	return append(out, b.find(model.PreDNATIn)...)
}

// hostInput puts what host endpoints need around the rules of filter INPUT, which send workloads elsewhere.
func (b *bases) hostInput(rules []rule) (out []rule) {
	if !b.model.Needs(model.NormalIn) {
		return rules
	}
	out = append(b.tunnels("from", source), rules...)
	if b.model.Marked() {
		out = append(out, rule{ifAllowed, accept, "accepted before"})
	}
	out = append(out, b.throughService()...)
	return append(out, b.find(model.NormalIn)...)
}

// tunnels accepts tunnel packets from or to other nodes: they are felix's, policy is about what is in them.
func (b *bases) tunnels(way string, peer side) (out []rule) {
	if v := b.vxlan(); v != nil {
		out = append(out, rule{udpTo(v.Port) + b.inSet(peer, desired.SetVXLANHosts, false), accept, "VXLAN " + way + " a node"})
	}
	if b.settings().IPIP != nil && !b.v6 {
		out = append(out, rule{protocolIs(protoIPIP) + b.inSet(peer, desired.SetAllHosts, false), accept, "IP-in-IP " + way + " a node"})
	}
	return out
}

// forwardJudged tells whether host endpoints judge what is forwarded.
func (b *bases) forwardJudged() bool {
	return b.model.Judges(model.ForwardIn) || b.model.Judges(model.ForwardOut)
}

// throughHosts is the rule of FORWARD that has packets judged by the interface they came by, or leave by.
func (b *bases) throughHosts(s model.Station) []rule {
	if !b.model.Needs(s) {
		return nil
	}
	match := ""
	if !b.forwardJudged() {
		match = notEstablished // those are left to others
	}
	return []rule{{match, "-j " + dispatch(s), "through host endpoints"}}
}

var (
	setLater    = fmt.Sprintf("-j MARK --set-xmark %#x/%#x", desired.MarkLater, desired.MarkLater)
	ifLater     = fmt.Sprintf("-m mark --mark %#x/%#x ", desired.MarkLater, desired.MarkLater)
	unlessLater = fmt.Sprintf("-m mark ! --mark %#x/%#x ", desired.MarkLater, desired.MarkLater)
	noLater     = fmt.Sprintf("-j MARK --set-xmark 0x0/%#x", desired.MarkLater)
)

// hostOutput is filter OUTPUT.
func (b *bases) hostOutput() (out []rule) {
	if !b.model.Needs(model.NormalOut) {
		return nil
	}
	if b.model.Judges(model.UntrackedOut) {
		out = append(out, rule{ifAllowed, accept, "accepted before"})
	}
	out = append(out,
		rule{"", noLater, "marks that others made"},
		rule{"-m conntrack --ctstate DNAT -m conntrack ! --ctstate RELATED,ESTABLISHED ", setLater, "translated, and so judged when it leaves"},
		rule{ifLater, accept, "judged when it leaves"})
	out = append(out, b.workloads("-o", accept, "from the host to a workload of its own")...)
	out = append(out, b.tunnels("to", destination)...)
	return append(out, b.find(model.NormalOut)...)
}

// later is mangle POSTROUTING.
func (b *bases) later() (out []rule) {
	if !b.model.Needs(model.NormalLater) {
		return nil
	}
	out = append(out, rule{unlessLater, leave(desired.Mangle), "judged before"})
	out = append(out, b.workloads("-o", leave(desired.Mangle), "from the host to a workload of its own")...)
	return append(out, b.find(model.NormalLater)...)
}

// notLater keeps packets that are forwarded with a mark of others from being taken for locally sent ones.
func (b *bases) notLater() []rule {
	if !b.model.Needs(model.NormalLater) {
		return nil
	}
	return []rule{{"", noLater, "not sent from here"}}
}
