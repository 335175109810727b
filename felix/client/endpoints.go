package client

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Endpoint is one endpoint of a node, with what applies to it in the order of evaluation: ingress, then egress, of host
// endpoints pass by pass.
type Endpoint struct {
	ID, Interface string // of a host endpoint "host/" and its name, and the interfaces at which it judges
	Addresses     []netip.Addr
	Closed        []string // why nothing passes; nothing: it is open
	Rules         []RuleCount
	// FailsafeIn and FailsafeOut are the ports of a host endpoint that stay open, in words.
	FailsafeIn, FailsafeOut []string
}

// RuleCount is one rule that applies to an endpoint, or an end, with what the kernel counted: of all endpoints of the node
// that it applies to.
type RuleCount struct {
	Pass           string // of a host endpoint: "untracked", "preDNAT", "forward" or "normal"; empty for workloads
	Tier           string // empty for profiles and the end of all
	Policy         string // empty for an end
	Egress         bool
	Rule           int // -1 for an end, and for a policy without rules in the direction
	Action         string
	Match          string // in words; empty if everything
	Staged         bool
	Packets, Bytes uint64
}

// Endpoints lists the endpoints of the node, or the one that is named: by id, interface, address, namespace/pod, or the name of
// a host endpoint.
func (c *Client) Endpoints(ctx context.Context, name string) ([]Endpoint, error) {
	resp, err := c.live.Endpoints(ctx, &felixv1.EndpointsRequest{Endpoint: name})
	if err != nil {
		return nil, c.explain(err)
	}
	return endpointsOf(resp)
}

// EndpointsQuestion is Endpoints as typha relays it to a node; ReadEndpoints reads the answer.
func EndpointsQuestion(name string) []byte {
	body, err := proto.Marshal(&felixv1.EndpointsRequest{Endpoint: name})
	if err != nil { // only for text that is no UTF-8
		return nil
	}
	return body
}

// ReadEndpoints reads the answer to EndpointsQuestion.
func ReadEndpoints(body []byte) ([]Endpoint, error) {
	m := &felixv1.EndpointsResponse{}
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("answer of felix: %w", err)
	}
	return endpointsOf(m)
}

func endpointsOf(m *felixv1.EndpointsResponse) ([]Endpoint, error) {
	var out []Endpoint
	for _, e := range m.GetEndpoints() {
		addrs, err := addresses(e.GetAddresses())
		if err != nil {
			return nil, err
		}
		one := Endpoint{ID: e.GetId(), Interface: e.GetInterface(), Addresses: addrs, Closed: e.GetClosedBecause(), FailsafeIn: e.GetFailsafeIn(), FailsafeOut: e.GetFailsafeOut()}
		for _, p := range e.GetPolicies() {
			one.Rules = append(one.Rules, RuleCount{
				Pass: p.GetPass(), Tier: p.GetTier(), Policy: p.GetPolicy(), Egress: p.GetEgress(), Rule: int(p.GetRule()), Action: p.GetAction(),
				Match: p.GetMatch(), Staged: p.GetStaged(), Packets: p.GetPackets(), Bytes: p.GetBytes(),
			})
		}
		out = append(out, one)
	}
	return out, nil
}
