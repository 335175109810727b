package nftables

import (
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/desired"
)

// Connection tracking states as bits (NF_CT_STATE_BIT).
const (
	ctInvalid     = 1
	ctEstablished = 2
	ctRelated     = 4
)

var (
	drop   = nft.Verdict{Code: nft.Drop}
	accept = nft.Verdict{Code: nft.Accept}
)

// bases compiles the chains that exist once.
type bases struct {
	compiler
	settings desired.Settings
	closed   bool // some workload is closed
	spoofing bool // some workload may use additional sources
}

func (b *bases) vxlan() *desired.VXLANAdmission {
	if b.family == nft.IP6 {
		return b.settings.VXLAN6
	}
	return b.settings.VXLAN4
}

// chains returns the chains by name. Base chains without rules are left out: a hook costs every packet.
func (b *bases) chains() map[string]chain {
	out := map[string]chain{
		fromDispatch: {rules: b.dispatch("from", fromMap)},
		toDispatch:   {rules: b.dispatch("to", toMap)},
		toHost:       {rules: b.toHost()},
	}
	if b.family == nft.IP6 {
		out[rawSources] = chain{rules: b.ownSources()}
	}
	if b.settings.NATOutgoing != nil {
		out[natOutgoing] = chain{rules: b.natOutgoing()}
	}
	for _, c := range []struct {
		name  string
		base  nft.Base
		rules []rule
	}{
		{rawPrerouting, nft.Base{Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -300}, b.rawPrerouting()},
		{rawOutput, nft.Base{Type: "filter", Hook: unix.NF_INET_LOCAL_OUT, Priority: -300}, b.noTrack()},
		{filterInput, nft.Base{Type: "filter", Hook: unix.NF_INET_LOCAL_IN, Priority: 0}, b.input()},
		{filterForward, nft.Base{Type: "filter", Hook: unix.NF_INET_FORWARD, Priority: 0}, b.forward()},
		// Behind kube-proxy's 100, on purpose not at the same.
		{natPostrouting, nft.Base{Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: 110}, b.postrouting()},
	} {
		if len(c.rules) > 0 {
			out[c.name] = chain{base: &c.base, rules: c.rules}
		}
	}
	return out
}

func (b *bases) noTrack() []rule {
	v := b.vxlan()
	if v == nil {
		return nil
	}
	return []rule{newRule("VXLAN is not tracked", udpTo(nft.Expr{}, v.Port).NoTrack())}
}

// strangersTunnels drops tunnel packets to this host that come from no known node. It is done first of all, so that nobody
// can fill the table of connections with them.
func (b *bases) strangersTunnels() (out []rule) {
	if v := b.vxlan(); v != nil {
		out = append(out, newRule("VXLAN from elsewhere",
			b.toLocal(b.notFrom(udpTo(nft.Expr{}, v.Port), desired.SetVXLANHosts)).Counter().Verdict(drop)))
	}
	if b.settings.IPIP != nil && b.family == nft.IP4 {
		out = append(out, newRule("IP-in-IP from elsewhere",
			b.toLocal(b.notFrom(l4proto(nft.Expr{}, protoIPIP), desired.SetAllHosts)).Counter().Verdict(drop)))
	}
	return out
}

func (b *bases) rawPrerouting() []rule {
	out := append(b.strangersTunnels(), b.noTrack()...)
	for _, p := range b.settings.WorkloadPrefixes {
		workload := func() nft.Expr { return iface(nft.Expr{}, unix.NFT_META_IIFNAME, p) }
		if b.family == nft.IP6 {
			out = append(out, newRule("source of a workload", workload().Verdict(nft.Verdict{Code: nft.Goto, Chain: rawSources})))
			continue
		}
		out = append(out, b.routedSources(workload)...)
	}
	return out
}

// ownSources lets the workload's own addresses pass before it looks up the routes: a look-up in the IPv6 routes takes a
// tenth of a round trip, in a set a third of that. In the IPv4 routes it takes no longer than in a set.
func (b *bases) ownSources() []rule {
	own := newRule("own address", b.addressTo(nft.Expr{}.Meta(unix.NFT_META_IIFNAME, nft.Reg), source, nft.Reg+1).
		Lookup(ownSources, false).Verdict(accept))
	return append([]rule{own}, b.routedSources(func() nft.Expr { return nft.Expr{} })...)
}

// routedSources drops what comes from a workload, as from matches it, under a source that is not routed to it.
func (b *bases) routedSources(from func() nft.Expr) (out []rule) {
	if b.spoofing {
		out = append(out, newRule("additional sources", from().Meta(unix.NFT_META_IIFNAME, nft.Reg).VerdictMap(rpfSkipMap)))
	}
	return append(out, newRule("source is not routed to the workload it came from",
		from().Fib(unix.NFT_FIB_RESULT_OIF, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF).Equal(word(0), false).Counter().Verdict(drop)))
}

// input judges what workloads send to their host. Tunnel packets of known nodes need no word here: those of others ended in
// raw, nothing below drops the rest, and each rule that they pass costs a quarter of a percent of a round trip.
func (b *bases) input() (out []rule) {
	for _, p := range b.settings.WorkloadPrefixes {
		out = append(out, newRule("workload to its host", iface(nft.Expr{}, unix.NFT_META_IIFNAME, p).
			Verdict(nft.Verdict{Code: nft.Goto, Chain: toHost})))
	}
	return out
}

func (b *bases) forward() (out []rule) {
	out = append(out, b.cutFlows()...)
	out = append(out, b.dropClosed("from", unix.NFT_META_IIFNAME, fromClosed)...)
	out = append(out, b.dropClosed("to", unix.NFT_META_OIFNAME, toClosed)...)
	out = append(out, newRule("established", ctState(nft.Expr{}, ctEstablished|ctRelated).Verdict(accept)))
	for _, p := range b.settings.WorkloadPrefixes {
		out = append(out,
			newRule("from a workload", iface(nft.Expr{}, unix.NFT_META_IIFNAME, p).
				Verdict(nft.Verdict{Code: nft.Jump, Chain: fromDispatch})),
			newRule("to a workload", iface(nft.Expr{}, unix.NFT_META_OIFNAME, p).
				Verdict(nft.Verdict{Code: nft.Jump, Chain: toDispatch})))
	}
	return out
}

// cutFlows comes before established flows, which is what they are.
func (b *bases) cutFlows() []rule {
	if !b.settings.CutFlows {
		return nil
	}
	marked := nft.Expr{}.Ct(unix.NFT_CT_MARK).Mask(word(desired.ConnMarkCut), word(0)).Equal(word(0), true)
	return []rule{newRule("a connection that policy has come to forbid", marked.Counter().Verdict(drop))}
}

// dropClosed comes before established flows: closed is closed.
func (b *bases) dropClosed(way string, meta uint32, set string) []rule {
	if !b.closed {
		return nil
	}
	return []rule{newRule(way+" a closed workload", nft.Expr{}.Meta(meta, nft.Reg).Lookup(set, false).Counter().Verdict(drop))}
}

// dispatch judges packets from or to workloads.
func (b *bases) dispatch(way, verdicts string) []rule {
	meta := uint32(unix.NFT_META_IIFNAME)
	if way == "to" {
		meta = unix.NFT_META_OIFNAME
	}
	out := b.invalid()
	if way == "from" {
		out = append(out, b.ownTunnels()...)
	}
	return append(out,
		// A mark that the packet brought along must not count as a verdict.
		newRule("start", clearMark(nft.Expr{})),
		newRule(way+" a known workload", nft.Expr{}.Meta(meta, nft.Reg).VerdictMap(verdicts)),
		newRule("allowed", ifMark(nft.Expr{}, desired.MarkAccept, true).Verdict(nft.Verdict{Code: nft.Return})),
		newRule(way+" an unknown workload interface", nft.Expr{}.Counter().Verdict(drop)))
}

func (b *bases) toHost() (out []rule) {
	if b.family == nft.IP6 {
		// Neighbour discovery and multicast listeners, before any policy.
		for _, types := range [][2]byte{{130, 133}, {135, 136}} {
			out = append(out, newRule("neighbour discovery", l4proto(nft.Expr{}, protoICMPv6).
				Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, nft.Reg).Range(types[:1], types[1:], false).Verdict(accept)))
		}
	}
	out = append(out, b.cutFlows()...)
	out = append(out, b.dropClosed("from", unix.NFT_META_IIFNAME, fromClosed)...)
	out = append(out, newRule("established", ctState(nft.Expr{}, ctEstablished|ctRelated).Verdict(accept)))
	out = append(out, newRule("policy of the workload", nft.Expr{}.Verdict(nft.Verdict{Code: nft.Jump, Chain: fromDispatch})))
	switch b.settings.EndpointToHost {
	case desired.HostAccept:
		return append(out, newRule("DefaultEndpointToHostAction Accept", nft.Expr{}.Verdict(accept)))
	case desired.HostReturn:
		return out
	}
	return append(out, newRule("DefaultEndpointToHostAction Drop", nft.Expr{}.Counter().Verdict(drop)))
}

func (b *bases) invalid() []rule {
	if b.settings.AcceptInvalid {
		return nil
	}
	return []rule{newRule("invalid", ctState(nft.Expr{}, ctInvalid).Counter().Verdict(drop))}
}

// ownTunnels stops workloads from making tunnel packets that other nodes would take for a node's.
func (b *bases) ownTunnels() (out []rule) {
	port := uint16(desired.DefaultVXLANPort)
	if v := b.vxlan(); v != nil {
		port = v.Port
	}
	if !b.settings.AllowVXLANFromWorkloads {
		out = append(out, newRule("VXLAN made by a workload", udpTo(nft.Expr{}, port).Counter().Verdict(drop)))
	}
	if !b.settings.AllowIPIPFromWorkloads {
		out = append(out, newRule("IP-in-IP made by a workload", l4proto(nft.Expr{}, protoIPIP).Counter().Verdict(drop)))
	}
	return out
}

func (b *bases) postrouting() (out []rule) {
	if b.settings.NATOutgoing != nil {
		out = append(out, newRule("outgoing NAT", nft.Expr{}.Verdict(nft.Verdict{Code: nft.Jump, Chain: natOutgoing})))
	}
	devices := []string{}
	if v := b.vxlan(); v != nil && v.Device != "" {
		devices = append(devices, v.Device)
	}
	if i := b.settings.IPIP; i != nil && i.Device != "" && b.family == nft.IP4 {
		devices = append(devices, i.Device)
	}
	for _, d := range devices {
		own := func() nft.Expr {
			return nft.Expr{}.Meta(unix.NFT_META_OIFNAME, nft.Reg).Equal([]byte(ifKey(d)), false).
				Fib(unix.NFT_FIB_RESULT_ADDRTYPE, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_OIF).Equal(word(unix.RTN_LOCAL), true).
				Fib(unix.NFT_FIB_RESULT_ADDRTYPE, unix.NFTA_FIB_F_SADDR).Equal(word(unix.RTN_LOCAL), false)
		}
		out = append(out, b.translate("another address of the host into "+d, own, nft.PortRange{}, true, netip.Addr{})...)
	}
	return out
}

func (b *bases) natOutgoing() []rule {
	n := b.settings.NATOutgoing
	matches := func() nft.Expr {
		e := b.address(nft.Expr{}, source).Lookup(kernelSet(b.family, desired.SetMasqPools), false)
		e = b.address(e, destination).Lookup(kernelSet(b.family, desired.SetPools), true)
		if n.ExcludeHosts {
			e = b.address(e, destination).Lookup(kernelSet(b.family, desired.SetAllHosts), true)
		}
		if n.OutInterface != "" {
			e = outBy(e, n.OutInterface)
		}
		return e
	}
	to := n.Source4
	if b.family == nft.IP6 {
		to = n.Source6
	}
	return b.translate("from a pool to outside all pools", matches, nft.PortRange{First: n.Ports.First, Last: n.Ports.Last}, n.RandomizePorts, to)
}

// translate gives packets another source. While VXLAN is on, UDP never gets the VXLAN port as source: the answer would be
// taken for a tunnel packet and dropped.
func (b *bases) translate(text string, matches func() nft.Expr, ports nft.PortRange, random bool, to netip.Addr) (out []rule) {
	end := func(e nft.Expr, ports nft.PortRange) rule {
		if to.IsValid() {
			return newRule(text, e.SourceNAT(b.family, to.AsSlice(), ports, random))
		}
		return newRule(text, e.Masquerade(ports, random))
	}
	none := nft.PortRange{}
	udp := ports
	if v := b.vxlan(); v != nil {
		udp = beside(v.Port, ports)
	}
	if ports != none {
		out = append(out, end(l4proto(matches(), protoTCP), ports))
	}
	if udp != none {
		out = append(out, end(l4proto(matches(), protoUDP), udp))
	}
	return append(out, end(matches(), none))
}

// beside is the wider part of a range of ports, by default the unprivileged ones, that leaves out port.
func beside(port uint16, of nft.PortRange) nft.PortRange {
	if of == (nft.PortRange{}) {
		of = nft.PortRange{First: 1024, Last: 65535}
	}
	switch {
	case port < of.First || port > of.Last || of.First == of.Last:
		return of
	case port-of.First > of.Last-port:
		return nft.PortRange{First: of.First, Last: port - 1}
	}
	return nft.PortRange{First: port + 1, Last: of.Last}
}

// outBy matches packets that leave by an interface, or with a + at the end by all whose names begin so.
func outBy(e nft.Expr, name string) nft.Expr {
	if prefix, wild := strings.CutSuffix(name, "+"); wild {
		if prefix == "" {
			return e
		}
		return iface(e, unix.NFT_META_OIFNAME, prefix)
	}
	return e.Meta(unix.NFT_META_OIFNAME, nft.Reg).Equal([]byte(ifKey(name)), false)
}

// notFrom matches sources outside a set.
func (b *bases) notFrom(e nft.Expr, set string) nft.Expr {
	return b.address(e, source).Lookup(kernelSet(b.family, set), true)
}

// toLocal matches packets to an address of this host.
func (b *bases) toLocal(e nft.Expr) nft.Expr {
	return e.Fib(unix.NFT_FIB_RESULT_ADDRTYPE, unix.NFTA_FIB_F_DADDR).Equal(word(unix.RTN_LOCAL), false)
}

// iface matches interfaces whose name begins with prefix.
func iface(e nft.Expr, meta uint32, prefix string) nft.Expr {
	return e.Meta(meta, nft.Reg).Equal([]byte(prefix), false)
}

func l4proto(e nft.Expr, p byte) nft.Expr {
	return e.Meta(unix.NFT_META_L4PROTO, nft.Reg).Equal([]byte{p}, false)
}

func udpTo(e nft.Expr, port uint16) nft.Expr {
	return l4proto(e, protoUDP).Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, destination.port, 2, nft.Reg).Equal(be16(port), false)
}

func ctState(e nft.Expr, states uint32) nft.Expr {
	return e.Ct(unix.NFT_CT_STATE).Mask(word(states), word(0)).Equal(word(0), true)
}
