package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/log"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// tellBest passes on the outcome of path selection. gobgp sends either one path for each of several prefixes, or all equal
// paths of one prefix; both ways the paths of a prefix follow each other.
func tellBest(events speaker.Events, paths []*api.Path) {
	for len(paths) > 0 {
		prefix, err := prefixOf(paths[0])
		if err != nil {
			paths = paths[1:] // of another family; none is configured
			continue
		}
		var best []speaker.Path
		n := 0
		for n < len(paths) {
			p := paths[n]
			if other, err := prefixOf(p); err != nil || other != prefix {
				break
			}
			n++
			if p.IsWithdraw || !address(p.NeighborIp).IsValid() { // gone, or our own
				continue
			}
			if path, err := fromPath(p); err == nil && path.NextHop.IsValid() {
				best = append(best, path)
			}
		}
		paths = paths[n:]
		events.Best(prefix, best)
	}
}

// tellEnd passes on an End-of-RIB marker, and mends what gobgp does to the other sessions then.
func (e *Engine) tellEnd(events speaker.Events, paths []*api.Path) {
	for _, p := range paths {
		if a := address(p.NeighborIp); a.IsValid() {
			e.restartAgain(a)
			events.EndOfRIB(a)
		}
	}
}

// restartAgain undoes a trap: the first peer to send all that it has makes gobgp forget that the process has restarted, for
// those too that have not even connected. They would be told that our routes are gone. So they are added anew, unless they
// are of the mesh, where the other end is as patient as ours.
func (e *Engine) restartAgain(first netip.Addr) {
	e.mu.Lock()
	var again []speaker.Neighbor
	for a, n := range e.peers {
		waiting := e.states[a] != speaker.OpenSent && e.states[a] != speaker.OpenConfirm && e.states[a] != speaker.Established
		if a != first && n.Restarting && waiting && n.Type != policy.PeerMesh {
			again = append(again, n)
		}
	}
	e.mu.Unlock()
	for _, n := range again {
		if err := errors.Join(e.DeletePeer(n.Address), e.AddPeer(n)); err != nil {
			e.log.Warn("session not begun anew", "peer", n.Address, "error", err)
		}
	}
}

func (e *Engine) tellSession(events speaker.Events, event *api.WatchEventResponse_PeerEvent) {
	s := event.GetPeer().GetState()
	a := address(s.GetNeighborAddress())
	if !a.IsValid() {
		return // the end of the initial list
	}
	state := map[api.PeerState_SessionState]speaker.State{
		api.PeerState_IDLE: speaker.Idle, api.PeerState_CONNECT: speaker.Connect, api.PeerState_ACTIVE: speaker.Active,
		api.PeerState_OPENSENT: speaker.OpenSent, api.PeerState_OPENCONFIRM: speaker.OpenConfirm,
		api.PeerState_ESTABLISHED: speaker.Established,
	}[s.GetSessionState()]
	if s.GetAdminState() != api.PeerState_UP {
		state = speaker.Down
	}
	e.mu.Lock()
	e.states[a] = state
	if n, ok := e.peers[a]; ok && state == speaker.Established {
		n.Restarting = false // it has been told
		e.peers[a] = n
	}
	e.mu.Unlock()
	events.Session(a, state)
}

// logger takes gobgp's log to ours, one level lower: what an operator must know of sessions the speaker logs itself. It says
// that debugging is on, since gobgp tells of failures to connect only then, and drops what is below our level.
type logger struct {
	log    *slog.Logger
	events speaker.Events
}

// noise is what gobgp says at each change of policy or route.
var noise = []string{"call set policy", "Neighbor soft reset"}

func (l *logger) write(level slog.Level, msg string, fields log.Fields) {
	if l.log.Enabled(context.Background(), level) && !slices.ContainsFunc(noise, func(s string) bool { return strings.HasPrefix(msg, s) }) {
		attrs := make([]slog.Attr, 0, len(fields))
		for _, key := range []string{"Topic", "Key", "State", "Reason", "Error", "Err"} {
			if v, ok := fields[key]; ok {
				attrs = append(attrs, slog.Any(strings.ToLower(key), v))
			}
		}
		l.log.LogAttrs(context.Background(), level, "gobgp: "+msg, attrs...)
	}
}

// trouble tells the speaker why a session fails.
func (l *logger) trouble(msg string, fields log.Fields) {
	if fields["Topic"] != "Peer" {
		return
	}
	key, _ := fields["Key"].(string)
	a := address(key)
	if !a.IsValid() {
		return
	}
	for _, detail := range []string{"Error", "Err", "Reason", "Data"} {
		if v, ok := fields[detail]; ok {
			msg += fmt.Sprintf(": %v", v)
			break
		}
	}
	l.events.Trouble(a, msg)
}

// Panic is for broken invariants of gobgp's.
func (l *logger) Panic(msg string, fields log.Fields) {
	l.write(slog.LevelError, msg, fields)
	panic("gobgp: " + msg)
}

// Fatal is called for a policy that does not compile, which the caller is told as an error too.
func (l *logger) Fatal(msg string, fields log.Fields) { l.write(slog.LevelError, msg, fields) }

// Error is passed on.
func (l *logger) Error(msg string, fields log.Fields) { l.write(slog.LevelWarn, msg, fields) }

// Warn is passed on, and is why a session fails.
func (l *logger) Warn(msg string, fields log.Fields) {
	l.trouble(msg, fields)
	l.write(slog.LevelInfo, msg, fields)
}

// Info is passed on; it tells why a session went down.
func (l *logger) Info(msg string, fields log.Fields) {
	if msg == "Peer Down" {
		l.trouble(msg, fields)
	}
	l.write(slog.LevelDebug, msg, fields)
}

// Debug is dropped but for failures to connect.
func (l *logger) Debug(msg string, fields log.Fields) {
	if msg == "failed to connect" {
		l.trouble(msg, fields)
		l.write(slog.LevelDebug, msg, fields)
	}
}

// SetLevel does nothing: the level is ours to set.
func (l *logger) SetLevel(log.LogLevel) {}

// GetLevel is debug, always.
func (l *logger) GetLevel() log.LogLevel { return log.DebugLevel }
