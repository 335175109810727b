package client

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/confd/render"
	"github.com/muslin-net/muslin/internal/rpc"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// standin is bird's client before a stand-in for a BIRD whose control socket answers as told.
func standin(t *testing.T) (*bird.Client, *BIRD2) {
	t.Helper()
	dir := t.TempDir()
	answers := map[string]string{"show bfd sessions": "bfd1:\nIP address                Interface  State      Since         Interval  Timeout\n" +
		"10.9.0.2                  e0         Up         2026-11-21 12:03:10.260    0.050    0.150"}
	for file, commands := range map[string][]string{
		"protocols.txt": {"show protocols all"},
		"routes.txt":    {"show route all", "show route protocol 'Node_10_9_0_2' all", "show route export 'Node_10_9_0_2' all", "show route filtered protocol 'Node_10_9_0_2' all", "show route noexport 'Node_10_9_0_2' all"},
	} {
		body, err := os.ReadFile("../bird2/testdata/answers/" + file)
		require.NoError(t, err)
		for _, c := range commands {
			answers[c] = string(body)
		}
	}
	b := &BIRD2{File: filepath.Join(dir, "bird2.conf"), Socket: filepath.Join(dir, "ctl"), Program: program(t, "exit 0")}
	ctl := listen(t, b.Socket, answers)
	go func() {
		for range ctl.asked { // nobody wants to know
		}
	}()
	l, err := rpc.ListenUnix(filepath.Join(dir, "bird.sock"))
	require.NoError(t, err)
	server := grpc.NewServer()
	birdv1.RegisterBirdServiceServer(server, NewStandin(slog.New(slog.DiscardHandler), b))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	c, err := bird.New(filepath.Join(dir, "bird.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c, b
}

// sceneOfBIRD is a configuration with the sessions of the transcripts and some that BIRD does not have.
func sceneOfBIRD() render.Config {
	c := config(64512)
	c.RouterID = netip.MustParseAddr("10.9.0.1")
	c.Warnings = []string{"BGPPeer(y): something"}
	peer := func(name, source, address string, kind render.PeerType) render.Peer {
		return render.Peer{Name: name, Source: source, Type: kind, Address: netip.MustParseAddr(address), Port: 179, ASNumber: 64512}
	}
	waiting := peer("Global_fd09__2", "BGPPeer(z)", "fd09::2", render.Global)
	waiting.WaitingFor = "Secret tor, key md5"
	c.Peers = []render.Peer{
		peer("Node_10_9_0_2", "BGPPeer(x)", "10.9.0.2", render.NodeSpecific), peer("Mesh_10_9_0_2", "Node(w)", "10.9.0.2", render.Mesh),
		peer("Mesh_10_9_0_3", "Node(x)", "10.9.0.3", render.Mesh), waiting,
	}
	return c
}

// TestStandinPeers: operators see BIRD's sessions as those of our bird, and the peers that have none.
func TestStandinPeers(t *testing.T) {
	c, b := standin(t)
	s, err := c.Peers(t.Context(), "")
	require.NoError(t, err)
	require.Zero(t, s.Generation, "there is no file yet")
	_, err = b.Apply(t.Context(), sceneOfBIRD(), 1)
	require.NoError(t, err)

	s, err = c.Peers(t.Context(), "")
	require.NoError(t, err)
	require.NotZero(t, s.Generation)
	require.Equal(t, "BIRD 2.0.12", s.Software)
	require.Equal(t, "in service", s.Drain)
	require.Equal(t, time.Date(2026, 11, 21, 12, 3, 9, 507e6, time.Local), s.Started.Local())
	require.Equal(t, []string{"BGPPeer(y): something"}, s.Warnings)
	var infos []string
	for _, p := range s.Peers {
		infos = append(infos, p.Name+", "+p.Type.String()+", "+p.Protocol()+", "+p.Info())
	}
	require.Equal(t, []string{
		"Node_10_9_0_2, node specific, up, Established", "Mesh_10_9_0_2, node-to-node mesh, down, Down: the address is Node_10_9_0_2 of BGPPeer(x)'s",
		"Mesh_10_9_0_3, node-to-node mesh, start, Connect Socket: No route to host", "Mesh_10_9_0_4, node-to-node mesh, start, Passive",
		"Global_fd09__2, global, down, Down: waiting for Secret tor, key md5",
	}, infos)
	require.Equal(t, "up, every 0.050 s, gone after 0.150 s", s.Peers[0].BFD)
	require.Equal(t, uint64(2), s.Peers[0].Accepted)

	s, err = c.Peers(t.Context(), "10.9.0.3")
	require.NoError(t, err)
	require.Len(t, s.Peers, 1)
	_, err = c.Peers(t.Context(), "10.9.0.9")
	require.ErrorContains(t, err, "there is no peer")
}

// TestStandinRoutes: the views that BIRD has, and a line for the others.
func TestStandinRoutes(t *testing.T) {
	c, b := standin(t)
	_, err := b.Apply(t.Context(), sceneOfBIRD(), 1)
	require.NoError(t, err)
	show := func(v bird.View, peer string, within netip.Prefix) (list []bird.Route, err error) {
		err = c.Show(t.Context(), v, peer, within, func(r bird.Route) { list = append(list, r) })
		return list, err
	}
	all, err := show(bird.Table, "", netip.Prefix{})
	require.NoError(t, err)
	require.Len(t, all, 5)
	require.Equal(t, "Node_10_9_0_2", all[0].Path.Peer)
	require.Equal(t, netip.MustParseAddr("10.9.0.2"), all[0].Path.PeerAddress)
	require.True(t, all[1].Path.Stale, "its peer restarts")
	require.Empty(t, all[2].Path.Peer, "it is this node's")
	some, err := show(bird.Table, "", netip.MustParsePrefix("10.50.0.0/15"))
	require.NoError(t, err)
	require.Len(t, some, 1)
	for _, v := range []bird.View{bird.Accepted, bird.Advertised} {
		list, err := show(v, "10.9.0.2", netip.Prefix{})
		require.NoError(t, err)
		require.Len(t, list, 5)
		_, err = show(v, "10.9.0.77", netip.Prefix{})
		require.ErrorContains(t, err, "there is no session")
	}
	for _, v := range []bird.View{bird.Rejected, bird.Withheld} {
		list, err := show(v, "10.9.0.2", netip.Prefix{})
		require.NoError(t, err)
		require.Len(t, list, 5)
		require.Equal(t, "a filter (BIRD 2 does not tell which)", list[0].RejectedBy)
	}
	_, err = show(bird.Received, "Node_10_9_0_2", netip.Prefix{})
	require.ErrorContains(t, err, "BIRD 2, which does not keep what a peer sent as it was sent")
	require.ErrorContains(t, err, "show route protocol Node_10_9_0_2")
}

// TestStandinWatch tells sessions once.
func TestStandinWatch(t *testing.T) {
	c, b := standin(t)
	_, err := b.Apply(t.Context(), sceneOfBIRD(), 1)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var seen []string
	err = c.WatchPeers(ctx, func(p bird.Peer) { seen = append(seen, p.Name) }, func() { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []string{"Node_10_9_0_2", "Mesh_10_9_0_3", "Mesh_10_9_0_4", "Global_fd09__2"}, seen)
}

// TestStandinDrain follows the file through a drain.
func TestStandinDrain(t *testing.T) {
	const draining, drained = "bgp_community.add((65535, 0));", "reject; # the node is drained"
	c, b := standin(t)
	require.ErrorContains(t, c.BeginDrain(t.Context(), time.Hour), errNoConfig.Error())
	_, err := b.Apply(t.Context(), sceneOfBIRD(), 1)
	require.NoError(t, err)
	state := func(want string) {
		t.Helper()
		s, err := c.Peers(t.Context(), "")
		require.NoError(t, err)
		require.Equal(t, want, s.Drain)
		text, err := os.ReadFile(b.File)
		require.NoError(t, err)
		for step, word := range map[string]string{"draining": draining, "drained": drained} {
			if step == want {
				require.Contains(t, string(text), word)
			} else {
				require.NotContains(t, string(text), word)
			}
		}
	}
	state("in service")
	require.NoError(t, c.BeginDrain(t.Context(), time.Hour))
	state("draining")
	_, err = b.Apply(t.Context(), sceneOfBIRD(), 2)
	require.NoError(t, err)
	state("draining") // what confd applies meanwhile does not end it
	require.NoError(t, c.Drain(t.Context(), 0))
	state("drained")
	require.NoError(t, c.BeginDrain(t.Context(), time.Hour))
	state("drained") // it is not announced again
	require.NoError(t, c.Undrain(t.Context()))
	state("in service")
	require.ErrorContains(t, c.BeginDrain(t.Context(), 2*time.Hour), "give 0 to 1h")
}
