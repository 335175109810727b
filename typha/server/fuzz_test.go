package server_test

import (
	"context"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc/rpctest"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// requests are one good request for each method, the seeds of the fuzzer.
var requests = []struct {
	method  string
	message proto.Message
}{
	{report1, &typhav1.ReportRequest{Instance: "x", Sequence: 1, Endpoints: []*typhav1.LocalEndpoint{endpoint(func(e *typhav1.LocalEndpoint) {
		e.Addresses, e.Mac, e.Labels = [][]byte{{192, 168, 0, 1}}, []byte{2, 0, 0, 0, 0, 1}, map[string]string{"a": "b"}
		e.Ports = []*typhav1.EndpointPort{{Name: "http", Protocol: 6, Port: 80, HostIp: []byte{10, 0, 0, 1}}}
		e.Floating = [][]byte{{203, 0, 113, 7}}
		e.AllowedSources, e.Qos = []*typhav1.Prefix{{Address: []byte{10, 0, 0, 0}, Length: 8}}, &typhav1.Qos{IngressBandwidth: 1000}
	})}}},
	{reserve1, &typhav1.ReserveRequest{Count4: 1, Count6: 1, Pools4: []string{"default"}, Owner: owner("net.f"), Namespace: "default"}},
	{reserve1, &typhav1.ReserveRequest{Address: []byte{192, 168, 9, 9}, Owner: owner("net.f")}},
	{settle, &typhav1.SettleRequest{Epoch: 7, Settlements: []*typhav1.Settlement{{Address: []byte{192, 168, 0, 1}, Owner: owner("net.f"), Sequence: 1}}}},
	{release, &typhav1.ReleaseRequest{Handle: "net.honest", Addresses: []*typhav1.Reservation{{Address: []byte{192, 168, 0, 1}, Sequence: 1}}}},
	{return1, &typhav1.ReturnRequest{Epoch: 7, Addresses: [][]byte{{192, 168, 0, 1}}, Sequences: []uint64{1}}},
	{review, &typhav1.ReviewRequest{Epoch: 7}},
	{enter1, &typhav1.EnterRequest{Present: 7, Before: 6, Claims: []*typhav1.Settlement{{Address: []byte{192, 168, 0, 1}, Owner: owner("net.f")}}}},
	{register1, &typhav1.RegisterRequest{
		Ipv4: &typhav1.Prefix{Address: []byte{10, 0, 0, 9}, Length: 24}, WireguardKey: make([]byte, 32), AsNumber: 64512,
		Interfaces: []*typhav1.Interface{{Name: "eth0", Addresses: [][]byte{{10, 0, 0, 9}}}}, OrchRefs: []*typhav1.OrchRef{{Orchestrator: "k8s", NodeName: "f"}},
		PoolProposals: []*typhav1.Resource{{Kind: "IPPool", Json: []byte(`{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"p"},"spec":{"cidr":"10.9.0.0/16"}}`)}},
	}},
	{reportStatus, &typhav1.ReportStatusRequest{Conditions: []*typhav1.Condition{{Type: "Fine", Status: true, Reason: "Because"}}, Capabilities: map[string]string{"vxlan": "1"}}},
	{typhav1.NodesService_Replicas_FullMethodName, &typhav1.ReplicasRequest{}},
	{typhav1.NodesService_Leave_FullMethodName, &typhav1.LeaveRequest{}},
	{enroll, &typhav1.EnrollRequest{Node: "f", CertificateRequest: []byte{0x30, 0x03, 2, 1, 0}}},
	{typhav1.SyncService_Sync_FullMethodName, hello("f", func(h *typhav1.Hello) {
		h.Have = []*typhav1.Have{{Key: &typhav1.ItemKey{Kind: 5, Id: "np/a"}, Version: make([]byte, 16)}}
		h.Checkpoint = &typhav1.Checkpoint{Revisions: map[string]uint64{"nowhere": 1}}
	})},
	{typhav1.SyncService_Sync_FullMethodName, hello("f", func(h *typhav1.Hello) { h.Digests = make([]byte, 4096) })},
	{typhav1.SyncService_Sync_FullMethodName, named(&typhav1.Have{Key: &typhav1.ItemKey{Kind: 5, Id: "np/a"}, Version: make([]byte, 16)})},
	{typhav1.SyncService_Sync_FullMethodName, ack(1, 1)},
	{typhav1.SyncService_Sync_FullMethodName, &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Resend{Resend: &typhav1.Resend{Keys: []*typhav1.ItemKey{{Kind: 5, Id: "np/a"}}}}}},
	{typhav1.SyncService_Sync_FullMethodName, &typhav1.SyncRequest{Request: &typhav1.SyncRequest_QueryResult{QueryResult: &typhav1.QueryResult{Id: 1, Code: 99, More: true}}}},
	{query, &typhav1.QueryRequest{Node: "b", Method: 1, Request: []byte{1}}},
	{typhav1.QueryService_ExplainItem_FullMethodName, &typhav1.ExplainItemRequest{Node: "b", Item: "policy/np/a"}},
	{typhav1.QueryService_ExplainPolicy_FullMethodName, &typhav1.ExplainPolicyRequest{From: "default/honest", To: "8.8.8.8", Protocol: 6, Port: 80}},
	{typhav1.QueryService_Status_FullMethodName, &typhav1.StatusRequest{}},
}

// FuzzRequests feeds bytes, as the request of each method, through a whole typha: over TLS and gRPC into the real handlers over the
// real datastore. None may panic, which would end the process; none may change what is another node's; and a request that is
// refused changes nothing at all.
func FuzzRequests(f *testing.F) {
	for i, r := range requests {
		b, err := proto.Marshal(r.message)
		require.NoError(f, err)
		f.Add(uint8(i), b)
		f.Add(uint8(i), b[:len(b)/2])
	}
	w := newWorld(f)
	r := w.typha(func(c *server.Config) {
		c.Log, c.CheckpointWait, c.HelloWait = quiet, 5*time.Millisecond, 50*time.Millisecond
	})
	w.create(pool("default", "192.168.0.0/16"))
	w.create(pool("six", "fd00:77::/64"))
	b := w.node("b", r.address)
	register(f, b, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.2/24")})
	eventually(f, "typha knows the pools", func() bool { return r.state.Snapshot().Len("IPPool") == 2 })
	register(f, w.node("f", r.address), client.Registration{})
	reserve(f, b, "honest")
	node, operator := w.dial(pki.Node("f"), r.address), w.dial(pki.Operator("f"), r.address)
	objects := func(t testing.TB) (all, honest map[string]string) {
		all, honest = map[string]string{}, map[string]string{}
		for _, kind := range []string{"IPAMHandle", "IPPool", "Node"} {
			l, err := w.store.List(t.Context(), kind, datastore.ListOptions{})
			require.NoError(t, err)
			for _, o := range l.Items {
				version := o.GetResourceVersion()
				if o.GetName() == "f" {
					continue // presence and tunnels write it too
				}
				all[kind+" "+o.GetName()] = version
				if o.GetName() == "b" || o.GetName() == "net.honest" || kind == "IPPool" {
					honest[kind+" "+o.GetName()] = version
				}
			}
		}
		return all, honest
	}
	settled := func(t testing.TB) (all, honest map[string]string) {
		all, honest = objects(t)
		eventually(t, "statuses are written", func() bool {
			before := all
			all, honest = objects(t)
			return maps.Equal(before, all)
		})
		return all, honest
	}
	_, untouched := settled(f)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		r := requests[int(which)%len(requests)]
		conn := node
		if r.method == query || r.message.ProtoReflect().Descriptor().Name() == "StatusRequest" || isExplain(r.message) {
			conn = operator
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		before, _ := objects(t)
		err := carry(ctx, conn, r.method, body)
		after, honest := objects(t)
		for k, v := range untouched {
			if now := honest[k]; now == "" || k == "IPAMHandle net.honest" && now != v {
				t.Fatalf("%s of the honest node became %q", k, now)
			}
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Internal, codes.Unimplemented:
			for k := range after {
				if _, was := before[k]; !was {
					t.Fatalf("%s was refused (%v), and made %s", r.method, err, k)
				}
			}
		case codes.Unavailable, codes.Unknown:
			t.Fatalf("%s: %v", r.method, err)
		}
	})
}

func isExplain(m proto.Message) bool {
	return m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name("from")) != nil || m.ProtoReflect().Descriptor().Fields().ByName("item") != nil
}

// carry sends bytes as a request, on a stream if the method is of one: after a good hello too, so that what is no hello is heard.
func carry(ctx context.Context, conn *grpc.ClientConn, method string, body []byte) error {
	switch method {
	case typhav1.SyncService_Sync_FullMethodName:
		greeting, err := proto.Marshal(hello("f"))
		if err != nil {
			return err
		}
		if err := rpctest.Stream(ctx, conn, method, body); status.Code(err) == codes.Internal {
			return err // it does not parse
		}
		return rpctest.Stream(ctx, conn, method, greeting, body)
	case query:
		return rpctest.Stream(ctx, conn, method, body)
	}
	return rpctest.Call(ctx, conn, method, body)
}
