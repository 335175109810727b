package server

import (
	"fmt"
	"log/slog"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// What makes room for too many unfinished handshakes is the oldest of the host with most of them, not the oldest of all.
func TestTheBusiestHostMakesRoom(t *testing.T) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refused"}, []string{"reason"})
	d := newDoor(nil, newRefusals(slog.New(slog.DiscardHandler), total))
	arrive := func(host string) *arrival {
		c, _ := net.Pipe()
		a := &arrival{Conn: c, door: d, host: host}
		d.arrives(a)
		return a
	}
	patient := arrive("quiet")
	var busy []*arrival
	for range maxHandshakes - 1 {
		busy = append(busy, arrive("busy"))
	}
	require.False(t, busy[0].dropped.Load(), "there is room for so many")
	for i := range 3 {
		arrive(fmt.Sprint("other", i))
		require.True(t, busy[i].dropped.Load())
		require.False(t, busy[i+1].dropped.Load())
	}
	require.False(t, patient.dropped.Load())
	require.Equal(t, maxHandshakes, d.count)
}
