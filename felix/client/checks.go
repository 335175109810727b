package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// PathCheck is how large packets to one address of another node may be. Sizes are those of IP packets, in bytes.
type PathCheck struct {
	Node      string
	Address   netip.Addr
	By        string // how pods' packets get there: "direct", "ipip" or "vxlan"
	Wanted    int    // the largest packets that this node sends there
	Fits      int    // the largest that arrives; 0 if none does
	RoundTrip time.Duration
	Error     string // why none arrives
}

// CheckPaths has felix send packets of full size to other nodes, all if none is named. The outcomes are in no order.
func (c *Client) CheckPaths(ctx context.Context, nodes []string) ([]PathCheck, error) {
	stream, err := c.checks.CheckPaths(ctx, &felixv1.CheckPathsRequest{Nodes: nodes})
	if err != nil {
		return nil, c.explain(err)
	}
	var out []PathCheck
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, c.explain(err)
		}
		a, ok := netip.AddrFromSlice(r.GetAddress())
		if !ok {
			return out, fmt.Errorf("felix sent an address of %d bytes", len(r.GetAddress()))
		}
		out = append(out, PathCheck{
			Node: r.GetNode(), Address: a, By: r.GetBy(), Wanted: int(r.GetWanted()), Fits: int(r.GetFits()),
			RoundTrip: r.GetRoundTrip().AsDuration(), Error: r.GetError(),
		})
	}
}

// Feature is one thing that the node's kernel may or may not be able to do.
type Feature struct {
	Name     string
	Present  bool
	NeededBy string // empty: nothing on this node needs it
	Detail   string // by which means it works, or what is missing and what to do
}

// CheckSystem tells what the node's kernel can do, found out by doing, and its release.
func (c *Client) CheckSystem(ctx context.Context) (features []Feature, kernel string, err error) {
	resp, err := c.checks.CheckSystem(ctx, &felixv1.CheckSystemRequest{})
	if err != nil {
		return nil, "", c.explain(err)
	}
	for _, f := range resp.GetFeatures() {
		features = append(features, Feature{f.GetName(), f.GetPresent(), f.GetNeededBy(), f.GetDetail()})
	}
	return features, resp.GetKernel(), nil
}
