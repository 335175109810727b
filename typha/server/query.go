package server

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

// queryService answers operators.
type queryService struct {
	typhav1.UnimplementedQueryServiceServer
	*Server
}

// Query relays a question to a node.
func (s queryService) Query(m *typhav1.QueryRequest, stream typhav1.QueryService_QueryServer) error {
	if err := mustBeOperator(stream.Context()); err != nil {
		return err
	}
	return s.relay(stream.Context(), m, func(part []byte) error {
		return stream.Send(&typhav1.QueryResponse{Response: part})
	})
}

// Status lists the clients.
func (s queryService) Status(ctx context.Context, _ *typhav1.StatusRequest) (*typhav1.StatusResponse, error) {
	if err := mustBeOperator(ctx); err != nil {
		return nil, err
	}
	answer := &typhav1.StatusResponse{}
	for _, c := range s.sessions.all() {
		st := c.snapshot()
		st.Items = uint64(len(s.cfg.Views.View(c.scope)))
		answer.Clients = append(answer.Clients, st)
	}
	slices.SortFunc(answer.Clients, func(a, b *typhav1.ClientStatus) int {
		return cmp.Or(strings.Compare(a.GetNode(), b.GetNode()), strings.Compare(a.GetView(), b.GetView()))
	})
	return answer, nil
}

// ExplainItem says why a node has an item.
func (s queryService) ExplainItem(ctx context.Context, m *typhav1.ExplainItemRequest) (*typhav1.ExplainItemResponse, error) {
	if err := mustBeOperator(ctx); err != nil {
		return nil, err
	}
	k, err := parseItem(m.GetItem())
	if err != nil {
		return nil, err
	}
	var answer typhav1.ExplainItemResponse
	for _, kind := range []views.ViewKind{views.NodeView, views.BGPView} {
		scope := views.Scope{Node: m.GetNode(), View: kind}
		if s.cfg.Views.Get(scope, k) != nil {
			s.explain(scope, k, &answer)
		}
	}
	if len(answer.GetReasons()) == 0 {
		return nil, status.Errorf(codes.NotFound, "node %q has no item %s in its views", m.GetNode(), m.GetItem())
	}
	return &answer, nil
}
