package server_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/internal/rpc/rpctest"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// socketOf connects to a bird when it serves.
func socketOf(t testing.TB, b *bird) *grpc.ClientConn {
	conn, err := rpc.DialUnix(b.socket())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.Eventually(t, func() bool {
		_, err := birdv1.NewBirdServiceClient(conn).Peers(t.Context(), &birdv1.PeersRequest{})
		return err == nil
	}, 20*time.Second, 5*time.Millisecond, "bird serves")
	return conn
}

func marshalled(t testing.TB, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return b
}

func local(address []byte, length uint32) *birdv1.RoutesRequest {
	return &birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_Local{Local: &birdv1.LocalRoute{Prefix: &birdv1.Prefix{Address: address, Length: length}}}}
}

// The socket is root's; what is too large, or makes no sense, is refused there, and changes nothing.
func TestTheSocketRefusesGarbage(t *testing.T) {
	b := start(t, t.TempDir(), "garbage")
	conn := socketOf(t, b)
	info, err := os.Stat(b.socket())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	hello := marshalled(t, &birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_Hello{Hello: &birdv1.RoutesHello{}}})
	good := local([]byte{192, 168, 1, 0}, 26)
	for name, c := range map[string]struct {
		method   string
		streams  bool
		messages [][]byte
		code     codes.Code
	}{
		"garbage":                          {birdv1.BirdService_Apply_FullMethodName, false, [][]byte{[]byte("\xff\xff garbage")}, codes.Internal},
		"five megabytes":                   {birdv1.BirdService_Apply_FullMethodName, false, [][]byte{make([]byte, 5<<20)}, codes.ResourceExhausted},
		"no configuration":                 {birdv1.BirdService_Apply_FullMethodName, false, [][]byte{nil}, codes.InvalidArgument},
		"a method that is not there":       {"/muslin.bird.v1.BirdService/Reboot", false, [][]byte{nil}, codes.Unimplemented},
		"a wait below zero":                {birdv1.BirdService_Drain_FullMethodName, false, [][]byte{marshalled(t, &birdv1.DrainRequest{Wait: durationpb.New(-1)})}, codes.InvalidArgument},
		"a view of no kind":                {birdv1.BirdService_Show_FullMethodName, true, [][]byte{marshalled(t, &birdv1.ShowRequest{View: 99})}, codes.InvalidArgument},
		"routes without hello":             {birdv1.BirdService_Routes_FullMethodName, true, [][]byte{marshalled(t, good)}, codes.InvalidArgument},
		"a route of 33 bits":               {birdv1.BirdService_Routes_FullMethodName, true, [][]byte{hello, marshalled(t, local([]byte{10, 0, 0, 0}, 33))}, codes.InvalidArgument},
		"a route of three bytes":           {birdv1.BirdService_Routes_FullMethodName, true, [][]byte{hello, marshalled(t, local([]byte{10, 0, 0}, 8))}, codes.InvalidArgument},
		"garbage in the place of a route":  {birdv1.BirdService_Routes_FullMethodName, true, [][]byte{hello, []byte("\x0a\xff\xff")}, codes.Internal},
		"five megabytes for one route":     {birdv1.BirdService_Routes_FullMethodName, true, [][]byte{hello, make([]byte, 5<<20)}, codes.ResourceExhausted},
		"garbage in the place of a hello":  {birdv1.BirdService_Routes_FullMethodName, true, [][]byte{[]byte("\x0a\xff\xff")}, codes.Internal},
		"garbage in the place of a filter": {birdv1.BirdService_Peers_FullMethodName, false, [][]byte{{0x0a, 2, 0xff, 0xfe}}, codes.Internal},
	} {
		var err error
		if c.streams {
			err = rpctest.Stream(t.Context(), conn, c.method, c.messages...)
		} else {
			err = rpctest.Call(t.Context(), conn, c.method, c.messages[0])
		}
		require.Equal(t, c.code, status.Code(err), "%s: %v", name, err)
	}
	peers, err := birdv1.NewBirdServiceClient(conn).Peers(t.Context(), &birdv1.PeersRequest{})
	require.NoError(t, err)
	require.Zero(t, peers.GetGeneration())
	require.Equal(t, "in service", peers.GetDrain())
}
