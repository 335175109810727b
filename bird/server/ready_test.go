package server_test

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
)

// part is what the watchdog said last.
type part struct {
	mu         sync.Mutex
	said, note string
}

func (p *part) Ready()                 { p.set(&p.said, "ready") }
func (p *part) NotReady(reason string) { p.set(&p.said, reason) }
func (p *part) set(field *string, s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*field = s
}

func (p *part) says(t *testing.T, said, note string) {
	t.Helper()
	soon(t, said+" | "+note, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.said == said && p.note == note
	})
}

// TestReadiness has a bird without a configuration, which is not ready, and one whose peers are all down, which is.
func TestReadiness(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	var engine *gobgp.Engine
	s, err := speaker.New(log, func(events speaker.Events) (_ speaker.Engine, err error) {
		engine, err = gobgp.New(ctx, log, events)
		return engine, err
	})
	require.NoError(t, err)
	p := &part{}
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	running.Go(func() { _ = server.Watchdog(ctx, s, p, func(text string) { p.set(&p.note, text) }) })
	t.Cleanup(func() { cancel(); running.Wait(); _ = engine.Stop() })

	p.says(t, "no configuration yet; confd brings it", "there are none")
	own := netip.MustParseAddr("127.0.83.1")
	config := policy.Config{Generation: 1, RouterID: own, ASNumber: 64512, ListenPort: 17183, ListenAddresses: []netip.Addr{own}}
	for n := byte(2); n < 7; n++ {
		a := netip.AddrFrom4([4]byte{127, 0, 83, n})
		config.Peers = append(config.Peers, policy.Peer{
			Name: "Mesh_" + a.String(), Type: policy.PeerMesh, Source: "Node(x)", Address: a, Port: 17183, ASNumber: 64512, SourceAddress: own,
		})
	}
	_, err = s.Apply(config)
	require.NoError(t, err)
	down := "0 of 5 are up; Mesh_127.0.83.2 Idle; Mesh_127.0.83.3 Idle; Mesh_127.0.83.4 Idle; and 2 more"
	p.says(t, "waiting for felix to announce this node's routes", down)
	s.Feed().SnapshotEnd()
	why := " Active Socket: Connection refused: nothing listens on port 17183 there"
	p.says(t, "ready", "0 of 5 are up; Mesh_127.0.83.2"+why+"; Mesh_127.0.83.3"+why+"; Mesh_127.0.83.4"+why+"; and 2 more")
}
