package nftables

import (
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Services by IPVS: desired.Settings.IPVS says what a packet meets.

// Connection tracking states of packets that are tracked (NF_CT_STATE_BIT): invalid, established, related, new.
const ctTracked = ctInvalid | ctEstablished | ctRelated | 8

// toService lets what workloads send to services go on to IPVS.
func (b *bases) toService() []rule {
	if !b.model.Settings.IPVS {
		return nil
	}
	return []rule{
		newRule("sent by a workload, if IPVS leads it on", setMark(nft.Expr{}, desired.MarkSent)),
		newRule("to a service, and so judged when IPVS has led it on", b.service().Verdict(accept)),
	}
}

// service matches addresses of services.
func (b *bases) service() nft.Expr {
	return b.address(nft.Expr{}, destination).Lookup(kernelSet(b.family, desired.SetServices), false)
}

// throughService has host endpoints judge what comes to services as they judge what is forwarded.
func (b *bases) throughService() (out []rule) {
	if !b.model.Settings.IPVS {
		return nil
	}
	if b.model.Needs(model.ForwardIn) {
		out = append(out, newRule("through host endpoints", b.service().Verdict(nft.Verdict{Code: nft.Jump, Chain: fromHostForward})))
	}
	return append(out, newRule("to a service", b.service().Verdict(accept)))
}

// byIPVS sends what others sent, and leaves by OUTPUT all the same, to its chain.
func (b *bases) byIPVS() []rule {
	if !b.model.Settings.IPVS {
		return nil
	}
	foreign := ctState(nft.Expr{}, ctTracked).
		Fib(unix.NFT_FIB_RESULT_ADDRTYPE, unix.NFTA_FIB_F_SADDR).Equal(word(unix.RTN_LOCAL), true)
	return []rule{newRule("led on by IPVS", foreign.Verdict(nft.Verdict{Code: nft.Goto, Chain: ledOn}))}
}

// ledOnChains judge what IPVS has led on as filter-FORWARD judges what is forwarded.
func (b *bases) ledOnChains(out map[string]chain) {
	if !b.model.Settings.IPVS {
		return
	}
	rules := append(b.cutFlows(), b.dropClosed("to", unix.NFT_META_OIFNAME, toClosed)...)
	rules = append(rules, established(), newRule("from a workload",
		ifMark(nft.Expr{}, desired.MarkSent, true).Verdict(nft.Verdict{Code: nft.Jump, Chain: fromSource})))
	for _, p := range b.model.Settings.WorkloadPrefixes {
		rules = append(rules, newRule("to a workload", iface(nft.Expr{}, unix.NFT_META_OIFNAME, p).
			Verdict(nft.Verdict{Code: nft.Jump, Chain: toDispatch})))
	}
	out[ledOn] = chain{rules: append(rules, b.throughHosts(model.ForwardOut, toHostForward)...)}

	rules = append(b.invalid(), b.ownTunnels()...)
	out[fromSource] = chain{rules: append(rules,
		newRule("start", clearMark(nft.Expr{})),
		newRule("from a known workload", b.address(nft.Expr{}, source).VerdictMap(fromSource)),
		newRule("allowed", ifMark(nft.Expr{}, desired.MarkAccept, true).Verdict(nft.Verdict{Code: nft.Return})),
		newRule("from a source that is no workload's own", nft.Expr{}.Counter().Verdict(drop)))}
}

// wantSenders keeps the verdict map of workloads by their own addresses, which is all that tells the sender in OUTPUT.
func (f *family) wantSenders(m *model.Model) {
	if !m.Settings.IPVS {
		f.dropSet(fromSource)
		return
	}
	verdicts := map[string]nft.Verdict{}
	for _, w := range m.Workloads {
		if !m.Has(w.Egress, desired.Filter) {
			continue
		}
		for _, a := range w.Addresses {
			if a.Is4() == (f.Family == nft.IP4) {
				verdicts[string(a.AsSlice())] = nft.Verdict{Code: nft.Jump, Chain: kernelChain(w.Egress)}
			}
		}
	}
	f.wantSet(fromSource, nft.SetSpec{Key: f.Family.Address(), Verdicts: true}).ReplaceDesired(verdicts)
}
