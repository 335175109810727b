package gobgp

import (
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/config/oc"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// A process that has restarted says so to each peer in its OPEN, or the peer forgets our routes (RFC 4724, 4.2). But as soon as
// the peers that are up have told all that they have, gobgp calls the restart over for all, for those too that come later, or
// are about to. So they are out of its sight while it decides that: they are taken out of its map of peers within its loop, and
// are back in it before the loop goes on. What this relies on is what lends looks for.

// untold are the peers that no OPEN has told of the restart, as far as is known. The zero value is none.
type untold struct {
	mu    sync.Mutex // guards the following; nothing is called with it held, since gobgp's loop takes it
	peers map[netip.Addr]struct{}

	hidden map[netip.Addr]reflect.Value // owned by gobgp's loop
}

// follow has a peer told if it must be. The mesh need not: its ends are as patient as ours, and many.
func (u *untold) follow(a netip.Addr, n speaker.Neighbor) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !n.Restarting || n.Type == policy.PeerMesh {
		delete(u.peers, a)
		return
	}
	if u.peers == nil {
		u.peers = map[netip.Addr]struct{}{}
	}
	u.peers[a] = struct{}{}
}

// hide takes those that are not up out of gobgp's sight, but for one that is about to be. It is called in gobgp's loop.
func (e *Engine) hide(but netip.Addr) {
	u := &e.untold
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.peers) == 0 || !e.lent {
		return
	}
	if u.hidden == nil {
		u.hidden = map[netip.Addr]reflect.Value{}
	}
	sight := peersOf(e.server)
	for a := range u.peers {
		key := reflect.ValueOf(a.String())
		peer := sight.MapIndex(key)
		if a == but || !peer.IsValid() || sessionOf(peer).FieldByName("state").Int() == int64(bgp.BGP_FSM_ESTABLISHED) {
			continue
		}
		u.hidden[a] = peer
		sight.SetMapIndex(key, reflect.Value{})
	}
}

// show brings them back. It is called in gobgp's loop.
func (e *Engine) show() {
	for a, peer := range e.untold.hidden {
		peersOf(e.server).SetMapIndex(reflect.ValueOf(a.String()), peer)
	}
	clear(e.untold.hidden)
}

// afterEach is called in gobgp's loop after each thing that it does.
type afterEach func()

// Observe is for gobgp, which means it for measuring.
func (f afterEach) Observe(server.FSMOperation, time.Duration, time.Duration) { f() }

// peersOf is gobgp's map of peers, which its loop owns.
func peersOf(s *server.BgpServer) reflect.Value {
	return opened(reflect.ValueOf(s).Elem().FieldByName("neighborMap"))
}

// sessionOf is what gobgp knows of a peer's session.
func sessionOf(peer reflect.Value) reflect.Value { return peer.Elem().FieldByName("fsm").Elem() }

func lockOf(peer reflect.Value) *sync.RWMutex {
	return opened(sessionOf(peer).FieldByName("lock")).Addr().Interface().(*sync.RWMutex)
}

// configOf is what the session is configured with, and its state.
func configOf(peer reflect.Value) *oc.Neighbor {
	return opened(sessionOf(peer).FieldByName("pConf")).Interface().(*oc.Neighbor)
}

// timerOf ends the time in which a peer that restarts is expected back.
func timerOf(peer reflect.Value) *time.Timer {
	return opened(sessionOf(peer).FieldByName("gracefulRestartTimer")).Interface().(*time.Timer)
}
