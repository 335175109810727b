package gobgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/osrg/gobgp/v3/pkg/log"

	"github.com/muslin-net/muslin/bird/speaker"
)

// changed is gobgp's message about each change of state.
const changed = "state changed"

// Reasons that are compared.
const (
	holdTimer = "Error: Hold timer expired"
	closed    = "Socket: Connection closed"
)

// quiet are messages that say less than those before them, or nothing about why a session is not up.
var quiet = map[string]bool{
	"cannot change to the same state":                         true, // our own haste, when a rest is cut short
	"previous setting admin state request is still remaining": true, // the same
	"Closed an accepted connection":                           true, // both ends dialled, and one connection is enough
	"active conn is closed to avoid being blocked":            true, // the same
	"restart flag is not set":                                 true, // the peer forgot our routes, no more
}

// reason puts a message in the words that operators know from BIRD, where there are such, and says what follows from it. It
// is empty for a message that says less than those before it.
func reason(msg string, fields log.Fields) string {
	if err, ok := fields["Err"].(error); ok && errors.Is(err, net.ErrClosed) {
		return "" // of a listener of before: gobgp never forgets one
	}
	if err, ok := fields["Error"].(error); ok {
		if text := socketError(err); text != "" {
			return text
		}
	}
	switch msg {
	case "hold timer expired":
		return holdTimer
	case "graceful restart timer expired":
		return "Error: Graceful restart took too long, the peer's routes are dropped"
	case "sent notification":
		if code, ok := fields["Code"]; ok {
			return "Error: " + notification(fmt.Sprint(code, ".", fields["Subcode"]), nil) + communicated(fields)
		}
		return "Error: " + refusal(fmt.Sprint(fields["Data"]))
	case "received notification":
		data, _ := fields["Data"].([]byte)
		return "Received: " + notification(fmt.Sprint(fields["Code"], ".", fields["Subcode"]), data) + communicated(fields)
	case "Peer Down":
		if fmt.Sprint(fields["Reason"]) == "read-failed" || fmt.Sprint(fields["Reason"]) == "write-failed" {
			return closed
		}
		return ""
	case "peer graceful restart":
		return closed
	case changed:
		return handshake(fmt.Sprint(fields["old"]), fmt.Sprint(fields["reason"]))
	}
	if quiet[msg] {
		return ""
	}
	for _, detail := range []string{"Error", "Err", "Data"} {
		if v, ok := fields[detail]; ok {
			return fmt.Sprintf("%s: %v", msg, v)
		}
	}
	return msg
}

// handshake is why a session went from a state before Established to Idle.
func handshake(from, why string) string {
	switch why {
	case "read-failed", "write-failed":
		switch from {
		case "BGP_FSM_OPENSENT":
			return speaker.HungUp
		case "BGP_FSM_OPENCONFIRM":
			return "Socket: Connection closed during the handshake"
		}
	case "invalid-msg":
		return speaker.Refused // unless gobgp has said that it was we who refused
	}
	return ""
}

// socketError puts an error of a socket in BIRD's words; empty if it is none.
func socketError(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &errno):
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		errno = syscall.ETIMEDOUT
	default:
		return ""
	}
	text := errno.Error()
	return "Socket: " + strings.ToUpper(text[:1]) + text[1:]
}

// refusal is why we refused a peer's message, in other words than gobgp's.
func refusal(text string) string {
	var want, got uint32
	if _, err := fmt.Sscanf(text, "as number mismatch expected %d, received %d", &want, &got); err == nil {
		return fmt.Sprintf("peer says its AS is %d, configured %d", got, want)
	}
	if id, ok := strings.CutPrefix(text, "bad BGP identifier "); ok {
		return "peer's router id is " + id + ", which is no other node's"
	}
	return text
}

// communicated is what the operator of the peer says of a shutdown (RFC 8203).
func communicated(fields log.Fields) string {
	if text := fmt.Sprint(fields["Communicated-Reason"]); fields["Communicated-Reason"] != nil && text != "" {
		return fmt.Sprintf(" (%q)", text)
	}
	return ""
}

// notification names a NOTIFICATION by code and subcode (RFC 4271 section 4.5, RFC 4486, RFC 8538), with what its data adds.
func notification(code string, data []byte) string {
	name, ok := map[string]string{
		"2.1": "Unsupported version number", "2.2": "Bad peer AS", "2.3": "Bad BGP identifier", "2.4": "Unsupported optional parameter",
		"2.6": "Unacceptable hold time", "2.7": "Unsupported capability", "2.11": "Role mismatch", "4.0": "Hold timer expired",
		"6.1": "Maximum number of prefixes reached", "6.2": "Administrative shutdown", "6.3": "Peer de-configured",
		"6.4": "Administrative reset", "6.5": "Connection rejected", "6.6": "Other configuration change", "6.7": "Connection collision resolution",
		"6.8": "Out of resources", "6.9": "Hard reset", "6.10": "BFD down",
	}[code]
	switch {
	case !ok:
		return "Error " + code
	case code == "2.7":
		if list := capabilities(data); list != "" {
			return name + " (" + list + ")"
		}
	case (code == "6.2" || code == "6.4") && len(data) > 1 && len(data) > int(data[0]): // the operator's words (RFC 9003)
		return fmt.Sprintf("%s (%q)", name, data[1:1+int(data[0])])
	case code == "6.9" && len(data) >= 2: // what the reset would have been (RFC 8538 section 3.1)
		if inner := fmt.Sprint(data[0], ".", data[1]); inner != code {
			return name + " (" + notification(inner, data[2:]) + ")"
		}
	}
	return name
}

// capabilities names the capabilities that a peer misses (RFC 5492 section 5).
func capabilities(data []byte) string {
	var out []string
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		code, value := data[0], data[2:2+int(data[1])]
		name, ok := map[byte]string{
			1: "multiprotocol", 2: "route refresh", 5: "extended next hop", 6: "extended messages", 64: "graceful restart",
			65: "4-byte AS", 69: "add-path", 70: "enhanced route refresh", 71: "long-lived graceful restart",
		}[code]
		if !ok {
			name = fmt.Sprintf("capability %d", code)
		}
		if code == 1 && len(value) == 4 {
			name = fmt.Sprintf("address family %d/%d", binary.BigEndian.Uint16(value), value[3])
			switch [2]byte{value[1], value[3]} {
			case [2]byte{1, 1}:
				name = "IPv4 unicast"
			case [2]byte{2, 1}:
				name = "IPv6 unicast"
			}
		}
		out = append(out, name)
		data = data[2+len(value):]
	}
	return strings.Join(out, ", ")
}
