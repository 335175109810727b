package server_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/felix/server"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// calls are the methods with a good request each.
var calls = []struct {
	message proto.Message
	call    func(context.Context, *server.Server, proto.Message) error
}{
	{pod("web", "c1"), func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Add(ctx, m.(*felixv1.AddRequest))
		return err
	}},
	{del(pod("web", "c1")), func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Delete(ctx, m.(*felixv1.DeleteRequest))
		return err
	}},
	{&felixv1.CheckRequest{Attachment: pod("web", "c1").GetAttachment(), Addresses: [][]byte{{10, 0, 0, 1}}}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Check(ctx, m.(*felixv1.CheckRequest))
		return err
	}},
	{&felixv1.GcRequest{Network: "net", Valid: []*felixv1.Attachment{pod("web", "c1").GetAttachment()}}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Gc(ctx, m.(*felixv1.GcRequest))
		return err
	}},
	{&felixv1.AssignRequest{Attachment: pod("web", "c1").GetAttachment(), Config: &felixv1.NetworkConfig{Fixed: [][]byte{{10, 0, 0, 9}}}}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Assign(ctx, m.(*felixv1.AssignRequest))
		return err
	}},
	{&felixv1.UnassignRequest{Attachment: pod("web", "c1").GetAttachment()}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Unassign(ctx, m.(*felixv1.UnassignRequest))
		return err
	}},
	{&felixv1.EndpointsRequest{Endpoint: "cali1"}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Endpoints(ctx, m.(*felixv1.EndpointsRequest))
		return err
	}},
	{&felixv1.ExplainRequest{Section: "route", Key: "10.0.0.0/8"}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Explain(ctx, m.(*felixv1.ExplainRequest))
		return err
	}},
	{&felixv1.DumpRequest{Sections: []string{"route"}, DifferencesOnly: true}, func(ctx context.Context, s *server.Server, m proto.Message) error {
		_, err := s.Dump(ctx, m.(*felixv1.DumpRequest))
		return err
	}},
}

// FuzzRequests takes bytes for the request of each method. None may panic, or leave something on the node if it is refused, or name
// a file outside of the directory of records.
func FuzzRequests(f *testing.F) {
	for i, c := range calls {
		b, err := proto.Marshal(c.message)
		require.NoError(f, err)
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		c := calls[int(which)%len(calls)]
		m := c.message.ProtoReflect().New().Interface()
		if proto.Unmarshal(body, m) != nil {
			return
		}
		w := newWorld()
		s := w.server()
		err := c.call(t.Context(), s, m)
		if err != nil {
			require.Empty(t, w.leftovers(), "%v", err)
		}
		if status.Code(err) == codes.InvalidArgument {
			require.Empty(t, w.releases, "%v", err)
		}
		for name := range w.records {
			require.Regexp(t, `^cali[a-zA-Z0-9_.-]*$`, name)
		}
		for handle := range w.releases {
			require.False(t, strings.ContainsAny(handle, "/ \n"), "%q", handle)
		}
	})
}
