package server

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/bird/policy"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// reader turns wire messages into policy's nouns and keeps the first thing that is wrong.
type reader struct{ err error }

func (r *reader) bad(field, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: "+format, append([]any{field}, args...)...)
	}
}

// readConfig reads the form of a configuration; what it means is judged by policy.Config.Validate.
func readConfig(m *birdv1.Config) (policy.Config, error) {
	if m == nil {
		return policy.Config{}, fmt.Errorf("config: is missing")
	}
	r := &reader{}
	c := policy.Config{
		Generation: m.GetGeneration(), RouterID: r.address("router_id", m.GetRouterId(), true), ASNumber: m.GetAsNumber(),
		ListenPort: r.port("listen_port", m.GetListenPort()), ClusterID: r.address("cluster_id", m.GetClusterId(), false),
		LogLevel: m.GetLogLevel(), Notes: m.GetWarnings(), RestartDeferral: r.duration("restart_deferral", m.GetRestartDeferral()),
		NormalPriority4: m.GetNormalPriority4(), NormalPriority6: m.GetNormalPriority6(),
	}
	for i, a := range m.GetListenAddresses() {
		c.ListenAddresses = append(c.ListenAddresses, r.address(fmt.Sprintf("listen_addresses[%d]", i), a, true))
	}
	for _, p := range m.GetPeers() {
		c.Peers = append(c.Peers, r.peer(p))
	}
	for _, f := range m.GetFilters() {
		field := "filters[" + f.GetName() + "]."
		c.Filters = append(c.Filters, bgp.Filter{
			Name: f.GetName(), Import4: r.rules(field+"import4", f.GetImport4()), Export4: r.rules(field+"export4", f.GetExport4()),
			Import6: r.rules(field+"import6", f.GetImport6()), Export6: r.rules(field+"export6", f.GetExport6()),
		})
	}
	c.Originate = r.originations("originate", m.GetOriginate())
	c.Export.Advertisements = r.originations("export.advertisements", m.GetExport().GetAdvertisements())
	for i, p := range m.GetExport().GetPools() {
		prefix := r.prefix(fmt.Sprintf("export.pools[%d].prefix", i), p.GetPrefix())
		c.Export.Pools = append(c.Export.Pools, policy.Pool{Prefix: prefix, DisableExport: p.GetDisableExport()})
	}
	c.Export.OwnBlocks = r.prefixes("export.own_blocks", m.GetExport().GetOwnBlocks())
	c.Export.ServiceRanges = r.prefixes("export.service_ranges", m.GetExport().GetServiceRanges())
	c.Export.Unrouted = r.prefixes("export.unrouted", m.GetExport().GetUnrouted())
	for i, s := range m.GetStaticRoutes() {
		field := fmt.Sprintf("static_routes[%d].", i)
		c.StaticRoutes = append(c.StaticRoutes, policy.StaticRoute{
			Prefix: r.prefix(field+"prefix", s.GetPrefix()), Gateway: r.address(field+"gateway", s.GetGateway(), true),
		})
	}
	return c, r.err
}

func (r *reader) peer(m *birdv1.Peer) policy.Peer {
	field := "peers[" + m.GetName() + "]."
	if m.GetTtlSecurity() > 255 {
		r.bad(field+"ttl_security", "%d is too many hops; give 0 to 255", m.GetTtlSecurity())
	}
	types := map[birdv1.PeerType]policy.PeerType{
		birdv1.PeerType_PEER_TYPE_MESH: policy.PeerMesh, birdv1.PeerType_PEER_TYPE_GLOBAL: policy.PeerGlobal,
		birdv1.PeerType_PEER_TYPE_NODE: policy.PeerNode, birdv1.PeerType_PEER_TYPE_LOCAL_WORKLOAD: policy.PeerLocalWorkload,
	}
	modes := map[birdv1.NextHopMode]policy.NextHopMode{
		birdv1.NextHopMode_NEXT_HOP_MODE_SELF: policy.NextHopSelf, birdv1.NextHopMode_NEXT_HOP_MODE_KEEP: policy.NextHopKeep,
	}
	return policy.Peer{
		Name: m.GetName(), Type: types[m.GetType()], Source: m.GetSource(),
		Address: r.address(field+"address", m.GetAddress(), true), Port: r.port(field+"port", m.GetPort()),
		ASNumber: m.GetAsNumber(), LocalASNumber: m.GetLocalAsNumber(),
		SourceAddress: r.address(field+"source_address", m.GetSourceAddress(), false), Passive: m.GetPassive(),
		Password: m.GetPassword(), TTLSecurity: uint8(m.GetTtlSecurity()),
		RestartTime:   r.duration(field+"restart_time", m.GetRestartTime()),
		KeepaliveTime: r.duration(field+"keepalive_time", m.GetKeepaliveTime()),
		HoldTime:      r.duration(field+"hold_time", m.GetHoldTime()), ReflectorClient: m.GetReflectorClient(),
		NextHop: modes[m.GetNextHopMode()], AllowedOwnAS: m.GetAllowedOwnAs(), Filters: m.GetFilters(),
		LongLivedStaleTime: r.duration(field+"long_lived_stale_time", m.GetLongLivedStaleTime()),
		WaitingFor:         m.GetWaitingFor(),
		BFD:                r.bfd(field+"bfd.", m.GetBfd()),
	}
}

// bfd fills in what is left out; no message is no BFD.
func (r *reader) bfd(field string, m *birdv1.Bfd) policy.BFD {
	if m == nil {
		return policy.BFD{}
	}
	if m.GetMultiplier() > math.MaxUint8 {
		r.bad(field+"multiplier", "%d is too large; give 1 to 255", m.GetMultiplier())
	}
	return policy.BFD{
		MinTx:      cmp.Or(r.duration(field+"min_tx", m.GetMinTx()), policy.DefaultBFDInterval),
		MinRx:      cmp.Or(r.duration(field+"min_rx", m.GetMinRx()), policy.DefaultBFDInterval),
		Multiplier: cmp.Or(uint8(m.GetMultiplier()), policy.DefaultBFDMultiplier), Multihop: m.GetMultihop(),
	}
}

func (r *reader) rules(field string, list []*birdv1.FilterRule) []bgp.Rule {
	var out []bgp.Rule
	for i, m := range list {
		out = append(out, r.rule(fmt.Sprintf("%s[%d]", field, i), m))
	}
	return out
}

func (r *reader) rule(field string, m *birdv1.FilterRule) bgp.Rule {
	if a := m.GetAction(); a != birdv1.FilterAction_FILTER_ACTION_ACCEPT && a != birdv1.FilterAction_FILTER_ACTION_REJECT {
		r.bad(field+".action", "is missing; give ACCEPT or REJECT")
	}
	if m.GetMinLength() > 128 || m.GetMaxLength() > 128 || m.GetSessionType() > 2 {
		r.bad(field, "min_length and max_length go up to 128, session_type up to 2")
	}
	operators := map[birdv1.MatchOperator]bgp.Operator{
		birdv1.MatchOperator_MATCH_OPERATOR_EQUAL: bgp.Equal, birdv1.MatchOperator_MATCH_OPERATOR_NOT_EQUAL: bgp.NotEqual,
		birdv1.MatchOperator_MATCH_OPERATOR_IN: bgp.In, birdv1.MatchOperator_MATCH_OPERATOR_NOT_IN: bgp.NotIn,
	}
	out := bgp.Rule{
		Accept: m.GetAction() == birdv1.FilterAction_FILTER_ACTION_ACCEPT, Operator: operators[m.GetOperator()],
		MinLength: int(m.GetMinLength()), MaxLength: int(m.GetMaxLength()), FromRemotePeers: m.GetFromRemotePeers(),
		Interface: m.GetInterface(), SessionType: bgp.SessionType(m.GetSessionType()), ASPrefix: m.GetAsPathPrefix(),
		Priority: m.GetPriority(),
	}
	if m.GetPrefix() != nil {
		out.Prefix = r.prefix(field+".prefix", m.GetPrefix())
	}
	if m.GetCommunity() != "" {
		out.Community = r.community(field+".community", m.GetCommunity())
	}
	for i, o := range m.GetOperations() {
		where := fmt.Sprintf("%s.operations[%d]", field, i)
		switch o := o.GetOperation().(type) {
		case *birdv1.FilterOperation_AddCommunity:
			out.Operations = append(out.Operations, bgp.Operation{AddCommunity: r.community(where, o.AddCommunity)})
		case *birdv1.FilterOperation_PrependAsPath:
			if len(o.PrependAsPath.GetAsNumbers()) == 0 {
				r.bad(where, "there is no AS number to prepend")
			}
			out.Operations = append(out.Operations, bgp.Operation{Prepend: o.PrependAsPath.GetAsNumbers()})
		case *birdv1.FilterOperation_SetPriority:
			if o.SetPriority == 0 {
				r.bad(where, "priority 0 is out of range; give 1 to %d", policy.MaxPreference-1)
			}
			out.Operations = append(out.Operations, bgp.Operation{SetPriority: o.SetPriority})
		default:
			r.bad(where, "there is no operation that this bird knows")
		}
	}
	return out
}

func (r *reader) originations(field string, list []*birdv1.Origination) []policy.Origination {
	var out []policy.Origination
	for i, m := range list {
		where := fmt.Sprintf("%s[%d]", field, i)
		o := policy.Origination{Prefix: r.prefix(where+".prefix", m.GetPrefix())}
		for _, c := range m.GetCommunities() {
			if parsed := r.community(where+".communities", c); parsed != nil {
				o.Communities = append(o.Communities, *parsed)
			}
		}
		out = append(out, o)
	}
	return out
}

func (r *reader) community(field, s string) *policy.Community {
	c, err := bgp.ParseCommunity(s)
	if err != nil {
		r.bad(field, "%w", err)
		return nil
	}
	return &c
}

func (r *reader) address(field string, b []byte, needed bool) netip.Addr {
	if len(b) == 0 && !needed {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		r.bad(field, "an address has 4 or 16 bytes, this one has %d", len(b))
	}
	return a.Unmap()
}

func (r *reader) port(field string, p uint32) uint16 {
	if p > math.MaxUint16 {
		r.bad(field, "%d is no port; give 1 to 65535", p)
	}
	return uint16(p)
}

func (r *reader) duration(field string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if err := d.CheckValid(); err != nil {
		r.bad(field, "%w", err)
	}
	return d.AsDuration()
}

func (r *reader) prefixes(field string, list []*birdv1.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, m := range list {
		out = append(out, r.prefix(fmt.Sprintf("%s[%d]", field, i), m))
	}
	return out
}

func (r *reader) prefix(field string, m *birdv1.Prefix) netip.Prefix {
	a := r.address(field, m.GetAddress(), true)
	p := netip.PrefixFrom(a, int(min(m.GetLength(), 255)))
	if a.IsValid() && (!p.IsValid() || p != p.Masked()) {
		r.bad(field, "%s/%d is no prefix: the length fits the family, and the bits beyond it are zero", a, m.GetLength())
	}
	return p
}
