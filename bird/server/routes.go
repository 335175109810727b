package server

import (
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/bird/speaker"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// atOnce is how many best paths are taken from the table at a time; between, the present value of each is looked up again.
const atOnce = 4096

type routesStream = grpc.BidiStreamingServer[birdv1.RoutesRequest, birdv1.RoutesResponse]

// Routes connects felix. A new stream takes over from the one before.
func (s *Server) Routes(stream routesStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return status.Error(codes.InvalidArgument, "the first request is hello")
	}
	feed := s.speaker.Feed()
	s.log.Info("felix connected", "sequence", hello.GetSequence())
	defer s.log.Info("felix disconnected")

	received := make(chan error, 1)
	go func() { received <- s.receiveAll(feed, stream) }() // ends with the stream, which ends with this call
	var after uint64
	if hello.GetInstance() == s.instance {
		after = hello.GetSequence()
	}
	for {
		err := s.sendBest(s.speaker.ReadBest(after), stream, received, feed)
		if !errors.Is(err, speaker.ErrBehind) {
			return err
		}
		s.log.Info("felix has not kept up with removals; it is told everything again")
		after = 0
	}
}

func (s *Server) receiveAll(feed *speaker.Feed, stream routesStream) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.Canceled, "felix closed the stream")
		}
		if err != nil {
			return err
		}
		if err := s.receive(feed, r); err != nil {
			return err
		}
	}
}

// receive takes one message of felix's.
func (s *Server) receive(feed *speaker.Feed, r *birdv1.RoutesRequest) error {
	rd := &reader{}
	switch m := r.GetRequest().(type) {
	case *birdv1.RoutesRequest_Local:
		prefix := rd.prefix("local.prefix", m.Local.GetPrefix())
		switch {
		case rd.err != nil:
		case m.Local.GetWithdrawn():
			feed.Withdraw(prefix)
		default:
			feed.Announce(speaker.LocalRoute{Prefix: prefix, Metric: m.Local.GetMetric(), Interface: m.Local.GetInterface()})
		}
		s.saved.Touch()
	case *birdv1.RoutesRequest_SnapshotEnd:
		feed.SnapshotEnd()
		s.saved.Touch()
	case *birdv1.RoutesRequest_NextHop:
		if a := rd.address("next_hop.address", m.NextHop.GetAddress(), true); rd.err == nil {
			feed.NextHop(a, m.NextHop.GetReachable())
		}
	}
	if rd.err != nil {
		return status.Error(codes.InvalidArgument, rd.err.Error())
	}
	return nil
}

// sendBest sends what there is to read, the end of the snapshot when all is sent and the peers have been heard, and then each
// change. It holds nothing for the stream but the place of the reader.
func (s *Server) sendBest(best *speaker.BestReader, stream routesStream, received <-chan error, feed *speaker.Feed) error {
	err := stream.Send(&birdv1.RoutesResponse{Sequence: best.Version(), Response: &birdv1.RoutesResponse_Welcome{
		Welcome: &birdv1.RoutesWelcome{Instance: s.instance, Resumed: best.Resumed()},
	}})
	if err != nil {
		return err
	}
	settled := s.speaker.Settled()
	for {
		names := s.speaker.Names()
		list, changed, err := best.Next(atOnce)
		if err != nil {
			return err
		}
		if len(list) > 0 {
			m := &birdv1.RoutesResponse{Sequence: best.Version(), Response: &birdv1.RoutesResponse_Best{Best: toBatch(list, names)}}
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if changed == nil {
			continue
		}
		select {
		case err := <-received:
			return err
		case <-feed.Replaced():
			return status.Error(codes.Aborted, "another felix has connected")
		case <-changed:
		case <-settled:
			settled = nil // once
			m := &birdv1.RoutesResponse{Sequence: best.Version(), Response: &birdv1.RoutesResponse_SnapshotEnd{SnapshotEnd: true}}
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
}
