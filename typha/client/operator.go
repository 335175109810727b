package client

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// Ask asks a node's daemon for live state through typha; it needs the operator's certificate. Each part of the answer is
// given to take. timeout is how long to wait for the node; 0 leaves it to typha (5 s). ErrNotFound says that the node
// is not connected, ErrUnserved that its daemon has no such method.
func (c *Client) Ask(ctx context.Context, node string, q Question, timeout time.Duration, take func(part []byte) error) error {
	request := &typhav1.QueryRequest{Node: node, Method: typhav1.QueryMethod(q.Method), Request: q.Request}
	if timeout > 0 {
		request.Timeout = durationpb.New(timeout)
	}
	// A node is connected to one replica; the others know nothing of it.
	elsewhere := func(code codes.Code) bool { return code == codes.NotFound }
	return c.callUntil(ctx, elsewhere, func(ctx context.Context, conn *grpc.ClientConn) error {
		stream, err := typhav1.NewQueryServiceClient(conn).Query(ctx, request)
		if err != nil {
			return err
		}
		return drain(stream, func(m *typhav1.QueryResponse) error { return take(m.GetResponse()) })
	})
}

// Reason is one link of an explanation.
type Reason struct {
	What    string // what is there
	Because string // the object and field that asks for it
}

// ExplainItem says why a node has an item of its view, named "kind/id".
func (c *Client) ExplainItem(ctx context.Context, node, item string) ([]Reason, error) {
	var out []Reason
	err := c.query(ctx, func(ctx context.Context, svc typhav1.QueryServiceClient) error {
		answer, err := svc.ExplainItem(ctx, &typhav1.ExplainItemRequest{Node: node, Item: item})
		for _, r := range answer.GetReasons() {
			out = append(out, Reason{What: r.GetWhat(), Because: r.GetBecause()})
		}
		return err
	})
	return out, err
}

// Packet describes a packet by its ends: endpoint ids as orchestrator/workload/endpoint, names of host endpoints or nodes, or
// addresses.
type Packet struct {
	From, To string
	Protocol view.Protocol
	Port     uint16
	ICMP     *view.ICMP // nil: the type is not known
}

// Decision is the outcome of policy at one endpoint, of a host endpoint in one pass.
type Decision struct {
	Endpoint string // whose policy decided; "host/" and the name of a host endpoint
	Egress   bool
	Pass     string // of a host endpoint: "untracked", "preDNAT", "forward" or "normal"; empty for workloads
	Allowed  bool
	By       string // the policy or profile, or in words the tier whose end was reached, a failsafe port or a setting
	Rule     int    // index within the policy; -1 where no rule decided
}

// Explanation is what policy does to a packet.
type Explanation struct {
	Allowed   bool // everywhere
	Decisions []Decision
	Notes     []string // sentences about the translation of addresses on the way, and rules that ask for what is not known
}

// ExplainPolicy says which policies decide over a packet, and how.
func (c *Client) ExplainPolicy(ctx context.Context, p Packet) (e Explanation, err error) {
	err = c.query(ctx, func(ctx context.Context, svc typhav1.QueryServiceClient) error {
		request := &typhav1.ExplainPolicyRequest{From: p.From, To: p.To, Protocol: uint32(p.Protocol), Port: uint32(p.Port)}
		if p.ICMP != nil {
			request.IcmpType = new(uint32(p.ICMP.Type))
			if p.ICMP.Code != nil {
				request.IcmpCode = new(uint32(*p.ICMP.Code))
			}
		}
		answer, err := svc.ExplainPolicy(ctx, request)
		e = Explanation{Allowed: answer.GetAllowed(), Notes: answer.GetNotes()}
		for _, d := range answer.GetDecisions() {
			e.Decisions = append(e.Decisions, Decision{
				Endpoint: d.GetEndpoint(), Egress: d.GetEgress(), Pass: d.GetPass(), Allowed: d.GetAllowed(), By: d.GetBy(), Rule: int(d.GetRule()),
			})
		}
		return err
	})
	return e, err
}

// Follower is a client that follows a view at the replica asked.
type Follower struct {
	Node     string
	View     string // "NODE" or "BGP"
	Items    uint64 // in its view
	Dirty    uint64 // waiting to be sent
	Sent     uint64 // highest batch sent, received and applied
	Received uint64
	Applied  uint64
	Failures []string // items that it failed to program, in words
	Software string
}

// Followers lists the clients connected to one replica.
func (c *Client) Followers(ctx context.Context) ([]Follower, error) {
	var out []Follower
	err := c.query(ctx, func(ctx context.Context, svc typhav1.QueryServiceClient) error {
		answer, err := svc.Status(ctx, &typhav1.StatusRequest{})
		for _, m := range answer.GetClients() {
			out = append(out, Follower{
				Node: m.GetNode(), View: m.GetView(), Items: m.GetItems(), Dirty: m.GetDirty(),
				Sent: m.GetSent(), Received: m.GetReceived(), Applied: m.GetApplied(),
				Failures: m.GetFailures(), Software: m.GetSoftware(),
			})
		}
		return err
	})
	return out, err
}
