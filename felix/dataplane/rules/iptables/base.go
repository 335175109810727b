package iptables

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// bases compiles what exists once, and the dispatch to workloads.
type bases struct {
	compiler
	model       *model.Model
	randomFully bool // the binary knows --random-fully for MASQUERADE
}

// hook is what we want in a chain of the kernel's: rules at its top and at its end.
type hook struct {
	top, end []rule
}

// table is what we want in a table.
type table struct {
	hooks  map[string]hook
	chains map[string][]rule
}

func (b *bases) settings() desired.Settings { return b.model.Settings }

func (b *bases) vxlan() *desired.VXLANAdmission {
	if b.v6 {
		return b.settings().VXLAN6
	}
	return b.settings().VXLAN4
}

// tables returns what exists once, by table. Hooks of chains without rules are left out: a hook costs every packet.
func (b *bases) tables() map[string]table {
	out := map[string]table{}
	for _, name := range []string{tableRaw, tableMangle, tableFilter, tableNAT} {
		out[name] = table{hooks: map[string]hook{}, chains: map[string][]rule{}}
	}
	add := func(in, kernel, name string, rules, end []rule) {
		if len(rules) == 0 {
			return
		}
		out[in].chains[name] = rules
		out[in].hooks[kernel] = hook{top: []rule{{"", "-j " + name, "felix"}}, end: end}
	}
	add(tableRaw, "PREROUTING", chainPrerouting, b.hostRaw(b.rawPrerouting()), nil)
	add(tableRaw, "OUTPUT", chainOutput, b.hostRawOutput(b.noTrack()), nil)
	add(tableMangle, "PREROUTING", chainPrerouting, b.preDNAT(), nil)
	add(tableMangle, "POSTROUTING", chainPostrouting, b.later(), nil)
	add(tableFilter, "INPUT", chainInput, b.hostInput(b.input()), nil)
	add(tableFilter, "FORWARD", chainForward, b.forward(), b.accepted())
	add(tableFilter, "OUTPUT", chainOutput, append(b.byIPVS(), b.hostOutput()...), nil)
	floating, back := b.floating()
	if len(floating) > 0 {
		out[tableNAT].chains[chainFloating], out[tableNAT].chains[chainBack] = floating, back
		to := []rule{{"", "-j " + chainFloating, "floating addresses"}}
		add(tableNAT, "PREROUTING", chainPrerouting, to, nil)
		add(tableNAT, "OUTPUT", chainOutput, to, nil)
		back = []rule{{"", "-j " + chainBack, "floating addresses"}}
	}
	add(tableNAT, "POSTROUTING", chainPostrouting, append(back, b.postrouting()...), nil)

	raw, filter := out[tableRaw].chains, out[tableFilter].chains
	raw[chainSources] = b.sources()
	if skip := b.rpfSkip(); len(skip) > 0 {
		raw[chainRPFSkip] = skip
	}
	filter[chainToHost] = b.toHost()
	for layer, name := range tableOfLayer {
		if b.model.Uses(layer) || layer == desired.Filter {
			out[name].chains[chainAllow] = []rule{{"", setMark(desired.MarkAccept), "allowed"}}
			out[name].chains[chainPass] = []rule{{"", setMark(desired.MarkPass), "passed"}}
		}
		b.hostChains(layer, out[name].chains)
	}
	b.dispatch(filter)
	b.ledOnChains(filter)
	if b.settings().NATOutgoing != nil {
		out[tableNAT].chains[chainNAT] = b.natOutgoing()
	}
	return out
}

func (b *bases) noTrack() []rule {
	v := b.vxlan()
	if v == nil {
		return nil
	}
	return []rule{{udpTo(v.Port), "-j CT --notrack", "VXLAN is not tracked"}}
}

// strangersTunnels drops tunnel packets to this host that come from no known node. It is done first of all, so that nobody
// can fill the table of connections with them.
func (b *bases) strangersTunnels() (out []rule) {
	const toLocal = "-m addrtype --dst-type LOCAL "
	if v := b.vxlan(); v != nil {
		out = append(out, rule{udpTo(v.Port) + b.inSet(source, desired.SetVXLANHosts, true) + toLocal, drop, "VXLAN from elsewhere"})
	}
	if b.settings().IPIP != nil && !b.v6 {
		out = append(out, rule{protocolIs(protoIPIP) + b.inSet(source, desired.SetAllHosts, true) + toLocal, drop, "IP-in-IP from elsewhere"})
	}
	return out
}

func (b *bases) rawPrerouting() []rule {
	out := append(b.strangersTunnels(), b.noTrack()...)
	return append(out, b.workloads("-i", "-j "+chainSources, "source of a workload")...)
}

// workloads are rules for all workload interfaces.
func (b *bases) workloads(match, target, comment string) (out []rule) {
	for _, p := range b.settings().WorkloadPrefixes {
		out = append(out, rule{match + " " + p + "+ ", target, comment})
	}
	return out
}

// sources drops what comes from a workload under a source that is not routed to it.
func (b *bases) sources() (out []rule) {
	if len(b.rpfSkip()) > 0 {
		// A chain that was gone to and ends returns to the caller of this one, and a source that is not allowed does not get
		// there.
		out = append(out, rule{"-m rpfilter --invert ", "-g " + chainRPFSkip, "source is not routed to the workload it came from"})
		return out
	}
	return []rule{{"-m rpfilter --invert ", drop, "source is not routed to the workload it came from"}}
}

// rpfSkip lets additional sources of workloads pass.
func (b *bases) rpfSkip() (out []rule) {
	for _, name := range slices.Sorted(maps.Keys(b.model.Workloads)) {
		for _, p := range b.model.Workloads[name].AllowedSources {
			if p.Addr().Is6() == b.v6 {
				out = append(out, rule{"-i " + name + " -s " + p.Masked().String() + " ", "-j RETURN", "additional source of " + name})
			}
		}
	}
	if len(out) > 0 {
		out = append(out, rule{"", drop, "source is not routed to the workload it came from"})
	}
	return out
}

// input judges what workloads send to their host. Tunnel packets of known nodes need no word here, see strangersTunnels.
func (b *bases) input() []rule { return b.workloads("-i", "-g "+chainToHost, "workload to its host") }

func (b *bases) forward() []rule {
	out := b.cutFlows()
	for _, w := range []struct{ match, way, closed, dispatch string }{
		{"-i", "from", chainFromClosed, chainFrom}, {"-o", "to", chainToClosed, chainTo},
	} {
		if len(b.closed(w.match)) > 0 {
			out = append(out, b.workloads(w.match, "-j "+w.closed, w.way+" a closed workload")...)
		}
	}
	if b.forwardJudged() {
		out = append(out, rule{established, accept, "established"})
	} else { // what is no workload's is no matter of ours
		for _, match := range []string{"-i", "-o"} {
			for _, r := range b.workloads(match, accept, "established") {
				r.match += established
				out = append(out, r)
			}
		}
	}
	out = append(out, b.notLater()...)
	out = append(out, b.throughHosts(model.ForwardIn)...)
	for _, w := range []struct{ match, way, dispatch string }{{"-i", "from", chainFrom}, {"-o", "to", chainTo}} {
		for _, r := range b.workloads(w.match, "-j "+w.dispatch, w.way+" a workload") {
			out = append(out, r, rule{r.match + notAllowed, drop, w.way + " a workload, and nothing allowed it"})
		}
	}
	return append(out, b.throughHosts(model.ForwardOut)...)
}

// accepted comes at the end of FORWARD: what policy allowed passes others' rules, and is accepted then whatever the policy
// of the chain is.
func (b *bases) accepted() (out []rule) {
	for _, match := range []string{"-i", "-o"} {
		for _, r := range b.workloads(match, accept, "allowed by policy") {
			r.match += ifAllowed
			out = append(out, r)
		}
	}
	return out
}

const (
	established    = "-m conntrack --ctstate RELATED,ESTABLISHED "
	notEstablished = "-m conntrack ! --ctstate RELATED,ESTABLISHED "
)

// cutFlows comes before established flows, which is what they are.
func (b *bases) cutFlows() []rule {
	if !b.settings().CutFlows {
		return nil
	}
	return []rule{{fmt.Sprintf("-m connmark --mark %#x/%#x ", desired.ConnMarkCut, desired.ConnMarkCut), drop, "a connection that policy has come to forbid"}}
}

// closed is the workloads that are closed in the direction of a match.
func (b *bases) closed(match string) map[string]rule {
	out := map[string]rule{}
	for name, w := range b.model.Workloads {
		if !b.hasChain(chainOf(w, match), desired.Filter) {
			out[name] = rule{"", drop, "closed " + w.Endpoint}
		}
	}
	return out
}

// chainOf is the chain that judges packets from ("-i") or to ("-o") a workload.
func chainOf(w desired.Workload, match string) string {
	if match == "-i" {
		return w.Egress
	}
	return w.Ingress
}

// dispatch adds the chains that lead packets to the chains of their workloads. The list of a workload is gone to, so that it
// returns to FORWARD, or to the chain of packets for the host.
func (b *bases) dispatch(filter map[string][]rule) {
	for _, way := range []struct{ match, name, closed, word string }{
		{"-i", chainFrom, chainFromClosed, "from"}, {"-o", chainTo, chainToClosed, "to"},
	} {
		targets := map[string]rule{}
		for name, w := range b.model.Workloads {
			if c := chainOf(w, way.match); b.hasChain(c, desired.Filter) {
				targets[name] = rule{"", "-g " + kernelChain(c), w.Endpoint}
			}
		}
		b.tree(filter, way.name, way.match, targets, []rule{{"", drop, way.word + " an unknown workload interface"}})
		before := b.invalid()
		if way.match == "-i" {
			before = append(before, b.ownTunnels()...)
		}
		// A mark that the packet brought along must not count as a verdict.
		before = append(before, rule{"", clearMarks, "start"})
		filter[way.name] = append(before, filter[way.name]...)
		if closed := b.closed(way.match); len(closed) > 0 {
			b.tree(filter, way.closed, way.match, closed, nil)
		}
	}
}

func (b *bases) tree(filter map[string][]rule, root, match string, targets map[string]rule, last []rule) {
	t := tree{root: root, match: match, targets: targets, last: last, chains: filter}
	t.build(root, slices.Sorted(maps.Keys(targets)))
}

func (b *bases) toHost() (out []rule) {
	if b.v6 {
		// Neighbour discovery and multicast listeners, before any policy.
		for _, kind := range []int{130, 131, 132, 133, 135, 136} {
			out = append(out, rule{fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d ", kind), accept, "neighbour discovery"})
		}
	}
	out = append(out, b.cutFlows()...)
	if len(b.closed("-i")) > 0 {
		out = append(out, rule{"", "-j " + chainFromClosed, "from a closed workload"})
	}
	out = append(out, rule{established, accept, "established"})
	out = append(out, b.toService()...)
	out = append(out, rule{"", "-j " + chainFrom, "policy of the workload"},
		rule{notAllowed, drop, "nothing allowed it"})
	switch b.settings().EndpointToHost {
	case desired.HostAccept:
		return append(out, rule{"", accept, "DefaultEndpointToHostAction Accept"})
	case desired.HostReturn:
		return out
	}
	for _, name := range b.model.Speaking() {
		w := b.model.Workloads[name]
		out = append(out, rule{fmt.Sprintf("-i %s -p tcp --dport %d ", name, w.SpeakerPort), accept, "BGP of " + w.Endpoint})
	}
	return append(out, rule{"", drop, "DefaultEndpointToHostAction Drop"})
}

func (b *bases) invalid() []rule {
	if b.settings().AcceptInvalid {
		return nil
	}
	return []rule{{"-m conntrack --ctstate INVALID ", drop, "invalid"}}
}

// ownTunnels stops workloads from making tunnel packets that other nodes would take for a node's.
func (b *bases) ownTunnels() (out []rule) {
	port := cmp.Or(b.settings().VXLANPort, desired.DefaultVXLANPort)
	if !b.settings().AllowVXLANFromWorkloads {
		out = append(out, rule{udpTo(port), drop, "VXLAN made by a workload"})
	}
	if !b.settings().AllowIPIPFromWorkloads {
		out = append(out, rule{protocolIs(protoIPIP), drop, "IP-in-IP made by a workload"})
	}
	return out
}

func (b *bases) postrouting() (out []rule) {
	if b.settings().NATOutgoing != nil {
		out = append(out, rule{"", "-j " + chainNAT, "outgoing NAT"})
	}
	var devices []string
	if v := b.vxlan(); v != nil && v.Device != "" {
		devices = append(devices, v.Device)
	}
	if i := b.settings().IPIP; i != nil && i.Device != "" && !b.v6 {
		devices = append(devices, i.Device)
	}
	for _, d := range devices {
		own := "-o " + d + " -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL "
		out = append(out, b.translate("another address of the host into "+d, own, view.PortRange{}, true, netip.Addr{})...)
	}
	return out
}

// floating are the rules by which floating addresses lead to workloads, and those by which a workload reaches itself that way.
func (b *bases) floating() (in, back []rule) {
	sent := map[netip.Addr]bool{}
	for _, f := range b.settings().Floating {
		if f.External.Is6() != b.v6 {
			continue
		}
		to := f.Internal.String()
		in = append(in, rule{"-d " + f.External.String() + " ", "-j DNAT --to-destination " + to, "floating address of " + to})
		if !sent[f.Internal] {
			sent[f.Internal] = true
			back = append(back, rule{"-s " + to + " -d " + to + " ", "-j SNAT --to-source " + f.External.String(), "to itself by its floating address"})
		}
	}
	return in, back
}

func (b *bases) natOutgoing() []rule {
	n := b.settings().NATOutgoing
	matches := ""
	if n.OutInterface != "" {
		matches = "-o " + n.OutInterface + " "
	}
	matches += b.inSet(source, desired.SetMasqPools, false) + b.inSet(destination, desired.SetPools, true)
	if n.ExcludeHosts {
		matches += b.inSet(destination, desired.SetAllHosts, true)
	}
	to := n.Source4
	if b.v6 {
		to = n.Source6
	}
	return b.translate("from a pool to outside all pools", matches, n.Ports, n.RandomizePorts, to)
}

// translate gives packets another source. While VXLAN is on, UDP never gets the VXLAN port as source: the answer would be
// taken for a tunnel packet and dropped.
func (b *bases) translate(text, matches string, ports view.PortRange, random bool, to netip.Addr) (out []rule) {
	end := func(match string, ports view.PortRange) rule {
		target, wide := "-j MASQUERADE", ""
		if ports != (view.PortRange{}) {
			wide = fmt.Sprintf("%d-%d", ports.First, ports.Last)
		}
		switch {
		case to.IsValid():
			host := to.String()
			if wide != "" && b.v6 {
				host = "[" + host + "]"
			}
			target = "-j SNAT --to-source " + host
			if wide != "" {
				target += ":" + wide
			}
		case wide != "":
			target += " --to-ports " + wide
		}
		if random && b.randomFully {
			target += " --random-fully"
		}
		return rule{match, target, text}
	}
	none := view.PortRange{}
	udp := ports
	if v := b.vxlan(); v != nil {
		udp = model.SourcePorts(v.Port, ports)
	}
	if ports != none {
		out = append(out, end(matches+"-p tcp ", ports))
	}
	if udp != none {
		out = append(out, end(matches+"-p udp ", udp))
	}
	return append(out, end(matches, none))
}

func udpTo(port uint16) string { return fmt.Sprintf("-p udp --dport %d ", port) }
