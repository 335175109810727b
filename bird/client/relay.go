package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// View is a point from which routes are seen.
type View uint8

// The views, in the order of the wire: the table with all paths, what a peer sent, what of it was accepted and what rejected,
// what a peer is advertised, and what is kept from it.
const (
	Table View = iota
	Received
	Accepted
	Rejected
	Advertised
	Withheld
)

// Route is a route as Show lists it.
type Route struct {
	Prefix     netip.Prefix
	Path       Path
	Best       bool
	RejectedBy string // empty if it was not
}

// PeersQuestion asks RelayPeers for the sessions; peer, a name or an address, picks one.
func PeersQuestion(peer string) []byte { return question(&birdv1.PeersRequest{Peer: peer}) }

// ShowQuestion asks RelayShow for routes. peer is needed by all views but Table; within is not valid for all routes.
func ShowQuestion(view View, peer string, within netip.Prefix) []byte {
	return question(showRequest(view, peer, within))
}

// DrainQuestion asks RelayDrain for a drain to begin, or to be taken back.
func DrainQuestion(wait time.Duration, cancel bool) []byte {
	return question(&birdv1.DrainRequest{Wait: durationpb.New(wait), Cancel: cancel, Detach: true})
}

func question(m proto.Message) []byte {
	body, err := proto.Marshal(m)
	if err != nil { // only for text that is no UTF-8
		return nil
	}
	return body
}

func showRequest(view View, peer string, within netip.Prefix) *birdv1.ShowRequest {
	r := &birdv1.ShowRequest{View: birdv1.RouteView(view), Peer: peer}
	if within.IsValid() {
		r.Within = &birdv1.Prefix{Address: within.Addr().AsSlice(), Length: uint32(within.Bits())}
	}
	return r
}

// Show lists routes, in no order.
func (c *Client) Show(ctx context.Context, view View, peer string, within netip.Prefix, yield func(Route)) error {
	err := c.show(ctx, showRequest(view, peer, within), func(m *birdv1.ShowResponse) error {
		yield(routeOf(m))
		return nil
	})
	if err != nil {
		return fmt.Errorf("bird: listing routes: %w", err)
	}
	return nil
}

func (c *Client) show(ctx context.Context, q *birdv1.ShowRequest, take func(*birdv1.ShowResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.bird.Show(ctx, q)
	if err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = take(m)
		}
		if err != nil {
			return err
		}
	}
}

// partSize is the size of a part of a relayed answer, in bytes: typha keeps a few dozen of them for a slow asker.
const partSize = 256 << 10

// RelayPeers passes on a question that came in serialised: PeersRequest in, PeersResponse out.
func (c *Client) RelayPeers(ctx context.Context, request []byte) ([]byte, error) {
	q := &birdv1.PeersRequest{}
	if err := proto.Unmarshal(request, q); err != nil {
		return nil, fmt.Errorf("question to bird: %w", err)
	}
	r, err := c.bird.Peers(ctx, q)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(r)
}

// RelayShow passes on a question that came in serialised: ShowRequest in, and ShowParts to reply.
func (c *Client) RelayShow(ctx context.Context, request []byte, reply func([]byte) error) error {
	q := &birdv1.ShowRequest{}
	if err := proto.Unmarshal(request, q); err != nil {
		return fmt.Errorf("question to bird: %w", err)
	}
	part, size := &birdv1.ShowPart{}, 0
	flush := func() error {
		body, err := proto.Marshal(part)
		part, size = &birdv1.ShowPart{}, 0
		if err != nil {
			return err
		}
		return reply(body)
	}
	err := c.show(ctx, q, func(m *birdv1.ShowResponse) error {
		part.Routes = append(part.Routes, m)
		if size += proto.Size(m); size >= partSize {
			return flush()
		}
		return nil
	})
	if err == nil && len(part.GetRoutes()) > 0 {
		err = flush()
	}
	return err
}

// RelayDrain passes on a question that came in serialised: DrainRequest in, DrainResponse out. It does not wait for the end.
func (c *Client) RelayDrain(ctx context.Context, request []byte) ([]byte, error) {
	q := &birdv1.DrainRequest{}
	if err := proto.Unmarshal(request, q); err != nil {
		return nil, fmt.Errorf("question to bird: %w", err)
	}
	if !q.GetDetach() && !q.GetCancel() {
		return nil, status.Error(codes.InvalidArgument, "detach: is missing; a relayed drain is not waited for")
	}
	r, err := c.bird.Drain(ctx, q)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(r)
}

// ReadRoutes reads a part of an answer to RelayShow.
func ReadRoutes(body []byte, yield func(Route)) error {
	part := &birdv1.ShowPart{}
	if err := proto.Unmarshal(body, part); err != nil {
		return fmt.Errorf("answer of bird: %w", err)
	}
	for _, m := range part.GetRoutes() {
		yield(routeOf(m))
	}
	return nil
}

func routeOf(m *birdv1.ShowResponse) Route {
	out := Route{
		Prefix: netip.PrefixFrom(address(m.GetPrefix().GetAddress()), int(m.GetPrefix().GetLength())),
		Best:   m.GetBest(), RejectedBy: m.GetRejectedBy(),
	}
	if m.GetPath() != nil {
		out.Path = pathsOf([]*birdv1.Path{m.GetPath()})[0]
	}
	return out
}
