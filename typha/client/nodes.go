package client

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// Registration is what a starting node says of itself.
type Registration struct {
	// IPv4 and IPv6 are its addresses with the prefix length of their subnets. An invalid (unset) one keeps what is
	// stored, unless ClearIPv4 or ClearIPv6 is set.
	IPv4, IPv6           netip.Prefix
	ClearIPv4, ClearIPv6 bool
	ASNumber             api.ASNumber  // 0 keeps what is stored
	Interfaces           []Interface   // they replace what is stored
	Pools                []*api.IPPool // created where no pool of their family exists
	OrchRefs             []api.OrchRef
	SkipAddressCheck     bool // take the addresses even if another node has them
	ReadOnly             bool // change nothing, only tell what is stored
}

// Interface is an interface of the node with its addresses.
type Interface struct {
	Name      string
	Addresses []netip.Addr
}

// Registered is the node as it is stored now.
type Registered struct {
	Node         *api.Node
	PoolsCreated []string
	Replicas     []Replica
}

// Register creates or updates the calling node's Node. It is idempotent. ErrExists says that another node has one of the
// addresses, and names it; ErrNotFound that nothing is stored, for a ReadOnly one.
func (c *Client) Register(ctx context.Context, r Registration) (Registered, error) {
	request := &typhav1.RegisterRequest{
		Ipv4: wire.EncodePrefix(r.IPv4), Ipv6: wire.EncodePrefix(r.IPv6), ClearIpv4: r.ClearIPv4, ClearIpv6: r.ClearIPv6,
		AsNumber: uint32(r.ASNumber), SkipAddressCheck: r.SkipAddressCheck, ReadOnly: r.ReadOnly,
	}
	for _, i := range r.Interfaces {
		request.Interfaces = append(request.Interfaces, &typhav1.Interface{Name: i.Name, Addresses: wire.EncodeAddrs(i.Addresses)})
	}
	for _, p := range r.Pools {
		m, err := wire.Message(view.Resource{Object: p}, view.Version{})
		if err != nil {
			return Registered{}, fmt.Errorf("proposed pool: %w", err)
		}
		request.PoolProposals = append(request.PoolProposals, m.GetResource())
	}
	for _, o := range r.OrchRefs {
		request.OrchRefs = append(request.OrchRefs, &typhav1.OrchRef{Orchestrator: o.Orchestrator, NodeName: o.NodeName})
	}
	var out Registered
	err := c.nodes(ctx, func(ctx context.Context, svc typhav1.NodesServiceClient) error {
		answer, err := svc.Register(ctx, request)
		if err != nil {
			return err
		}
		o, err := wire.DecodeResource(answer.GetNode())
		if err != nil {
			return err
		}
		node, ok := o.(*api.Node)
		if !ok {
			return fmt.Errorf("typha answered with a %s where a Node was expected", answer.GetNode().GetKind())
		}
		out = Registered{Node: node, PoolsCreated: answer.GetPoolsCreated(), Replicas: decodeReplicas(answer.GetReplicas())}
		c.replicas.learn(out.Replicas)
		return nil
	})
	return out, err
}

// Condition is something that holds on the node or does not.
type Condition struct {
	Type    string // CamelCase
	Status  bool
	Reason  string // CamelCase
	Message string // what to know and what to do, for people
}

// ReportStatus stores what the node says of itself: its conditions, which replace those before, and what its kernel can
// do (name to detail).
func (c *Client) ReportStatus(ctx context.Context, conditions []Condition, capabilities map[string]string) error {
	return c.reportStatus(ctx, &typhav1.ReportStatusRequest{Capabilities: capabilities}, conditions)
}

// ReportPeers stores the condition of the node's BGP sessions, beside what ReportStatus says; without any there is none.
func (c *Client) ReportPeers(ctx context.Context, conditions ...Condition) error {
	return c.reportStatus(ctx, &typhav1.ReportStatusRequest{Beside: true}, conditions)
}

func (c *Client) reportStatus(ctx context.Context, request *typhav1.ReportStatusRequest, conditions []Condition) error {
	for _, k := range conditions {
		request.Conditions = append(request.Conditions, &typhav1.Condition{Type: k.Type, Status: k.Status, Reason: k.Reason, Message: k.Message})
	}
	return c.nodes(ctx, func(ctx context.Context, svc typhav1.NodesServiceClient) error {
		_, err := svc.ReportStatus(ctx, request)
		return err
	})
}

// Leave has Kubernetes be told that the calling node has no network, since its felix is about to end; until a felix of the node is
// in sync again.
func (c *Client) Leave(ctx context.Context) error {
	return c.nodes(ctx, func(ctx context.Context, svc typhav1.NodesServiceClient) error {
		_, err := svc.Leave(ctx, &typhav1.LeaveRequest{})
		return err
	})
}

// Replicas asks typha for its replicas.
func (c *Client) Replicas(ctx context.Context) ([]Replica, error) {
	var out []Replica
	err := c.nodes(ctx, func(ctx context.Context, svc typhav1.NodesServiceClient) error {
		answer, err := svc.Replicas(ctx, &typhav1.ReplicasRequest{})
		out = decodeReplicas(answer.GetReplicas())
		return err
	})
	c.replicas.learn(out)
	return out, err
}
