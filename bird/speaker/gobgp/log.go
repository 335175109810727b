package gobgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/osrg/gobgp/v3/pkg/log"

	"github.com/muslin-net/muslin/bird/speaker"
)

// logger takes gobgp's log to ours, one level lower: what an operator must know of sessions the speaker logs itself. It says
// that debugging is on, since gobgp tells of failures to connect only then, and drops what is below our level.
type logger struct {
	log      *slog.Logger
	events   speaker.Events
	shutdown func(netip.Addr) // called in a goroutine when a peer is shut down administratively
	last     sync.Map         // of netip.Addr: what was told of it last
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
	a, why := address(key), reason(msg, fields)
	if !a.IsValid() || why == "" {
		return
	}
	if before, _ := l.last.Swap(a, why); msg == "peer graceful restart" && before == holdTimer {
		l.last.Store(a, before)
		return // the connection was closed because of it
	}
	l.events.Trouble(a, why)
}

const holdTimer = "Error: Hold timer expired"

// reason puts a message in the words that operators know from BIRD, where there are such. It is empty for a message that
// says less than those before it.
func reason(msg string, fields log.Fields) string {
	if err, ok := fields["Err"].(error); ok && errors.Is(err, net.ErrClosed) {
		return "" // of a listener of before: gobgp never forgets one
	}
	var errno syscall.Errno
	if err, ok := fields["Error"].(error); ok && errors.As(err, &errno) {
		text := errno.Error()
		return "Socket: " + strings.ToUpper(text[:1]) + text[1:]
	}
	switch msg {
	case "hold timer expired":
		return holdTimer
	case "sent notification":
		if code, ok := fields["Code"]; ok {
			return "Error: " + notification(fmt.Sprint(code, ".", fields["Subcode"]))
		}
		return fmt.Sprintf("Error: %v", fields["Data"])
	case "received notification":
		return "Received: " + notification(fmt.Sprint(fields["Code"], ".", fields["Subcode"]))
	case "Peer Down":
		if fmt.Sprint(fields["Reason"]) == "read-failed" || fmt.Sprint(fields["Reason"]) == "write-failed" {
			return "Socket: Connection closed"
		}
		return ""
	case "peer graceful restart":
		return "Socket: Connection closed"
	case "cannot change to the same state", "previous setting admin state request is still remaining":
		return "" // our own haste, when a rest is cut short
	}
	for _, detail := range []string{"Error", "Err", "Data"} {
		if v, ok := fields[detail]; ok {
			return fmt.Sprintf("%s: %v", msg, v)
		}
	}
	return msg
}

// notification names a NOTIFICATION by code and subcode (RFC 4271 section 4.5, RFC 4486, RFC 8538).
func notification(code string) string {
	name, ok := map[string]string{
		"2.1": "Unsupported version number", "2.2": "Bad peer AS", "2.3": "Bad BGP identifier", "2.4": "Unsupported optional parameter",
		"2.6": "Unacceptable hold time", "2.7": "Required capability missing", "4.0": "Hold timer expired",
		"6.1": "Maximum number of prefixes reached", "6.2": "Administrative shutdown", "6.3": "Peer de-configured",
		"6.4": "Administrative reset", "6.5": "Connection rejected", "6.6": "Other configuration change", "6.7": "Connection collision resolution",
		"6.8": "Out of resources", "6.9": "Hard reset",
	}[code]
	if !ok {
		return "Error " + code
	}
	return name
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
