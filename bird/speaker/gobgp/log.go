package gobgp

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/osrg/gobgp/v3/pkg/log"

	"github.com/muslin-net/muslin/bird/speaker"
)

// logger takes gobgp's log to ours, one level lower: what an operator must know of sessions the speaker logs itself. It says
// that debugging is on, since gobgp tells of failures to connect only then, and drops what is below our level.
type logger struct {
	log      *slog.Logger
	events   speaker.Events
	shutdown func(netip.Addr)                    // called in a goroutine when a peer is shut down administratively
	up       func(key string)                    // called in gobgp's loop with the session's lock held when it is about to be up
	idle     func(key string, change log.Fields) // the same when it goes idle
	last     sync.Map                            // of netip.Addr: what was told of it last, since it was connected
}

// noise is what gobgp says at each change of policy or route.
var noise = []string{"call set policy", "Neighbor soft reset", "Send operation notification", "Administrative start", "Administrative shutdown"}

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
	if a, why := address(key), reason(msg, fields); a.IsValid() && why != "" {
		l.tell(a, why)
	}
}

// tell tells the speaker, unless that would hide a reason that says more.
func (l *logger) tell(a netip.Addr, why string) {
	before, _ := l.last.Load(a)
	switch {
	case why == closed && before == holdTimer: // it was closed because of it
	case why == speaker.Refused && before != nil: // what was said is known, or it was we who refused
	default:
		l.last.Store(a, why)
		l.events.Trouble(a, why)
	}
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
	level := slog.LevelInfo
	if fields["Topic"] == "Peer" { // the speaker logs why a session is not up, once
		level = slog.LevelDebug
	}
	l.write(level, msg, fields)
}

// Info is passed on; it tells why a session went down, and that it was shut down.
func (l *logger) Info(msg string, fields log.Fields) {
	if key, _ := fields["Key"].(string); msg == "Administrative shutdown" && address(key).IsValid() {
		go l.shutdown(address(key)) // gobgp holds locks that starting again needs
	}
	if msg == "Peer Down" || msg == "peer graceful restart" && fields["State"] == "BGP_FSM_ESTABLISHED" {
		l.trouble(msg, fields)
	}
	l.write(slog.LevelDebug, msg, fields)
}

// Debug is dropped but for failures to connect, and for handshakes that fail, of which gobgp says nothing else.
func (l *logger) Debug(msg string, fields log.Fields) {
	key, _ := fields["Key"].(string)
	if msg == changed && fields["new"] == "BGP_FSM_IDLE" {
		l.idle(key, fields)
	}
	switch {
	case msg == changed && fields["new"] == "BGP_FSM_OPENSENT":
		l.last.Delete(address(key)) // what failed before is over
	case msg == changed && fields["new"] == "BGP_FSM_ESTABLISHED":
		l.up(key)
		l.events.Trouble(address(key), "")
	case msg == "failed to connect", msg == changed && fields["new"] == "BGP_FSM_IDLE":
		l.trouble(msg, fields)
		l.write(slog.LevelDebug, msg, fields)
	}
}

// SetLevel does nothing: the level is ours to set.
func (l *logger) SetLevel(log.LogLevel) {}

// GetLevel is debug, always.
func (l *logger) GetLevel() log.LogLevel { return log.DebugLevel }
