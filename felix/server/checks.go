package server

import (
	"context"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Checks tries things out on the node; see CheckService in the protocol.
type Checks interface {
	// Paths sends packets of full size to other nodes, all if none is named, and tells each outcome as it comes. An error of
	// tell ends it.
	Paths(ctx context.Context, nodes []string, tell func(PathCheck) error) error
	// System tells what the kernel can do, what is required first, and its release.
	System(ctx context.Context) (features []Feature, kernel string, err error)
}

// PathCheck is the outcome for one address of another node. Sizes are those of IP packets, in bytes.
type PathCheck struct {
	Node         string
	Address      netip.Addr
	By           string // "direct", "ipip" or "vxlan"
	Wanted, Fits int
	RoundTrip    time.Duration
	Error        string // why nothing arrives
}

// Feature is one thing that a kernel may or may not be able to do.
type Feature struct {
	Name     string
	Present  bool
	NeededBy string // empty: nothing on this node needs it
	Detail   string // by which means it works, or what is missing and what to do
}

// CheckPaths tries the paths to other nodes.
func (s *Server) CheckPaths(req *felixv1.CheckPathsRequest, stream grpc.ServerStreamingServer[felixv1.CheckPathsResponse]) error {
	return statusOf(s.Checks.Paths(stream.Context(), req.GetNodes(), func(c PathCheck) error {
		return stream.Send(&felixv1.CheckPathsResponse{
			Node: c.Node, Address: c.Address.AsSlice(), By: c.By, Wanted: uint32(c.Wanted), Fits: uint32(c.Fits),
			RoundTrip: durationpb.New(c.RoundTrip), Error: c.Error,
		})
	}))
}

// CheckSystem tells what the kernel can do.
func (s *Server) CheckSystem(ctx context.Context, _ *felixv1.CheckSystemRequest) (*felixv1.CheckSystemResponse, error) {
	features, kernel, err := s.Checks.System(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &felixv1.CheckSystemResponse{Kernel: kernel}
	for _, f := range features {
		resp.Features = append(resp.Features, &felixv1.Feature{Name: f.Name, Present: f.Present, NeededBy: f.NeededBy, Detail: f.Detail})
	}
	return resp, nil
}
