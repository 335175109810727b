package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// annotationEpoch of a Node holds the epoch of its journal of addresses.
const annotationEpoch = "muslin.net/ipam-epoch"

// enterEpoch makes sure that a node's epoch is the given one. A higher one than before fences all warm addresses of the
// one before: they are released, and whoever still holds a journal of it is refused. A node that is not registered (or
// was deleted) has no warm addresses.
func (s *Server) enterEpoch(ctx context.Context, node string, epoch uint64) error {
	if epoch == 0 {
		return status.Error(codes.InvalidArgument, "warm addresses need the epoch of the node's journal")
	}
	if n := s.cfg.Cache.Snapshot().Node(node); n != nil && epochOf(n) == epoch {
		return nil
	}
	var before uint64
	_, err := s.nodes.update(ctx, node, func(n *api.Node) error {
		before = epochOf(n)
		if before > epoch {
			return status.Errorf(codes.FailedPrecondition,
				"epoch %d of node %s has ended, the present one is %d; start a new journal with a higher epoch", epoch, node, before)
		}
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[annotationEpoch] = strconv.FormatUint(epoch, 10)
		return nil
	})
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return status.Errorf(codes.FailedPrecondition, "node %s is not registered; register it before it takes warm addresses", node)
	case err != nil:
		return storeError(err)
	case before == 0 || before == epoch:
		return nil
	}
	_, err = s.cfg.Alloc.ReleaseByHandle(ctx, warmHandle(node, before))
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return allocError(fmt.Errorf("warm addresses of epoch %d: %w", before, err))
	}
	return nil
}

// epochOf is a node's epoch; 0 if it has none.
func epochOf(n *api.Node) uint64 {
	epoch, err := strconv.ParseUint(n.Annotations[annotationEpoch], 10, 64)
	if err != nil {
		return 0
	}
	return epoch
}
