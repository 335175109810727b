package cni_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/felix/client/cni"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// felix remembers what it was asked, as the real libraries read it, and answers with what it is told.
type felix struct {
	felixv1.UnimplementedCniServiceServer
	felixv1.UnimplementedIpamServiceServer

	asked  proto.Message
	answer proto.Message
	err    error
}

func answer[M any](f *felix, asked proto.Message) (*M, error) {
	f.asked = asked
	out, _ := any(f.answer).(*M)
	if out == nil {
		out = new(M)
	}
	return out, f.err
}

func (f *felix) Add(_ context.Context, m *felixv1.AddRequest) (*felixv1.AddResponse, error) {
	return answer[felixv1.AddResponse](f, m)
}

func (f *felix) Delete(_ context.Context, m *felixv1.DeleteRequest) (*felixv1.DeleteResponse, error) {
	return answer[felixv1.DeleteResponse](f, m)
}

func (f *felix) Check(_ context.Context, m *felixv1.CheckRequest) (*felixv1.CheckResponse, error) {
	return answer[felixv1.CheckResponse](f, m)
}

func (f *felix) Status(_ context.Context, m *felixv1.StatusRequest) (*felixv1.StatusResponse, error) {
	return answer[felixv1.StatusResponse](f, m)
}

func (f *felix) Gc(_ context.Context, m *felixv1.GcRequest) (*felixv1.GcResponse, error) {
	return answer[felixv1.GcResponse](f, m)
}

func (f *felix) Node(_ context.Context, m *felixv1.NodeRequest) (*felixv1.NodeResponse, error) {
	return answer[felixv1.NodeResponse](f, m)
}

func (f *felix) Assign(_ context.Context, m *felixv1.AssignRequest) (*felixv1.AssignResponse, error) {
	return answer[felixv1.AssignResponse](f, m)
}

func (f *felix) Unassign(_ context.Context, m *felixv1.UnassignRequest) (*felixv1.UnassignResponse, error) {
	return answer[felixv1.UnassignResponse](f, m)
}

func serve(t *testing.T) (*felix, cni.Felix) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cni.sock")
	l, err := rpc.ListenUnix(socket)
	require.NoError(t, err)
	f := &felix{}
	g, err := rpc.NewBrief()
	require.NoError(t, err)
	felixv1.RegisterCniServiceServer(g, f)
	felixv1.RegisterIpamServiceServer(g, f)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); require.NoError(t, <-done) })
	return f, cni.Felix{Socket: socket}
}

var (
	at       = cni.Attachment{Network: "net", ContainerID: "c1", Interface: "eth0"}
	atProto  = &felixv1.Attachment{Network: "net", ContainerId: "c1", Interface: "eth0"}
	args     = map[string]string{"K8S_POD_NAME": "web-0", "EMPTY": ""}
	four     = netip.MustParseAddr("10.1.2.3")
	six      = netip.MustParseAddr("fd00::7")
	addrs    = [][]byte{four.AsSlice(), six.AsSlice()}
	fullConf = cni.Config{
		MTU: 1400, IPv4: true, IPv6: true, IPv4Pools: []string{"a", "b"}, IPv6Pools: []string{"c"}, Fixed: []netip.Addr{four},
		Addresses: []netip.Addr{four, six}, KubernetesPolicy: true, AllowForwarding: true, Queues: 2, Labels: map[string]string{"app": "web"},
		PolicyWait: 2500 * time.Millisecond, RequirePolicy: true, IPAddrsNoIPAM: true, FloatingIPs: true, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		MAC: "02:00:00:00:00:01", AllowedSources: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
		Floating: []netip.Addr{six},
		Limits: annotation.Limits{
			Ingress: annotation.Limit{Bandwidth: 1, Burst: 2, Peakrate: 3, Minburst: 4, PacketRate: 5, PacketBurst: 6, MaxConnections: 7},
			Egress:  annotation.Limit{Bandwidth: 1 << 40},
		},
	}
	fullProto = &felixv1.NetworkConfig{
		Mtu: 1400, AssignIpv4: true, AssignIpv6: true, Ipv4Pools: []string{"a", "b"}, Ipv6Pools: []string{"c"}, Fixed: addrs[:1],
		Addresses: addrs, KubernetesPolicy: true, AllowIpForwarding: true, NumQueues: 2, Labels: map[string]string{"app": "web"},
		PolicyWait: durationpb.New(2500 * time.Millisecond), RequirePolicy: true, IpAddrsNoIpam: true, FloatingIps: true, Routes: []string{"10.0.0.0/8"},
		Mac: "02:00:00:00:00:01", AllowedSourcePrefixes: []string{"10.9.0.0/16"}, Floating: addrs[1:],
		Ingress: &felixv1.Limit{Bandwidth: 1, Burst: 2, Peakrate: 3, Minburst: 4, PacketRate: 5, PacketBurst: 6, MaxConnections: 7},
		Egress:  &felixv1.Limit{Bandwidth: 1 << 40},
	}
)

// Every field of a request arrives as the real libraries read it.
func TestWhatIsAskedArrives(t *testing.T) {
	f, client := serve(t)
	ctx := t.Context()
	for _, c := range []struct {
		want proto.Message
		call func() error
	}{
		{&felixv1.AddRequest{Attachment: atProto, Netns: "/run/netns/x", Args: args, Config: fullProto}, func() error {
			_, err := client.Add(ctx, at, "/run/netns/x", args, fullConf)
			return err
		}},
		{&felixv1.DeleteRequest{Attachment: atProto, Netns: "/run/netns/x", Args: args}, func() error { return client.Delete(ctx, at, "/run/netns/x", args) }},
		{&felixv1.CheckRequest{Attachment: atProto, Netns: "/run/netns/x", Addresses: addrs, Mac: "m"}, func() error {
			return client.Check(ctx, at, "/run/netns/x", "m", []netip.Addr{four, six})
		}},
		{&felixv1.GcRequest{Network: "net", Valid: []*felixv1.Attachment{atProto}}, func() error { return client.GC(ctx, "net", []cni.Attachment{at}) }},
		{&felixv1.AssignRequest{Attachment: atProto, Args: args, Config: fullProto}, func() error {
			_, err := client.Assign(ctx, at, args, fullConf)
			return err
		}},
		{&felixv1.UnassignRequest{Attachment: atProto}, func() error { return client.Unassign(ctx, at) }},
	} {
		require.NoError(t, c.call())
		require.True(t, proto.Equal(c.want, f.asked), "want %v\n got %v", c.want, f.asked)
		require.Empty(t, f.asked.ProtoReflect().GetUnknown())
	}
}

// A field that is new in felix.v1 must be written here too.
func TestEveryFieldOfTheConfigurationIsWritten(t *testing.T) {
	fields := fullProto.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		require.True(t, fullProto.ProtoReflect().Has(fields.Get(i)), fields.Get(i).Name())
	}
}

func TestAnswersAreRead(t *testing.T) {
	f, client := serve(t)
	f.answer = &felixv1.AddResponse{HostInterface: "cali1", Mac: "m", Mtu: 1400, Addresses: addrs, Closed: true}
	added, err := client.Add(t.Context(), at, "", nil, cni.Config{})
	require.NoError(t, err)
	require.Equal(t, cni.Added{HostInterface: "cali1", MAC: "m", MTU: 1400, Addresses: []netip.Addr{four, six}, Closed: true}, added)

	f.answer = &felixv1.AssignResponse{Addresses: addrs}
	given, err := client.Assign(t.Context(), at, nil, cni.Config{})
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{four, six}, given)
	f.answer = &felixv1.AssignResponse{Addresses: [][]byte{{1, 2, 3}}}
	_, err = client.Assign(t.Context(), at, nil, cni.Config{})
	require.EqualError(t, err, "felix sent an address of 3 bytes")

	f.answer = &felixv1.NodeResponse{PodCidrs: []string{"10.244.1.0/24"}}
	cidrs, err := client.PodCIDRs(t.Context())
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, cidrs)

	f.answer = &felixv1.StatusResponse{Ready: true, Software: "new"}
	require.NoError(t, client.Status(t.Context()))
	f.answer = &felixv1.StatusResponse{Reasons: []string{"no view", "no host"}}
	require.EqualError(t, client.Status(t.Context()), "try again later: felix is not ready: no view; no host")
}

func TestStatusesBecomeWhatACallerCanDo(t *testing.T) {
	f, client := serve(t)
	for code, want := range map[codes.Code]error{
		codes.Unavailable: cni.ErrTryAgain, codes.Aborted: cni.ErrTryAgain, codes.DeadlineExceeded: cni.ErrTryAgain, codes.InvalidArgument: cni.ErrInvalid, codes.FailedPrecondition: cni.ErrMismatch,
		codes.NotFound: cni.ErrNoNetns,
	} {
		f.err = status.Error(code, "because")
		require.ErrorIs(t, client.Unassign(t.Context(), at), want)
	}
	f.err = status.Error(codes.Internal, "route: no such device")
	require.EqualError(t, client.Unassign(t.Context(), at), "route: no such device")
	require.ErrorContains(t, cni.Felix{Socket: "/nonexistent/felix.sock"}.Status(t.Context()), "is felix running on this node?")
}
