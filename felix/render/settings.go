package render

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// settings are the parts of the firewall that exist once.
func settings(s *state.State) desired.Settings {
	c := s.Config.Spec
	out := desired.Settings{
		WorkloadPrefixes:        workloadPrefixes(s),
		RejectDenied:            is(c.IptablesFilterDenyAction, "Reject") || is(c.NftablesFilterDenyAction, "Reject"),
		LogLimit:                logLimit(c),
		AcceptInvalid:           value(c.DisableConntrackInvalidCheck, false),
		AllowVXLANFromWorkloads: value(c.AllowVXLANPacketsFromWorkloads, false),
		AllowIPIPFromWorkloads:  value(c.AllowIPIPPacketsFromWorkloads, false),
		VXLANPort:               uint16(value(c.VXLANPort, desired.DefaultVXLANPort)),
		IPVS:                    len(services(s)) > 0,
		Rules:                   rules(c),
	}
	switch action := c.DefaultEndpointToHostAction; {
	case is(action, "Accept"):
		out.EndpointToHost = desired.HostAccept
	case is(action, "Return"):
		out.EndpointToHost = desired.HostReturn
	}
	for _, p := range s.Pools {
		if p.Spec.NATOutgoing {
			out.NATOutgoing = natOutgoing(c)
		}
	}
	for _, f := range floating(s) {
		out.Floating = append(out.Floating, f.Floating)
	}
	for _, f := range families(s) {
		if f.ipip {
			out.IPIP = &desired.IPIPAdmission{Device: desired.IPIPDevice}
		}
		if !f.vxlan {
			continue
		}
		admission := &desired.VXLANAdmission{Port: uint16(value(c.VXLANPort, desired.DefaultVXLANPort)), Device: f.device}
		if f.v6 {
			out.VXLAN6 = admission
		} else {
			out.VXLAN4 = admission
		}
	}
	return out
}

// rules is how the firewall is programmed. What is not asked for differently stays the zero value.
func rules(c api.FelixConfigurationSpec) (out desired.Rules) {
	switch mode := value(c.NFTablesMode, ""); {
	case is(mode, "Enabled"):
		out.NFTables = desired.Use
	case is(mode, "Disabled"):
		out.NFTables = desired.Avoid
	}
	switch backend := value(c.IptablesBackend, ""); {
	case is(backend, "Legacy"):
		out.Backend = desired.LegacyBackend
	case is(backend, "NFT"):
		out.Backend = desired.NFTBackend
	}
	out.AtEnd = is(c.ChainInsertMode, "Append")
	if p := c.IptablesLockProbeInterval; p != nil {
		out.LockProbe = p.Duration
	}
	if limit := value(c.MaxIpsetSize, 0); limit != desired.DefaultSetLimit {
		out.SetLimit = limit
	}
	return out
}

// logLimit is how often Log rules write lines. Both drivers are given bursts that both kernels can count.
func logLimit(c api.FelixConfigurationSpec) desired.Limit {
	const day = 24 * time.Hour
	rate, unit, _ := strings.Cut(value(c.LogActionRateLimit, ""), "/")
	n, err := strconv.Atoi(rate)
	per, known := map[string]time.Duration{"second": time.Second, "minute": time.Minute, "hour": time.Hour, "day": day}[unit]
	if err != nil || n <= 0 || !known {
		return desired.Limit{}
	}
	const usual = 5
	burst := min(value(c.LogActionRateLimitBurst, usual), n*int(day/per))
	return desired.Limit{Rate: n, Per: per, Burst: max(burst, 1)}
}

// workloadPrefixes begin the names of workloads' interfaces.
func workloadPrefixes(s *state.State) []string {
	return listed(cmp.Or(s.Config.Spec.InterfacePrefix, "cali"))
}

// listed are the parts of a setting that are separated by commas.
func listed(setting string) (out []string) {
	for part := range strings.SplitSeq(setting, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func natOutgoing(c api.FelixConfigurationSpec) *desired.NATOutgoing {
	n := &desired.NATOutgoing{
		ExcludeHosts: is(value(c.NATOutgoingExclusions, ""), "IPPoolsAndHostIPs"),
		OutInterface: c.IptablesNATOutgoingInterfaceFilter, RandomizePorts: true,
	}
	if a, err := netip.ParseAddr(c.NATOutgoingAddress); err == nil && a.Is4() {
		n.Source4 = a
	} else if err == nil {
		n.Source6 = a
	}
	if c.NATPortRange != nil && !c.NATPortRange.IsNamed() {
		n.Ports = view.PortRange{First: c.NATPortRange.First, Last: c.NATPortRange.Last}
	}
	return n
}

// services are the addresses of services, where kube-proxy puts them on a device of its own, so that IPVS leads packets on.
func services(s *state.State) []netip.Prefix { return s.Host.Interfaces[desired.IPVSDevice].Addresses }

// ownSets are the sets that felix's own rules name. All exist always, so that no rule waits for one; for that of services,
// which few nodes need, the drivers see to it.
func ownSets(s *state.State) map[string]desired.Set {
	members := map[string][]netip.Prefix{
		desired.SetAllHosts: nil, desired.SetVXLANHosts: nil, desired.SetPools: nil, desired.SetMasqPools: nil,
	}
	if to := services(s); len(to) > 0 {
		members[desired.SetServices] = slices.Clone(to)
	}
	add := func(set string, p netip.Prefix) { members[set] = append(members[set], p) }
	for _, n := range s.Nodes {
		for _, own := range []struct{ node, vtep netip.Addr }{{n.IPv4.Addr(), n.VXLANAddr4}, {n.IPv6.Addr(), n.VXLANAddr6}} {
			if !own.node.IsValid() {
				continue
			}
			host := netip.PrefixFrom(own.node, own.node.BitLen())
			add(desired.SetAllHosts, host)
			if n.Name != s.Node && own.vtep.IsValid() {
				add(desired.SetVXLANHosts, host)
			}
		}
	}
	for _, p := range s.Pools {
		cidr, err := netip.ParsePrefix(p.Spec.CIDR)
		if err != nil || loadBalancerOnly(p) {
			continue
		}
		add(desired.SetPools, cidr)
		if p.Spec.NATOutgoing {
			add(desired.SetMasqPools, cidr)
		}
	}
	for _, cidr := range externalNodes(s) {
		add(desired.SetAllHosts, cidr)
		add(desired.SetVXLANHosts, cidr)
	}
	out := make(map[string]desired.Set, len(members))
	for id, prefixes := range members {
		slices.SortFunc(prefixes, comparePrefixes)
		set := desired.Set{Type: view.SetNet}
		for _, p := range slices.Compact(prefixes) {
			set.Members = append(set.Members, view.Member{Prefix: p})
		}
		out[id] = set
	}
	return out
}

// externalNodes are the networks of tunnel peers that are no nodes of the cluster.
func externalNodes(s *state.State) (out []netip.Prefix) {
	for _, text := range value(s.Config.Spec.ExternalNodesCIDRList, nil) {
		if cidr, err := parseNet(text); err == nil {
			out = append(out, cidr)
		}
	}
	return out
}

func loadBalancerOnly(p *api.IPPool) bool {
	return len(p.Spec.AllowedUses) == 1 && p.Spec.AllowedUses[0] == api.UseLoadBalancer
}

// parseNet reads a CIDR, or an address as the network of it alone.
func parseNet(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}
