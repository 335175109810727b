package render

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Firewall is the whole firewall of a node.
type Firewall struct {
	Settings  desired.Settings
	Sets      map[string]desired.Set
	Chains    map[string]desired.Chain
	Workloads map[string]desired.Workload
}

// FirewallState computes the firewall: settings, the sets that felix itself needs and those that policies name, the
// chains of policies and lists, and one entry for each local endpoint. An endpoint without known policy is closed.
func FirewallState(s *state.State) Firewall {
	fw := Firewall{
		Settings:  settings(s),
		Sets:      ownSets(s),
		Chains:    map[string]desired.Chain{},
		Workloads: make(map[string]desired.Workload, len(s.Local)),
	}
	for id, set := range s.Sets {
		fw.Sets[id] = desired.Set{Type: set.Type, Members: set.Members}
	}
	for id, p := range s.Policies {
		if p.Staged || desired.Staged(id) {
			continue
		}
		fw.chains(desired.PolicyChains(p, s.Config.Spec.LogPrefix))
	}
	for _, l := range s.Lists {
		fw.chains(desired.ListChains(l))
	}
	for name, e := range s.Local {
		fw.Workloads[name] = workload(s, e)
	}
	return fw
}

func (fw Firewall) chains(pair [2]desired.Chain) {
	for _, c := range pair {
		fw.Chains[c.Name] = c
	}
}

func workload(s *state.State, e state.Endpoint) desired.Workload {
	w := desired.Workload{Endpoint: e.ID.String()}
	if why := s.Closed(e); len(why) > 0 {
		w.ClosedBecause = why[0]
		return w
	}
	v, _ := s.View(e)
	w.Ingress = desired.ListChain(v.PolicyList, desired.Ingress)
	w.Egress = desired.ListChain(v.PolicyList, desired.Egress)
	w.Addresses = e.Addresses
	if maySpoof(s) {
		w.AllowedSources = v.AllowSpoofedPrefixes
	}
	return w
}

func settings(s *state.State) desired.Settings {
	c := s.Config.Spec
	out := desired.Settings{
		WorkloadPrefixes:        []string{cmp.Or(c.InterfacePrefix, "cali")},
		RejectDenied:            is(c.IptablesFilterDenyAction, "Reject") || is(c.NftablesFilterDenyAction, "Reject"),
		AcceptInvalid:           value(c.DisableConntrackInvalidCheck, false),
		AllowVXLANFromWorkloads: value(c.AllowVXLANPacketsFromWorkloads, false),
		AllowIPIPFromWorkloads:  value(c.AllowIPIPPacketsFromWorkloads, false),
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

// ownSets are the sets that felix's own rules name. All four exist always, so that no rule waits for one.
func ownSets(s *state.State) map[string]desired.Set {
	members := map[string][]netip.Prefix{
		desired.SetAllHosts: nil, desired.SetVXLANHosts: nil, desired.SetPools: nil, desired.SetMasqPools: nil,
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

// FirewallDelta is what makes next of prev. Changed sets go as changes of members.
func FirewallDelta(prev, next Firewall) desired.FirewallDelta {
	var d desired.FirewallDelta
	if !prev.Settings.Equal(next.Settings) || prev.Sets == nil {
		d.Settings = &next.Settings
	}
	d.Chains = desired.Diff(prev.Chains, next.Chains, desired.Chain.Equal)
	d.Workloads = desired.Diff(prev.Workloads, next.Workloads, desired.Workload.Equal)
	for id := range prev.Sets {
		if _, ok := next.Sets[id]; !ok {
			d.Sets.Remove(id)
		}
	}
	for id, set := range next.Sets {
		old, ok := prev.Sets[id]
		if !ok || old.Type != set.Type {
			d.Sets.Put(id, set)
			continue
		}
		if change := memberDelta(old, set); len(change.Added)+len(change.Removed) > 0 {
			if d.Members == nil {
				d.Members = map[string]desired.SetDelta{}
			}
			d.Members[id] = change
		}
	}
	return d
}

func memberDelta(prev, next desired.Set) desired.SetDelta {
	if slices.Equal(prev.Members, next.Members) {
		return desired.SetDelta{}
	}
	gone := make(map[view.Member]struct{}, len(prev.Members))
	for _, m := range prev.Members {
		gone[m] = struct{}{}
	}
	var d desired.SetDelta
	for _, m := range next.Members {
		if _, ok := gone[m]; ok {
			delete(gone, m)
			continue
		}
		d.Added = append(d.Added, m)
	}
	d.Removed = slices.SortedFunc(maps.Keys(gone), view.Member.Compare)
	return d
}
