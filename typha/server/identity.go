package server

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/internal/rpc"
)

// The roles that a certificate can give.
const (
	roleNode     = "node"
	roleOperator = "operator"
)

// callingNode is the node that is calling. Only a node's certificate has one.
func callingNode(ctx context.Context) (string, error) {
	id, err := rpc.Peer(ctx)
	if err != nil {
		return "", err
	}
	if id.Role != roleNode {
		return "", status.Errorf(codes.PermissionDenied,
			"the certificate is for %s; this call is for nodes, with a certificate for %s/<name>", id, roleNode)
	}
	return id.Name, nil
}

// mustBeOperator refuses everyone but operators.
func mustBeOperator(ctx context.Context) error {
	id, err := rpc.Peer(ctx)
	if err != nil {
		return err
	}
	if id.Role != roleOperator {
		return status.Errorf(codes.PermissionDenied,
			"the certificate is for %s; this call is for operators, with a certificate for %s/<name>", id, roleOperator)
	}
	return nil
}
