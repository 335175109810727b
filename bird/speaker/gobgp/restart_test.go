package gobgp_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
)

// waiting passes on which sessions wait for a connection.
type waiting chan netip.Addr

func (w waiting) Session(a netip.Addr, state speaker.State) {
	if state == speaker.Active {
		w <- a
	}
}
func (waiting) EndOfRIB(netip.Addr)               {}
func (waiting) Best(netip.Prefix, []speaker.Path) {}
func (waiting) Trouble(netip.Addr, string)        {}

// TestAllAreToldOfTheRestart: every peer of a speaker that has restarted is told so in its first OPEN. Peers connect while the
// first of them has told all that it has, and after that. One that is not told forgets our routes.
func TestAllAreToldOfTheRestart(t *testing.T) {
	own, first := loopback(92, 1), loopback(92, 2)
	active := make(waiting, 1000)
	engine, err := gobgp.New(t.Context(), newLog(t), active)
	require.NoError(t, err)
	t.Cleanup(func() { _ = engine.Stop() })
	require.NoError(t, engine.Start(speaker.Global{ASNumber: 64512, RouterID: own, Port: testPort, Addresses: []netip.Addr{own}}))
	add := func(other netip.Addr) {
		require.NoError(t, engine.AddPeer(speaker.Neighbor{
			Peer: policy.Peer{
				Name: "Node_" + other.String(), Type: policy.PeerNode, Address: other, Port: testPort, ASNumber: 65001,
				SourceAddress: own, Passive: true, RestartTime: 2 * time.Minute, HoldTime: 90 * time.Second,
			},
			LocalAS: 64512, Restarting: true, Deferral: time.Minute,
		}), other)
	}
	add(first)
	var late []netip.Addr
	for i := range 100 {
		late = append(late, loopback(92, 10+i))
		add(late[i])
	}
	for there := map[netip.Addr]bool{}; len(there) <= len(late); {
		there[<-active] = true // before, gobgp takes no connection
	}
	resumes := bgp.NewCapGracefulRestart(false, false, 120, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, false)})
	whole := dialMute(t, first, own, 65001, resumes)

	var all sync.WaitGroup
	for i, from := range late {
		all.Go(func() {
			told, err := toldOfRestart(t.Context(), from, own)
			assert.NoError(t, err, from)
			assert.True(t, told, from)
		})
		if i == len(late)/4 {
			whole.update(nil, nil) // End-of-RIB
		}
	}
	all.Wait()
}

// toldOfRestart connects to a speaker and tells whether it says in its OPEN that it has restarted.
func toldOfRestart(ctx context.Context, from, to netip.Addr) (told bool, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 20 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, testPort).String())
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return false, err
	}
	p := &rawPeer{conn: conn, as: 65001}
	_, body, err := p.read()
	if err != nil {
		return false, fmt.Errorf("its OPEN: %w", err)
	}
	open := &bgp.BGPOpen{}
	if err := open.DecodeFromBytes(body); err != nil {
		return false, err
	}
	for _, parameter := range open.OptParams {
		if c, ok := parameter.(*bgp.OptionParameterCapability); ok {
			for _, capability := range c.Capability {
				if gr, ok := capability.(*bgp.CapGracefulRestart); ok && gr.Flags&0x08 != 0 {
					told = true
				}
			}
		}
	}
	return told, nil
}
