package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Services by IPVS: desired.Settings.IPVS says what a packet meets.

var (
	setSent = fmt.Sprintf("-j MARK --set-xmark %#x/%#x", desired.MarkSent, desired.MarkSent)
	ifSent  = fmt.Sprintf("-m mark --mark %#x/%#x ", desired.MarkSent, desired.MarkSent)
)

// What comes to services goes on to others' rules of INPUT, of which kube-proxy's refuse what is no port of the service and would come to
// the node's own processes, and then to IPVS.

// toService lets what workloads send to services go on.
func (b *bases) toService() []rule {
	if !b.settings().IPVS {
		return nil
	}
	return []rule{
		{"", setSent, "sent by a workload, if IPVS leads it on"},
		{b.inSet(destination, desired.SetServices, false), "-j RETURN", "to a service, and so judged when IPVS has led it on"},
	}
}

// throughService has host endpoints judge what comes to services as they judge what is forwarded.
func (b *bases) throughService() (out []rule) {
	if !b.settings().IPVS {
		return nil
	}
	service := b.inSet(destination, desired.SetServices, false)
	for _, r := range b.throughHosts(model.ForwardIn) {
		r.match += service
		out = append(out, r)
	}
	return append(out, rule{service, "-j RETURN", "to a service"})
}

// byIPVS sends what others sent, and leaves by OUTPUT all the same, to its chain.
func (b *bases) byIPVS() []rule {
	if !b.settings().IPVS {
		return nil
	}
	const foreign = "-m conntrack ! --ctstate UNTRACKED -m addrtype ! --src-type LOCAL "
	return []rule{{foreign, "-g " + chainLedOn, "led on by IPVS"}}
}

// ledOnChains judge what IPVS has led on as FORWARD judges what is forwarded.
func (b *bases) ledOnChains(filter map[string][]rule) {
	if !b.settings().IPVS {
		return
	}
	rules := b.cutFlows()
	if len(b.closed("-o")) > 0 {
		rules = append(rules, b.workloads("-o", "-j "+chainToClosed, "to a closed workload")...)
	}
	rules = append(rules, rule{established, accept, "established"},
		rule{ifSent, "-j " + chainFromSource, "from a workload"},
		rule{ifSent + notAllowed, drop, "from a workload, and nothing allowed it"})
	for _, r := range b.workloads("-o", "-j "+chainTo, "to a workload") {
		rules = append(rules, r, rule{r.match + notAllowed, drop, "to a workload, and nothing allowed it"})
	}
	filter[chainLedOn] = append(rules, b.throughHosts(model.ForwardOut)...)
	b.senders(filter)
}

// senders finds the egress policy of a workload by the packet's source, which is all that tells the sender in OUTPUT: first the
// block of 16 addresses, then the address.
func (b *bases) senders(filter map[string][]rule) {
	blocks := map[netip.Prefix][]rule{}
	for _, name := range slices.Sorted(maps.Keys(b.model.Workloads)) {
		w := b.model.Workloads[name]
		for _, a := range w.Addresses {
			if a.Is6() != b.v6 || !b.hasChain(w.Egress, desired.Filter) {
				continue
			}
			block, _ := a.Prefix(a.BitLen() - 4) // within the length
			blocks[block] = append(blocks[block], rule{"-s " + a.String() + " ", "-g " + kernelChain(w.Egress), w.Endpoint})
		}
	}
	none := rule{"", drop, "from a source that is no workload's own"}
	rules := append(b.invalid(), b.ownTunnels()...)
	rules = append(rules, rule{"", clearMarks, "start"})
	for _, block := range slices.SortedFunc(maps.Keys(blocks), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }) {
		name := fitted(chainFromSource+"-", block.String())
		rules = append(rules, rule{"-s " + block.String() + " ", "-g " + name, "sources " + block.String()})
		filter[name] = append(blocks[block], none)
	}
	filter[chainFromSource] = append(rules, none)
}
