package nftables

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Host endpoints: desired.Host says what a packet meets. Each base chain that is needed for them finds the chain of the
// packet's interface by a verdict map, or goes to that of all other interfaces. All of it is computed anew when a host
// changes: hosts are few, and their policies are chains of their own.

// IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const ctTranslated = 1 << 5

// Chains that exist once.
const (
	fromHostForward = "filter-cali-from-hep-forward"
	toHostForward   = "filter-cali-to-hep-forward"
)

// hostChain is the kernel's name of an interface's chain at a station.
func hostChain(s model.Station, iface string) string {
	prefix, suffix := s.Chain(iface)
	return layerPrefix(s.Layer) + prefix + suffix
}

// verdictMap is the name of a station's verdict map: "cali-from-hep-raw".
func verdictMap(s model.Station) string {
	name := [2]string{"cali-from-hep-", "cali-to-hep-"}[s.Dir]
	if s.Pass == desired.Forward {
		return name + "forward"
	}
	return name + strings.TrimSuffix(layerPrefix(s.Layer), "-")
}

// interfaceOf is what tells the interface at a station.
func interfaceOf(s model.Station) uint32 {
	if s.Dir == desired.Egress {
		return unix.NFT_META_OIFNAME
	}
	return unix.NFT_META_IIFNAME
}

// hostChains are the chains of interfaces at all stations.
func (b *bases) hostChains(out map[string]chain) {
	for iface, h := range b.model.Hosts {
		for _, s := range model.Stations() {
			if s.Stops(h) {
				out[hostChain(s, iface)] = chain{rules: b.hostRules(s, h)}
			}
		}
	}
	for _, s := range []model.Station{model.ForwardIn, model.ForwardOut} {
		if b.model.Needs(s) {
			out[map[desired.Direction]string{desired.Ingress: fromHostForward, desired.Egress: toHostForward}[s.Dir]] = chain{rules: b.hostForward(s)}
		}
	}
}

// hostRules are the chain of an interface at a station.
func (b *bases) hostRules(s model.Station, h desired.Host) (out []rule) {
	if s.Pass == desired.Normal {
		out = append(out, b.cutFlows()...)
		out = append(out, established())
	}
	switch {
	case s.Pass == desired.Untracked || s == model.NormalLater:
	case s.Judges(h):
		out = append(out, b.invalid()...)
	case !b.model.Settings.AcceptInvalid: // it would not come to policy in force
		out = append(out, newRule("invalid", ctState(nft.Expr{}, ctInvalid).Verdict(nft.Verdict{Code: nft.Return})))
	}
	if safe := s.Failsafe(); safe != "" && b.hasChain(safe, s.Layer) {
		if s.Pass == desired.Normal { // the other passes come upon clean marks
			out = append(out, newRule("start", clearMark(nft.Expr{})))
		}
		out = append(out, newRule("failsafe ports", jump(nft.Expr{}, s.Layer, safe)),
			newRule("a failsafe port", clearMark(ifMark(nft.Expr{}, desired.MarkAccept, true)).Verdict(accept)))
	}
	if counts := s.Counts(h); b.hasChain(counts, s.Layer) {
		out = append(out, newRule("staged policies of host endpoint "+h.Endpoint, jump(nft.Expr{}, s.Layer, counts)))
	}
	switch name := h.Of(s.Pass).Of(s.Dir); {
	case !s.Judges(h):
		return out
	case name == "":
		return append(out, newRule("host endpoint "+h.Endpoint+" is closed", nft.Expr{}.Counter().Verdict(drop)))
	case !b.hasChain(name, s.Layer):
		return append(out, newRule("policy of host endpoint "+h.Endpoint+" is not known", nft.Expr{}.Counter().Verdict(drop)))
	default:
		out = append(out, newRule("host endpoint "+h.Endpoint, jump(nft.Expr{}, s.Layer, name)))
	}
	if s.Pass == desired.Untracked {
		out = append(out, newRule("allowed without tracking", ifMark(nft.Expr{}, desired.MarkAccept, true).NoTrack().Verdict(accept)))
	}
	return out
}

// find leads a packet to the chain of its interface, or of all others. It is the end of a chain: what comes back from there
// is done.
func (b *bases) find(s model.Station) []rule {
	if !b.model.Needs(s) {
		return nil
	}
	out := []rule{newRule("host endpoint by interface", nft.Expr{}.Meta(interfaceOf(s), nft.Reg).VerdictMap(verdictMap(s)))}
	if h, any := b.model.Hosts[desired.AnyInterface]; any && s.Stops(h) {
		out = append(out, newRule("host endpoint of all interfaces", nft.Expr{}.Verdict(nft.Verdict{Code: nft.Goto, Chain: hostChain(s, desired.AnyInterface)})))
	}
	return out
}

// hostVerdicts are the elements of a station's verdict map. An interface with an endpoint that has nothing to do here is not
// left to that of all interfaces.
func hostVerdicts(s model.Station, hosts map[string]desired.Host) map[string]nft.Verdict {
	out := map[string]nft.Verdict{}
	for iface, h := range hosts {
		switch {
		case iface == desired.AnyInterface:
		case s.Stops(h):
			out[ifKey(iface)] = nft.Verdict{Code: nft.Goto, Chain: hostChain(s, iface)}
		default:
			out[ifKey(iface)] = nft.Verdict{Code: nft.Return}
		}
	}
	return out
}

// hostRaw puts what host endpoints need around the rules of raw-PREROUTING.
func (b *bases) hostRaw(rules []rule) []rule {
	if b.model.Early() {
		rules = append([]rule{newRule("marks that others made", clearMark(nft.Expr{}))}, rules...)
	}
	return append(rules, b.find(model.UntrackedIn)...)
}

// hostRawOutput does it to those of raw-OUTPUT.
func (b *bases) hostRawOutput(rules []rule) []rule {
	if b.model.Needs(model.UntrackedOut) {
		rules = append([]rule{newRule("marks that others made", clearMark(nft.Expr{}))}, rules...)
	}
	return append(rules, b.find(model.UntrackedOut)...)
}

// preDNAT is mangle-PREROUTING.
func (b *bases) preDNAT() (out []rule) {
	if !b.model.Needs(model.PreDNATIn) {
		return nil
	}
	out = append(out, established())
	if b.model.Judges(model.UntrackedIn) {
		out = append(out, accepted())
	}
	return append(out, b.find(model.PreDNATIn)...)
}

// hostInput puts what host endpoints need around the rules of filter-INPUT, which send workloads elsewhere.
func (b *bases) hostInput(rules []rule) (out []rule) {
	if !b.model.Needs(model.NormalIn) {
		return rules
	}
	out = append(b.tunnels("from", source), rules...)
	if b.model.Marked() {
		out = append(out, accepted())
	}
	out = append(out, b.throughService()...)
	return append(out, b.find(model.NormalIn)...)
}

// tunnels accepts tunnel packets from or to other nodes: they are felix's, policy is about what is in them.
func (b *bases) tunnels(way string, peer side) (out []rule) {
	known := func(e nft.Expr, set string) nft.Expr {
		return b.address(e, peer).Lookup(kernelSet(b.family, set), false).Verdict(accept)
	}
	if v := b.vxlan(); v != nil {
		out = append(out, newRule("VXLAN "+way+" a node", known(udpTo(nft.Expr{}, v.Port), desired.SetVXLANHosts)))
	}
	if b.model.Settings.IPIP != nil && b.family == nft.IP4 {
		out = append(out, newRule("IP-in-IP "+way+" a node", known(l4proto(nft.Expr{}, protoIPIP), desired.SetAllHosts)))
	}
	return out
}

// hostForward is the chain that judges forwarded packets by the interface they came by, or leave by.
func (b *bases) hostForward(s model.Station) (out []rule) {
	if s == model.ForwardIn && b.model.Marked() {
		out = append(out, newRule("accepted before", ifMark(nft.Expr{}, desired.MarkAccept, true).Verdict(nft.Verdict{Code: nft.Return})))
	}
	return append(out, b.find(s)...)
}

// throughHosts is the rule of filter-FORWARD that has them judged.
func (b *bases) throughHosts(s model.Station, name string) []rule {
	if !b.model.Needs(s) {
		return nil
	}
	return []rule{newRule("through host endpoints", nft.Expr{}.Verdict(nft.Verdict{Code: nft.Jump, Chain: name}))}
}

// hostOutput is filter-OUTPUT.
func (b *bases) hostOutput() (out []rule) {
	if !b.model.Needs(model.NormalOut) {
		return nil
	}
	if b.model.Judges(model.UntrackedOut) {
		out = append(out, accepted())
	}
	translated := nft.Expr{}.Ct(unix.NFT_CT_STATUS).Mask(word(ctTranslated), word(0)).Equal(word(0), true).
		Ct(unix.NFT_CT_STATE).Mask(word(ctEstablished|ctRelated), word(0)).Equal(word(0), false)
	out = append(out, newRule("translated, and so judged when it leaves", setMark(translated, desired.MarkLater).Verdict(accept)))
	out = append(out, b.toWorkloads()...)
	out = append(out, b.tunnels("to", destination)...)
	return append(out, b.find(model.NormalOut)...)
}

// toWorkloads lets the host reach its own workloads.
func (b *bases) toWorkloads() (out []rule) {
	for _, p := range b.model.Settings.WorkloadPrefixes {
		out = append(out, newRule("from the host to a workload of its own", iface(nft.Expr{}, unix.NFT_META_OIFNAME, p).Verdict(accept)))
	}
	return out
}

// later is mangle-POSTROUTING.
func (b *bases) later() (out []rule) {
	if !b.model.Needs(model.NormalLater) {
		return nil
	}
	out = append(out, newRule("judged before", ifMark(nft.Expr{}, desired.MarkLater, false).Verdict(accept)))
	out = append(out, b.toWorkloads()...)
	return append(out, b.find(model.NormalLater)...)
}

// notLater keeps packets that are forwarded with a mark of others from being taken for locally sent ones.
func (b *bases) notLater() []rule {
	if !b.model.Needs(model.NormalLater) {
		return nil
	}
	return []rule{newRule("not sent from here", nft.Expr{}.Meta(unix.NFT_META_MARK, nft.Reg).Mask(word(^uint32(desired.MarkLater)), word(0)).SetMeta(unix.NFT_META_MARK))}
}

func established() rule {
	return newRule("established", ctState(nft.Expr{}, ctEstablished|ctRelated).Verdict(accept))
}

func accepted() rule {
	return newRule("accepted before", ifMark(nft.Expr{}, desired.MarkAccept, true).Verdict(accept))
}

func jump(e nft.Expr, layer desired.Layers, chain string) nft.Expr {
	return e.Verdict(nft.Verdict{Code: nft.Jump, Chain: layerChain(layer, chain)})
}

// wantHosts keeps the verdict maps of the stations. One that is no longer needed is removed, but while not all hosts were
// told yet it may still hold others'.
func (f *family) wantHosts(b *bases, whole bool) {
	for _, s := range model.Stations() {
		if _, there := f.sets.Desired(verdictMap(s)); !b.model.Needs(s) && (whole || !there) {
			f.dropSet(verdictMap(s))
			continue
		}
		f.wantSet(verdictMap(s), nft.SetSpec{Key: nft.IfName, Verdicts: true}).ReplaceDesired(hostVerdicts(s, b.model.Hosts))
	}
}
