package gobgp

import (
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/config/oc"
	"github.com/osrg/gobgp/v3/pkg/log"
)

// A peer that restarts keeps its routes until its restart time is over (RFC 4724, 4.2). gobgp drops them as soon as an attempt
// to get the session back fails: the daemon refuses a connection while it starts, or both ends have dialled and one hangs up.
// It asks whether the peer is expected back while the session goes idle, right after it has logged that. So for the time in
// which it handles that change nobody is expected, and the routes stay. What this relies on is what lends looks for.

// absences are of peers that are expected back. They are owned by gobgp's loop; the zero value is none.
type absences struct {
	until  map[string]time.Time // by gobgp's key for the peer: when the time of its restart is over
	failed *absence             // of the peer whose attempt has just failed
}

// absence is what gobgp knows of one.
type absence struct {
	lock   *sync.RWMutex // guards the others
	config *oc.Neighbor
	timer  *time.Timer
	until  time.Time // zero if the time of the restart is over, and that of long-lived routes is not
}

// goesIdle is called in gobgp's loop, with the lock of the peer's session held, when a session does.
func (e *Engine) goesIdle(key string, fields log.Fields) {
	peer := peersOf(e.server).MapIndex(reflect.ValueOf(key))
	if !e.lent || !peer.IsValid() || peer.IsNil() {
		return
	}
	config := configOf(peer)
	state := &config.GracefulRestart.State
	switch why := fmt.Sprint(fields["reason"]); {
	case why == "graceful-restart":
		if e.away.until == nil {
			e.away.until = map[string]time.Time{}
		}
		e.away.until[key] = time.Now().Add(time.Duration(state.PeerRestartTime) * time.Second)
	case fields["old"] == "BGP_FSM_ESTABLISHED", why == "restart-timer-expired", why == "admin-down":
		delete(e.away.until, key)
	case state.PeerRestarting:
		state.PeerRestarting = false
		e.away.failed = &absence{lockOf(peer), config, timerOf(peer), e.away.until[key]}
	}
}

// expect has gobgp expect the peer again. The timer may have fired in between, when nobody was expected.
func (a *absences) expect() {
	p := a.failed
	if p == nil {
		return
	}
	a.failed = nil
	p.lock.Lock()
	defer p.lock.Unlock()
	p.config.GracefulRestart.State.PeerRestarting = true
	if !p.until.IsZero() {
		p.timer.Reset(max(0, time.Until(p.until)))
	}
}
