package server_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
	"github.com/muslin-net/muslin/internal/rpc"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// TestSlowFelix has a felix not read while a great many routes come and go, more than bird remembers the end of. It is told
// everything again, on the same stream.
func TestSlowFelix(t *testing.T) {
	const many = 40_000
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	s, err := speaker.New(log, func(events speaker.Events) (speaker.Engine, error) { return gobgp.New(t.Context(), log, events) })
	require.NoError(t, err)
	saved, err := server.OpenSaved(dir)
	require.NoError(t, err)
	socket := filepath.Join(dir, "bird.sock")
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(t.Context(), socket, server.New(log, &slog.LevelVar{}, s, saved, "a", "test").Register)
	}()
	t.Cleanup(func() { require.NoError(t, <-served) })
	prefix := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	nextHop := netip.MustParseAddr("10.0.0.9")
	for i := range many {
		s.Best(prefix(i), []speaker.Path{{NextHop: nextHop, Peer: nextHop, ASPath: []uint32{uint32(i)}}})
	}

	soon(t, "the socket is there", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	conn, err := rpc.DialUnix(socket)
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := birdv1.NewBirdServiceClient(conn).Routes(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&birdv1.RoutesRequest{Request: &birdv1.RoutesRequest_Hello{Hello: &birdv1.RoutesHello{}}}))
	recv := func() *birdv1.RoutesResponse {
		m, err := stream.Recv()
		require.NoError(t, err)
		return m
	}
	require.False(t, recv().GetWelcome().GetResumed())
	known := map[string]bool{}
	take := func(m *birdv1.RoutesResponse) {
		for _, g := range m.GetBest().GetGroups() {
			for p := range slices.Chunk(g.GetPrefixes4(), 5) {
				if delete(known, string(p)); len(g.GetPaths()) > 0 {
					known[string(p)] = true
				}
			}
		}
	}
	take(recv())
	require.NotEmpty(t, known)
	for i := range many - 1 {
		s.Best(prefix(i), nil)
	}
	for len(known) != 1 {
		m := recv()
		if m.GetWelcome() != nil { // what is not told again is gone
			clear(known)
		}
		take(m)
	}
	require.True(t, known[string(append(prefix(many-1).Addr().AsSlice(), 32))])
}
