//go:debug multipathtcp=0

package verb

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"sigs.k8s.io/yaml"

	birdserver "github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
	"github.com/muslin-net/muslin/internal/rpc"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// felix is one that runs, and no more.
type felix struct {
	felixv1.UnimplementedStateServiceServer
}

func (felix) Dump(context.Context, *felixv1.DumpRequest) (*felixv1.DumpResponse, error) {
	return &felixv1.DumpResponse{}, nil
}

// startNode runs a whole bird on loopback and a felix, and returns the flags that lead to them.
func startNode(t *testing.T, config *birdv1.Config, blocks ...string) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log, dir := slog.New(slog.DiscardHandler), t.TempDir()
	birdSocket, felixSocket := filepath.Join(dir, "bird.sock"), filepath.Join(dir, "felix.sock")
	var engine *gobgp.Engine
	s, err := speaker.New(log, func(events speaker.Events) (_ speaker.Engine, err error) {
		engine, err = gobgp.New(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	saved, err := birdserver.OpenSaved(dir)
	require.NoError(t, err)
	service := birdserver.New(log, &slog.LevelVar{}, s, saved, "one", "v1.2.3")
	var all sync.WaitGroup
	all.Go(func() { _ = s.Run(ctx) })
	all.Go(func() { _ = birdserver.Serve(ctx, birdSocket, service.Register) })
	l, err := rpc.ListenUnix(felixSocket)
	require.NoError(t, err)
	g := grpc.NewServer()
	felixv1.RegisterStateServiceServer(g, felix{})
	all.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { cancel(); g.Stop(); all.Wait(); _ = engine.Stop() })
	feed := s.Feed()
	for _, b := range blocks {
		feed.Announce(speaker.LocalRoute{Prefix: netip.MustParsePrefix(b)})
	}
	feed.SnapshotEnd()
	_, err = service.Apply(ctx, &birdv1.ApplyRequest{Config: config})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return dials(birdSocket) }, time.Minute, 5*time.Millisecond)
	return []string{"--bird-socket", birdSocket, "--felix-socket", felixSocket}
}

func dials(socket string) bool {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// speakerConfig has one peer, whose routes to a part of the pool it rejects.
func speakerConfig(own, other netip.Addr, passive bool) *birdv1.Config {
	const port = 17184
	pool := &birdv1.Prefix{Address: []byte{192, 168, 0, 0}, Length: 16}
	return &birdv1.Config{
		Generation: 3, RouterId: own.AsSlice(), AsNumber: 64512, ListenPort: port, ListenAddresses: [][]byte{own.AsSlice()},
		Peers: []*birdv1.Peer{{
			Name: "Node_x", Type: birdv1.PeerType_PEER_TYPE_NODE, Source: "BGPPeer(x)", Address: other.AsSlice(), Port: port,
			AsNumber: 64512, SourceAddress: own.AsSlice(), Passive: passive, Filters: []string{"only-some"},
		}, {
			Name: "Global_y", Type: birdv1.PeerType_PEER_TYPE_GLOBAL, Source: "BGPPeer(y)", Address: []byte{127, 0, 84, 99}, Port: port, AsNumber: 65001,
			SourceAddress: own.AsSlice(),
		}},
		Filters: []*birdv1.Filter{{Name: "only-some", Import4: []*birdv1.FilterRule{{
			Action: birdv1.FilterAction_FILTER_ACTION_REJECT, Operator: birdv1.MatchOperator_MATCH_OPERATOR_IN,
			Prefix: &birdv1.Prefix{Address: []byte{192, 168, 2, 0}, Length: 24},
		}}}},
		Export: &birdv1.ExportPolicy{Pools: []*birdv1.ExportPool{
			{Prefix: &birdv1.Prefix{Address: []byte{192, 168, 77, 0}, Length: 24}, DisableExport: true}, {Prefix: pool},
		}},
	}
}

// TestBGP looks into a real bird, with another one as its peer.
func TestBGP(t *testing.T) {
	one, two := netip.MustParseAddr("127.0.84.1"), netip.MustParseAddr("127.0.84.2")
	startNode(t, speakerConfig(two, one, false), "192.168.2.0/26", "192.168.3.0/26")
	at := startNode(t, speakerConfig(one, two, true), "192.168.1.0/26", "192.168.77.0/26")
	run := func(args ...string) (string, string, int) {
		var out, errs strings.Builder
		code := Run(t.Context(), "v1", append(args, at...), strings.NewReader(""), &out, &errs)
		return out.String(), errs.String(), code
	}
	says := func(want string, args ...string) string {
		t.Helper()
		var out, errs string
		require.Eventually(t, func() bool {
			out, errs, _ = run(args...)
			return strings.Contains(out+errs, want)
		}, time.Minute, 50*time.Millisecond, "%v says %q", args, want)
		return out
	}
	columns := func(text, row string) []string {
		t.Helper()
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, row) {
				return strings.Fields(line)
			}
		}
		require.Failf(t, "no such row", "%s in\n%s", row, text)
		return nil
	}

	says("| Established ", "node", "status")
	text := says("Active Socket: Connection refused: nothing listens on port 17184 there", "node", "status", "-o", "wide")
	require.Contains(t, text, "| UPTIME | FLAPS | RECEIVED | ACCEPTED | ADVERTISED | BFD |  AS   | LOCAL AS |")
	require.Equal(t, []string{"192.168.3.0/26", "127.0.84.2", "Node_x", "*", "1024", "-"},
		columns(says("192.168.3.0/26", "bgp", "routes"), "192.168.3.0/26"))
	require.Equal(t, []string{"192.168.1.0/26", "-", "this", "node", "*", "1024", "-"},
		columns(says("192.168.1.0/26", "bgp", "routes", "--within", "192.168.1.0/24"), "192.168.1.0/26"))
	require.Equal(t, []string{"192.168.2.0/26", "Node_x", "import", "BGPFilter(only-some).importV4[0]"},
		columns(says("192.168.2.0/26", "bgp", "rejected"), "192.168.2.0/26"))
	text = says("IPPool(192.168.77.0/24).disableBGPExport", "bgp", "rejected", "--peer", "Node_x", "-o", "wide")
	require.Equal(t, []string{"192.168.3.0/26", "Node_x", "export", "learned", "from", "this", "peer"}, columns(text, "192.168.3.0/26")[:7])
	text = says("192.168.1.0/26", "bgp", "routes", "--peer", "127.0.84.2", "--view", "advertised")
	require.NotContains(t, text, "192.168.3.0/26")
	require.NotContains(t, says("192.168.3.0/26", "bgp", "routes", "--peer", "Node_x"), "192.168.2.0/26", "accepted ones")
	require.Contains(t, says("192.168.3.0/26", "bgp", "routes", "--peer", "Node_x", "--view", "received"), "192.168.2.0/26")

	var status statusReport
	text, _, _ = run("node", "status", "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(text), &status))
	require.True(t, status.Running && status.Bird.Running)
	require.Equal(t, "v1.2.3", status.Bird.Version)
	require.Equal(t, "in service", status.Bird.Drain)
	require.Equal(t, "Socket: Connection refused: nothing listens on port 17184 there", status.Peers[1].Reason)
	var peers []peerReport
	text, _, _ = run("bgp", "peers", "--peer", "Node_x", "-o", "yaml")
	require.NoError(t, yaml.Unmarshal([]byte(text), &peers))
	require.Len(t, peers, 1)
	require.Equal(t, [3]uint64{2, 1, 1}, [3]uint64{peers[0].Received, peers[0].Accepted, peers[0].Advertised})
	require.Equal(t, "Established", peers[0].History[0].State)
	require.Contains(t, says("History of Node_x, newest first:", "bgp", "peers", "-o", "wide"), "BGPPeer(x)")

	require.Contains(t, says("announces nothing any more", "node", "drain-bgp", "--wait", "10ms"), "withdrawn in 10ms")
	says("The node is drained; ", "node", "status")
	says("192.168.1.0/26", "bgp", "rejected", "--peer", "Node_x", "--direction", "export")
	says("back in service", "node", "drain-bgp", "--cancel")
	require.NotContains(t, says("| Established ", "node", "status"), "drained")

	for want, args := range map[string][]string{
		`"all" is not a view`:             {"bgp", "routes", "--view", "all"},
		"name it by --peer":               {"bgp", "routes", "--view", "received"},
		`"here" is no CIDR`:               {"bgp", "routes", "--within", "here"},
		`"up" is none`:                    {"bgp", "rejected", "--direction", "up"},
		"use ps, wide, yaml or json":      {"bgp", "peers", "-o", "table"},
		`there is no peer "nobody"`:       {"bgp", "peers", "--peer", "nobody"},
		"give 0s to 1h0m0s":               {"node", "drain-bgp", "--wait", "2h"},
		"give its address by --typha":     {"node", "status", "--node", "elsewhere"},
		"operator's certificate by --cre": {"node", "status", "--node", "elsewhere", "--typha", "127.0.0.1:1", "--credentials", "/nonexistent"},
	} {
		_, errs, code := run(args...)
		require.Equal(t, 1, code, args)
		require.Contains(t, errs, want)
	}
}

// A bird that is not there is one line; one that is there and does not answer is told in each family's section.
func TestNodeStatusOfABirdThatDoesNotAnswer(t *testing.T) {
	dir := t.TempDir()
	felixSocket, birdSocket := filepath.Join(dir, "felix.sock"), filepath.Join(dir, "bird.sock")
	l, err := rpc.ListenUnix(felixSocket)
	require.NoError(t, err)
	g := grpc.NewServer()
	felixv1.RegisterStateServiceServer(g, felix{})
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	status := func() string {
		var out, errs strings.Builder
		args := []string{"node", "status", "--bird-socket", birdSocket, "--felix-socket", felixSocket}
		require.Zero(t, Run(t.Context(), "v1", args, strings.NewReader(""), &out, &errs), errs.String())
		return out.String()
	}
	require.Equal(t, running+"\n\n"+noBackend+"\n", status())
	other, err := rpc.ListenUnix(birdSocket)
	require.NoError(t, err)
	mute := grpc.NewServer()
	go func() { _ = mute.Serve(other) }()
	t.Cleanup(mute.Stop)
	text := status()
	require.Equal(t, 2, strings.Count(text, "Error querying BIRD: bird: listing peers: "), text)
	require.Contains(t, text, "\nIPv4 BGP status\nError querying BIRD: ")
	require.Contains(t, text, "\nIPv6 BGP status\nError querying BIRD: ")
}
