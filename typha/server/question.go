package server

import (
	"context"
	"errors"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// Before kube-controllers release an address that nothing on a node seems to have, they ask the node which endpoints it has:
// they put a question, which is nothing but a name, into an annotation of its Node. The next report of the node's felix,
// which comes within half a minute, is compared with what the datastore really has; when all of it is stored, and nothing
// of it was refused, the replica that took it writes the question's name into another annotation. A node that cannot be
// reached, and a datastore that does not take an endpoint, leave the question standing.

// question is what a node has been asked and has not answered; empty if there is nothing.
func (s *Server) question(node string) string {
	n := s.cfg.Cache.Snapshot().Node(node)
	if n == nil || n.Annotations[api.AnnotationEndpointsAsked] == n.Annotations[api.AnnotationEndpointsTold] {
		return ""
	}
	return n.Annotations[api.AnnotationEndpointsAsked]
}

// answer notes that a node's endpoints have been reported since a question was put, and are stored. A question that has
// been put anew meanwhile stays open.
func (r *reports) answer(ctx context.Context, node, question string) error {
	for {
		o, err := r.store.Get(ctx, api.Key{Kind: "Node", Name: node})
		if errors.Is(err, datastore.ErrNotFound) {
			return nil // nobody wants to know any more
		}
		if err != nil {
			return err
		}
		n := o.(*api.Node)
		if n.Annotations[api.AnnotationEndpointsAsked] != question || n.Annotations[api.AnnotationEndpointsTold] == question {
			return nil
		}
		n.Annotations[api.AnnotationEndpointsTold] = question
		if _, err = r.store.Update(ctx, n); !errors.Is(err, datastore.ErrConflict) {
			return err
		}
	}
}
