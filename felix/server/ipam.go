package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Assign gives addresses to an attachment that another plugin wires.
func (s *Server) Assign(ctx context.Context, req *felixv1.AssignRequest) (*felixv1.AssignResponse, error) {
	e, err := identify(req.GetAttachment(), req.GetArgs())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	wanted, err := wants(e, req.GetConfig())
	if err != nil {
		return nil, err
	}
	if err := s.Releases.Cancel(ctx, e.Handle()); err != nil {
		return nil, statusOf(err)
	}
	addrs, sure, err := s.assignAll(ctx, wanted)
	if err == nil {
		err = sure()
	}
	if err != nil {
		// What one family got, or an answer that got lost, is not kept.
		return nil, statusOf(errors.Join(err, s.Releases.Add(e.Handle())))
	}
	return &felixv1.AssignResponse{Addresses: bytesOf(addrs)}, nil
}

// Unassign frees the addresses of an attachment, now or when typha can be told.
func (s *Server) Unassign(_ context.Context, req *felixv1.UnassignRequest) (*felixv1.UnassignResponse, error) {
	e, err := identify(req.GetAttachment(), nil)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.release(e)
	return &felixv1.UnassignResponse{}, nil
}
