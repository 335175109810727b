package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
)

// Applied tells what applies to the endpoint of an interface.
func (a *Agent) Applied(ctx context.Context, iface string) (server.Applied, error) {
	return look(ctx, a, func(s *state.State) server.Applied {
		e, there := s.Local[iface]
		if !there {
			return server.Applied{Closed: []string{"the interface is gone"}}
		}
		out := server.Applied{Closed: slices.Clone(s.Closed(e)), Policies: map[string]view.Policy{}}
		v, known := s.View(e)
		if !known {
			return out
		}
		list := applied(s, v.PolicyList)
		out.List, out.Policies = list.List, list.Policies
		return out
	})
}

// applied is a policy list with the policies that it names.
func applied(s *state.State, id string) server.Applied {
	out := server.Applied{List: s.Lists[id], Policies: map[string]view.Policy{}}
	for _, id := range policiesIn(out.List) {
		if p, known := s.Policies[id]; known {
			out.Policies[id] = p
		}
	}
	return out
}

// Hosts are the host endpoints of the node by name, with what applies to them.
func (a *Agent) Hosts(ctx context.Context) ([]server.Host, error) { return look(ctx, a, hostEndpoints) }

func hostEndpoints(s *state.State) (out []server.Host) {
	names := slices.Sorted(maps.Keys(s.HostEPs))
	all := "" // the policies of the preDNAT pass of the endpoint of all interfaces
	for _, name := range names {
		if e := s.HostEPs[name]; e.Interface == desired.AnyInterface {
			all = e.PreDNAT
			break
		}
	}
	judging := render.Judging(s)
	in, outward := render.Failsafes(s)
	for _, name := range names {
		e := s.HostEPs[name]
		h := server.Host{Name: name, Interfaces: judging[name], Addresses: e.ExpectedIPs, Closed: e.Incomplete, FailsafeIn: in, FailsafeOut: outward}
		for _, iface := range h.Interfaces {
			for _, p := range s.Host.Interfaces[iface].Addresses {
				if !slices.Contains(h.Addresses, p.Addr()) {
					h.Addresses = append(slices.Clip(h.Addresses), p.Addr())
				}
			}
		}
		if len(h.Closed) == 0 {
			h.Closed = s.ListLacks(e.Normal)
		}
		for pass, list := range map[desired.HostPass]string{desired.PreDNAT: e.PreDNAT, desired.Forward: e.Forward, desired.Normal: e.Normal, desired.Untracked: e.Untracked} {
			if list != "" && (pass != desired.Untracked || e.Interface != desired.AnyInterface) {
				h.Passes[pass] = applied(s, list)
			}
		}
		if all != e.PreDNAT {
			h.Passes[desired.PreDNAT] = earlyOf(h.Passes[desired.PreDNAT], applied(s, all))
		}
		out = append(out, h)
	}
	return out
}

// earlyOf is what applies in the preDNAT pass to a host endpoint beside one of all interfaces, which is replaced only by policies in
// force: see desired.Host.
func earlyOf(own, all server.Applied) server.Applied {
	judges := func(a server.Applied) bool { return desired.Judges(a.List, desired.PreDNAT, desired.Ingress) }
	switch {
	case judges(own):
		return own
	case !desired.Counts(own.List, desired.PreDNAT, desired.Ingress):
		return all
	case judges(all):
		own.List.Tiers = slices.Concat(own.List.Tiers, all.List.Tiers)
		maps.Copy(own.Policies, all.Policies)
	}
	return own
}

func policiesIn(l view.PolicyList) []string {
	out := slices.Clone(l.Profiles)
	for _, t := range l.Tiers {
		out = append(append(out, t.Ingress...), t.Egress...)
	}
	return out
}

// explained are the sections that Explain knows.
const explained = "rule, set, route or link"

// Explain traces an object of the kernel, as Dump names it, to what caused it. Routes are also found by an address that they
// are for, rules by the policy.
func (a *Agent) Explain(ctx context.Context, section, key string) ([]server.Reason, error) {
	find := map[string]func(*state.State, string) []server.Reason{
		"rule": explainRule, "set": explainSet, "route": explainRoute, "link": explainLink,
	}[section]
	if find == nil {
		return nil, status.Errorf(codes.InvalidArgument, "section %q cannot be explained; use %s", section, explained)
	}
	reasons, err := look(ctx, a, func(s *state.State) []server.Reason {
		if section == "rule" {
			return find(s, cmp.Or(a.kernel.ToldAs(key), key))
		}
		return find(s, key)
	})
	if err == nil && len(reasons) == 0 {
		return nil, status.Errorf(codes.NotFound, "nothing on this node asks for %s %q; name it as `felix` dumps it", section, key)
	}
	return reasons, err
}

// explainRule is about a chain of a policy, a profile or a policy list, in whichever driver's words.
func explainRule(s *state.State, key string) (out []server.Reason) {
	name := key[strings.LastIndexByte(key, ' ')+1:]
	if i := strings.Index(name, "cali-"); i >= 0 {
		name = name[i:]
	}
	for _, id := range slices.Sorted(maps.Keys(s.Policies)) {
		p := s.Policies[id]
		for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
			if name != desired.PolicyChain(id, d) && name != id {
				continue
			}
			n := len(p.Ingress)
			if d == desired.Egress {
				n = len(p.Egress)
			}
			out = append(out, server.Reason{
				What: "chain " + desired.PolicyChain(id, d), Because: fmt.Sprintf("%s has %d rules for %s", policyName(p), n, d),
			})
			if len(out) == 1 {
				out = append(out, listsWith(s, id)...)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Lists)) {
		if name == desired.ListChain(id, desired.Ingress) || name == desired.ListChain(id, desired.Egress) {
			out = append(out, server.Reason{What: "chain " + name, Because: "it evaluates " + strings.Join(policiesIn(s.Lists[id]), ", ")})
			out = append(out, endpointsUnder(s, id)...)
		}
	}
	return out
}

func policyName(p view.Policy) string {
	if p.Tier == "" {
		return "profile " + strings.TrimPrefix(p.ID, "pro/")
	}
	return fmt.Sprintf("policy %s of tier %s", p.ID, p.Tier)
}

// listsWith are the endpoints that a policy applies to.
func listsWith(s *state.State, policy string) (out []server.Reason) {
	for _, id := range slices.Sorted(maps.Keys(s.Lists)) {
		if slices.Contains(policiesIn(s.Lists[id]), policy) {
			for _, r := range endpointsUnder(s, id) {
				out = append(out, server.Reason{What: policy, Because: r.Because})
			}
		}
	}
	return out
}

func endpointsUnder(s *state.State, list string) (out []server.Reason) {
	for _, e := range localEndpoints(s) {
		if v, known := s.View(e); known && v.PolicyList == list {
			out = append(out, server.Reason{What: "policy list " + list, Because: fmt.Sprintf("it applies to %s (%s)", e.ID, e.Interface)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.HostEPs)) {
		h := s.HostEPs[name]
		if slices.Contains([]string{h.Normal, h.Forward, h.PreDNAT, h.Untracked}, list) {
			out = append(out, server.Reason{What: "policy list " + list, Because: "it applies to host endpoint " + name})
		}
	}
	return out
}

// ownSets are why felix's own sets are there.
var ownSets = map[string]string{
	desired.SetAllHosts:   "the addresses of all nodes: IP-in-IP is taken from them, and outgoing NAT may leave them out",
	desired.SetVXLANHosts: "the addresses of other nodes with a VXLAN device: VXLAN is taken from them",
	desired.SetPools:      "all IP pools: there is no outgoing NAT towards them",
	desired.SetMasqPools:  "IP pools with natOutgoing",
}

func explainSet(s *state.State, key string) (out []server.Reason) {
	// "ip cali40s:abc": family, the kernel's prefix, and an id that may be cut short or have dashes for its colons.
	name := key[strings.LastIndexByte(key, ' ')+1:]
	if id, ours := model.SetID(name); ours {
		name = id
	}
	is := func(id string) bool {
		return name != "" && (id == name || strings.HasPrefix(strings.ReplaceAll(id, ":", "-"), strings.ReplaceAll(name, ":", "-")))
	}
	for _, id := range slices.Sorted(maps.Keys(ownSets)) {
		if is(id) {
			out = append(out, server.Reason{What: "set " + id, Because: ownSets[id]})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Policies)) {
		for d, rules := range map[desired.Direction][]view.Rule{desired.Ingress: s.Policies[id].Ingress, desired.Egress: s.Policies[id].Egress} {
			for i := range rules {
				for _, side := range []view.Match{rules[i].Source, rules[i].Destination} {
					for _, set := range slices.Concat(side.Sets, side.NotSets, side.IPPortSets, side.NamedPorts, side.NotNamedPorts) {
						if is(set) {
							out = append(out, server.Reason{What: "set " + set, Because: fmt.Sprintf("%s names it in rule %d for %s", policyName(s.Policies[id]), i, d)})
						}
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b server.Reason) int { return strings.Compare(a.Because, b.Because) })
	return slices.Compact(out)
}

func explainRoute(s *state.State, key string) (out []server.Reason) {
	text, _, _ := strings.Cut(key, " ")
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil
		}
		prefix = netip.PrefixFrom(a, a.BitLen())
	}
	add := func(what any, format string, args ...any) {
		out = append(out, server.Reason{What: fmt.Sprintf("route %s", what), Because: fmt.Sprintf(format, args...)})
	}
	covers := func(p netip.Prefix) bool { return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr()) }
	for _, e := range localEndpoints(s) {
		for _, addr := range e.Addresses {
			if prefix == netip.PrefixFrom(addr, addr.BitLen()) {
				add(prefix, "%s has the address, behind %s", e.ID, e.Interface)
			}
		}
	}
	routes := slices.Collect(maps.Values(s.Remote))
	slices.SortFunc(routes, func(a, b view.Route) int { return b.Dst.Bits() - a.Dst.Bits() })
	for _, r := range routes {
		switch {
		case !covers(r.Dst):
		case r.Node == s.Node && r.Type == view.RouteBlock:
			add(r.Dst, "it is a block of this node's, of pool %s; what has no workload in it is dropped", r.Pool)
		default:
			add(r.Dst, "typha's table has it on node %s, of pool %s", r.Node, r.Pool)
		}
	}
	type path struct {
		prefix netip.Prefix
		ways   *state.Ways
	}
	var paths []path
	for p, ways := range s.Paths.All() {
		if covers(p) {
			paths = append(paths, path{p, ways})
		}
	}
	slices.SortFunc(paths, func(a, b path) int { return b.prefix.Bits() - a.prefix.Bits() })
	for _, p := range paths {
		add(p.prefix, "bird learned it, by %v", p.ways.NextHops)
	}
	return out
}

func explainLink(s *state.State, key string) []server.Reason {
	e, there := s.Local[key]
	if !there {
		return nil
	}
	out := []server.Reason{{What: "link " + key, Because: fmt.Sprintf("the CNI plugin added %s for container %s", e.ID, e.ContainerID)}}
	for _, why := range s.Closed(e) {
		out = append(out, server.Reason{What: "it is closed", Because: why})
	}
	return out
}
