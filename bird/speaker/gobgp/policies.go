package gobgp

import (
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/muslin-net/muslin/bird/policy"
)

// toPolicies writes a program in gobgp's terms.
func toPolicies(p policy.Program) *api.SetPoliciesRequest {
	r := &api.SetPoliciesRequest{Policies: []*api.Policy{
		{Name: importPolicy, Statements: toStatements(importPolicy, p.Import)},
		{Name: exportPolicy, Statements: toStatements(exportPolicy, p.Export)},
	}}
	for _, s := range p.Sets {
		r.DefinedSets = append(r.DefinedSets, toSet(s))
	}
	return r
}

func toSet(s policy.Set) *api.DefinedSet {
	out := &api.DefinedSet{Name: s.Name, List: s.Patterns}
	switch s.Kind {
	case policy.PrefixSet:
		out.DefinedType = api.DefinedType_PREFIX
		for _, p := range s.Prefixes {
			out.Prefixes = append(out.Prefixes, &api.Prefix{
				IpPrefix: p.Prefix.String(), MaskLengthMin: uint32(p.Min), MaskLengthMax: uint32(p.Max),
			})
		}
	case policy.NeighborSet:
		out.DefinedType = api.DefinedType_NEIGHBOR
		for _, a := range s.Neighbors {
			out.List = append(out.List, a.String())
		}
	case policy.CommunitySet:
		out.DefinedType = api.DefinedType_COMMUNITY
	case policy.LargeCommunitySet:
		out.DefinedType = api.DefinedType_LARGE_COMMUNITY
	case policy.ASPathSet:
		out.DefinedType = api.DefinedType_AS_PATH
	}
	return out
}

func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// toStatements gives each statement a name of its own, as gobgp wants over both policies.
func toStatements(prefix string, list []policy.Statement) []*api.Statement {
	out := make([]*api.Statement, len(list))
	for i, s := range list {
		st := &api.Statement{
			Name: prefix + " " + s.Name,
			Conditions: &api.Conditions{
				PrefixSet: toMatch(s.Prefix), NeighborSet: toMatch(s.Neighbor), CommunitySet: toMatch(s.Community),
				LargeCommunitySet: toMatch(s.LargeCommunity), AsPathSet: toMatch(s.ASPath),
			},
			Actions: &api.Actions{RouteAction: toAction(s.Action)},
		}
		for _, a := range s.NextHops {
			st.Conditions.NextHopInList = append(st.Conditions.NextHopInList, host(a))
		}
		addActions(st.Actions, s)
		if s.Action == policy.TakeBack {
			// Of a session with several paths to a prefix gobgp does not look whether what the policy rejects now was let out
			// before. So it is let out, with a tag, of which our connection makes a withdrawal.
			st.Actions.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_ADD, Communities: []string{policy.TakenBack.String()}}
		}
		out[i] = st
	}
	return out
}

func addActions(a *api.Actions, s policy.Statement) {
	for _, c := range s.AddCommunities {
		target := &a.Community
		if c.Large {
			target = &a.LargeCommunity
		}
		if *target == nil {
			*target = &api.CommunityAction{Type: api.CommunityAction_ADD}
		}
		(*target).Communities = append((*target).Communities, c.String())
	}
	if s.RemoveLargeCommunities != "" {
		a.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_REMOVE, Communities: []string{s.RemoveLargeCommunities}}
	}
	if s.PrependTimes > 0 {
		a.AsPrepend = &api.AsPrependAction{Asn: s.Prepend, Repeat: s.PrependTimes}
	}
	if s.Preference != 0 {
		a.LocalPref = &api.LocalPrefAction{Value: s.Preference}
	}
	if s.MED != 0 {
		a.Med = &api.MedAction{Type: api.MedAction_REPLACE, Value: int64(s.MED)}
	}
	switch s.NextHop {
	case policy.NextHopSelf:
		a.Nexthop = &api.NexthopAction{Self: true}
	case policy.NextHopKeep:
		a.Nexthop = &api.NexthopAction{Unchanged: true}
	}
}

func toMatch(m policy.Match) *api.MatchSet {
	if m.Set == "" {
		return nil
	}
	out := &api.MatchSet{Name: m.Set, Type: api.MatchSet_ANY}
	if m.Invert {
		out.Type = api.MatchSet_INVERT
	}
	return out
}

func toAction(a policy.Action) api.RouteAction {
	switch a {
	case policy.Accept, policy.TakeBack:
		return api.RouteAction_ACCEPT
	case policy.Reject:
		return api.RouteAction_REJECT
	default:
		return api.RouteAction_NONE
	}
}
