package gobgp

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/speaker"
)

// told collects what the speaker is told of troubles.
type told struct {
	speaker.Events
	list []string
}

func (t *told) Trouble(a netip.Addr, reason string) { t.list = append(t.list, a.String()+" "+reason) }

// TestTrouble has gobgp's messages in the words of operators.
func TestTrouble(t *testing.T) {
	events := &told{}
	l := &logger{log: slog.New(slog.DiscardHandler), events: events, up: func(string) {}, idle: func(string, log.Fields) {}}
	peer := func(more log.Fields) log.Fields {
		f := log.Fields{"Topic": "Peer", "Key": "10.0.0.2"}
		maps.Copy(f, more)
		return f
	}
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	l.Debug("failed to connect", peer(log.Fields{"Error": refused}))
	l.Debug("something else", peer(nil))
	l.Warn("received notification", peer(log.Fields{"Code": uint8(6), "Subcode": uint8(3), "Data": []byte{}}))
	l.Info("Peer Down", peer(log.Fields{"Reason": "notification-received code 6"}))
	l.Warn("sent notification", peer(log.Fields{"Data": fmt.Errorf("as number mismatch")}))
	l.Info("Peer Down", peer(log.Fields{"Reason": "read-failed"}))
	l.Warn("hold timer expired", peer(nil))
	l.Warn("sent notification", peer(log.Fields{"Code": uint8(4), "Subcode": uint8(0)}))
	l.Info("peer graceful restart", peer(log.Fields{"State": "BGP_FSM_ESTABLISHED"}))
	l.Info("peer graceful restart", peer(log.Fields{"State": "BGP_FSM_ACTIVE"}))
	l.Warn("no peer", log.Fields{"Topic": "Policy"})
	require.Equal(t, []string{
		"10.0.0.2 Socket: Connection refused",
		"10.0.0.2 Received: Peer de-configured",
		"10.0.0.2 Error: as number mismatch",
		"10.0.0.2 Socket: Connection closed",
		"10.0.0.2 Error: Hold timer expired",
		"10.0.0.2 Error: Hold timer expired",
	}, events.list)
	l.Info("peer graceful restart", peer(log.Fields{"State": "BGP_FSM_ESTABLISHED"}))
	require.Len(t, events.list, 6, "still because of the hold timer")
	l.Warn("other", peer(nil))
	l.Info("peer graceful restart", peer(log.Fields{"State": "BGP_FSM_ESTABLISHED"}))
	require.Equal(t, "10.0.0.2 Socket: Connection closed", events.list[len(events.list)-1])
	l.Debug(changed, peer(log.Fields{"old": "BGP_FSM_OPENCONFIRM", "new": "BGP_FSM_ESTABLISHED"}))
	require.Equal(t, "10.0.0.2 ", events.list[len(events.list)-1], "what failed before is over")
	require.Panics(t, func() { l.Panic("broken", nil) })
}
