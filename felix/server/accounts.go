package server

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Applied is what applies to an endpoint of the node.
type Applied struct {
	Closed   []string // why nothing passes; nothing: it is open
	List     view.PolicyList
	Policies map[string]view.Policy // those that the list names and that are known
}

// Reason is one link of an explanation.
type Reason struct{ What, Because string }

// Explain traces a kernel object to what caused it.
func (s *Server) Explain(ctx context.Context, req *felixv1.ExplainRequest) (*felixv1.ExplainResponse, error) {
	reasons, err := s.Agent.Explain(ctx, req.GetSection(), req.GetKey())
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &felixv1.ExplainResponse{}
	for _, r := range reasons {
		resp.Reasons = append(resp.Reasons, &felixv1.Reason{What: r.What, Because: r.Because})
	}
	return resp, nil
}

// counts is what the kernel counted, by chain and comment.
type counts map[[2]string]dataplane.Counter

// counts reads the counters; without a way to read them there are none.
func (s *Server) counts(ctx context.Context) (counts, error) {
	if s.Counters == nil {
		return nil, nil
	}
	all, err := s.Counters.Counters(ctx)
	if err != nil {
		return nil, err
	}
	out := make(counts, len(all))
	for _, c := range all { // a chain may be in several layers; a packet meets it in one of them
		key := [2]string{c.Chain, c.Comment}
		sum := out[key]
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
		out[key] = sum
	}
	return out, nil
}

// policyCounters lists what applies to a workload, in the order of evaluation: ingress, then egress; tiers, profiles, the end.
func policyCounters(a Applied, counted counts) (out []*felixv1.PolicyCounter) {
	for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
		out = append(out, listCounters(a, desired.Normal, d, desired.ListChain(a.List.ID, d), counted)...)
	}
	return out
}

// listCounters lists a policy list in a pass and direction; workloads have the normal pass. chain is what evaluates it.
func listCounters(a Applied, pass desired.HostPass, d desired.Direction, chain string, counted counts) (out []*felixv1.PolicyCounter) {
	add := func(c *felixv1.PolicyCounter, chain, comment string) {
		n := counted[[2]string{chain, comment}]
		c.Egress, c.Packets, c.Bytes = d == desired.Egress, n.Packets, n.Bytes
		out = append(out, c)
	}
	policy := func(tier, id string) {
		p, known := a.Policies[id]
		rules := p.Ingress
		if d == desired.Egress {
			rules = p.Egress
		}
		staged := desired.Staged(id)
		if len(rules) == 0 {
			c := &felixv1.PolicyCounter{Tier: tier, Policy: id, Rule: -1, Staged: staged}
			if !known {
				c.Match = "not known on this node"
			}
			add(c, "", "")
		}
		for i := range rules {
			add(&felixv1.PolicyCounter{
				Tier: tier, Policy: id, Rule: int32(i), Action: actionName(rules[i].Action), Match: criteria(&rules[i]), Staged: staged,
			}, desired.PolicyChain(id, d), fmt.Sprintf("%s %s %d", id, d, i))
		}
	}
	ends := pass == desired.Normal || pass == desired.Forward // the early passes leave to the later ones what they do not decide
	for _, t := range a.List.Tiers {
		ids := t.Ingress
		if d == desired.Egress {
			ids = t.Egress
		}
		for _, id := range ids {
			policy(t.Name, id)
		}
		if ends && slices.ContainsFunc(ids, func(id string) bool { return !desired.Staged(id) }) {
			add(&felixv1.PolicyCounter{Tier: t.Name, Rule: -1, Action: actionName(t.DefaultAction)}, chain, "end of tier "+t.Name)
		}
	}
	if pass != desired.Normal {
		return out
	}
	for _, id := range a.List.Profiles {
		policy("", id)
	}
	add(&felixv1.PolicyCounter{Rule: -1, Action: actionName(view.Deny)}, chain, "no profile decided")
	return out
}

func actionName(a view.Action) string {
	return map[view.Action]string{view.Allow: "Allow", view.Deny: "Deny", view.Pass: "Pass", view.Log: "Log"}[a]
}

// protocols are names of protocols that people know better than their numbers.
var protocols = map[view.Protocol]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmpv6", 132: "sctp", 136: "udplite"}

func protocolName(p view.Protocol) string {
	return cmp.Or(protocols[p], "protocol "+strconv.Itoa(int(p)))
}

// criteria is what a rule matches, in words: "tcp from s:abc, to ports 80,8080-8090". A set is named by its id.
func criteria(r *view.Rule) string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.IPVersion != 0 {
		add("IPv%d", r.IPVersion)
	}
	if r.Protocol != 0 {
		add("%s", protocolName(r.Protocol))
	}
	if r.NotProtocol != 0 {
		add("not %s", protocolName(r.NotProtocol))
	}
	icmp := func(not string, i *view.ICMP) {
		switch {
		case i == nil:
		case i.Code != nil:
			add("%stype %d code %d", not, i.Type, *i.Code)
		default:
			add("%stype %d", not, i.Type)
		}
	}
	icmp("", r.ICMP)
	icmp("not ", r.NotICMP)
	for _, side := range []struct {
		word string
		m    *view.Match
	}{{"from", &r.Source}, {"to", &r.Destination}} {
		if text := sideWords(side.m); text != "" {
			add("%s %s", side.word, text)
		}
	}
	return strings.Join(words, " ")
}

func sideWords(m *view.Match) string {
	var words []string
	list := func(before string, all ...string) {
		if len(all) > 0 {
			words = append(words, before+strings.Join(all, ","))
		}
	}
	nets := func(in []netip.Prefix) (out []string) {
		for _, n := range in {
			out = append(out, n.String())
		}
		return out
	}
	ports := func(in []view.PortRange) (out []string) {
		for _, p := range in {
			text := strconv.Itoa(int(p.First))
			if p.Last != p.First {
				text += "-" + strconv.Itoa(int(p.Last))
			}
			out = append(out, text)
		}
		return out
	}
	list("", nets(m.Nets)...)
	list("not ", nets(m.NotNets)...)
	list("", m.Sets...)
	list("not ", m.NotSets...)
	list("", m.IPPortSets...)
	list("ports ", append(ports(m.Ports), m.NamedPorts...)...)
	list("not ports ", append(ports(m.NotPorts), m.NotNamedPorts...)...)
	return strings.Join(words, " ")
}
