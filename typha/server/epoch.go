package server

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// annotationFenced of a Node are epochs of its journal of addresses that ended, of which something may still be reserved.
const annotationFenced = "muslin.net/ipam-fenced"

// tidyAfter is when no call of an epoch that ended can be under way any more, since nothing waits for it so long.
const tidyAfter = 5 * time.Minute

const (
	// maxFenced is how many ended epochs are kept: a node that begins anew all the time must not make its Node grow. What is reserved
	// under an older one was freed more than once.
	maxFenced = 32
	// epochsAhead is how far an epoch may be ahead of this host's clock.
	epochsAhead = 10 * 365 * 24 * time.Hour
)

// checkEpoch makes sure that an epoch is the node's.
func (s *Server) checkEpoch(ctx context.Context, node string, epoch uint64) error {
	if epoch == 0 {
		return status.Error(codes.InvalidArgument, "warm addresses need the epoch of the node's journal")
	}
	n, err := s.nodes.get(ctx, node) // not the cache's: it may not know yet that the epoch ended
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return refuse(refusedStale, codes.FailedPrecondition, "node %s is not registered; register it before it takes warm addresses", node)
	case err != nil:
		return storeError(err)
	case n.IPAMEpoch() != epoch:
		return refuse(refusedStale, codes.FailedPrecondition, "epoch %d of node %s has ended, the present one is %d", epoch, node, n.IPAMEpoch())
	}
	return nil
}

// Enter gives the node a new epoch. Whoever goes on in an earlier one is refused from now on.
func (s ipamService) Enter(ctx context.Context, m *typhav1.EnterRequest) (*typhav1.EnterResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	if most := time.Now().Add(epochsAhead).Unix(); m.GetBefore() > uint64(most) {
		return nil, status.Errorf(codes.InvalidArgument, "epoch %d, before, is ahead of time: epochs are about seconds since 1970, at most %d", m.GetBefore(), most)
	}
	claims, err := transfersOf(node, m.GetClaims())
	if err != nil {
		return nil, err
	}
	ended, err := s.epochsOf(ctx, node, claims)
	if err != nil {
		return nil, err
	}
	ended = append(ended, m.GetPresent(), m.GetBefore())
	var epoch uint64
	var fenced []uint64
	_, err = s.nodes.update(ctx, node, func(n *api.Node) error {
		if present := n.IPAMEpoch(); present != m.GetPresent() {
			return refuse(refusedStale, codes.FailedPrecondition, "epoch %d of node %s has ended, the present one is %d", m.GetPresent(), node, present)
		}
		// Like sequence numbers of blocks, epochs start at the time, so that one of a node that was deleted never comes back.
		epoch = max(slices.Max(ended)+1, uint64(time.Now().Unix()))
		fenced = fencedOf(n)
		for _, old := range ended {
			if old != 0 && !slices.Contains(fenced, old) {
				fenced = append(fenced, old)
			}
		}
		fenced = fenced[max(0, len(fenced)-maxFenced):]
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[api.AnnotationIPAMEpoch] = strconv.FormatUint(epoch, 10)
		setFenced(n, fenced)
		return nil
	})
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "node %s is not registered", node)
	}
	if err != nil {
		return nil, epochError(err)
	}
	for _, old := range fenced {
		if err := s.endEpoch(ctx, node, old, claims); err != nil {
			return nil, err
		}
	}
	cfg, err := s.cfg.Alloc.Configuration(ctx)
	if err != nil {
		return nil, allocError(err)
	}
	s.log.Info("a node's reserve of addresses begins anew", "node", node, "epoch", epoch, "ended", fenced, "claims", len(claims))
	return &typhav1.EnterResponse{Epoch: epoch, CooldownSeconds: uint32(cfg.IPCooldownSeconds)}, nil
}

// epochsOf are the epochs under which addresses of living pods are reserved, also such that neither Node nor journal tell of.
func (s *Server) epochsOf(ctx context.Context, node string, claims []alloc.Transfer) ([]uint64, error) {
	var addrs []netip.Addr
	for _, c := range claims {
		addrs = append(addrs, c.Addr)
	}
	found, err := s.lookup(ctx, addrs)
	if err != nil {
		return nil, allocError(err)
	}
	var out []uint64
	for _, f := range found {
		if epoch, ok := f.WarmEpoch(); ok && f.node() == node {
			out = append(out, epoch)
		}
	}
	return out, nil
}

// endEpoch frees what is reserved under an epoch, but for what living pods have.
func (s *Server) endEpoch(ctx context.Context, node string, epoch uint64, claims []alloc.Transfer) error {
	handle := warmHandle(node, epoch)
	if _, err := s.cfg.Alloc.ReassignAll(ctx, handle, claims...); err != nil { // what is refused was never under this one
		return allocError(err)
	}
	if _, err := s.cfg.Alloc.ReleaseByHandle(ctx, handle); err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return allocError(err)
	}
	return nil
}

// tidy frees once more what ended epochs had: a call of theirs may have come late.
func (s *Server) tidy(ctx context.Context, n *api.Node) error {
	fenced := fencedOf(n)
	if len(fenced) == 0 || time.Since(time.Unix(int64(n.IPAMEpoch()), 0)) < tidyAfter {
		return nil
	}
	for _, old := range fenced {
		if err := s.endEpoch(ctx, n.Name, old, nil); err != nil {
			return err
		}
	}
	_, err := s.nodes.update(ctx, n.Name, func(n *api.Node) error {
		setFenced(n, slices.DeleteFunc(fencedOf(n), func(e uint64) bool { return slices.Contains(fenced, e) }))
		return nil
	})
	if err != nil {
		return storeError(err)
	}
	return nil
}

// epochError keeps the status that a change of a Node failed with.
func epochError(err error) error {
	if status.Code(err) != codes.Unknown {
		return err
	}
	return storeError(err)
}

func fencedOf(n *api.Node) (out []uint64) {
	for text := range strings.SplitSeq(n.Annotations[annotationFenced], ",") {
		if epoch, err := strconv.ParseUint(text, 10, 64); err == nil {
			out = append(out, epoch)
		}
	}
	return out
}

func setFenced(n *api.Node, epochs []uint64) {
	var texts []string
	for _, e := range epochs {
		texts = append(texts, strconv.FormatUint(e, 10))
	}
	if len(texts) == 0 {
		delete(n.Annotations, annotationFenced)
		return
	}
	n.Annotations[annotationFenced] = strings.Join(texts, ",")
}
