package server_test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/loopback"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/server"
)

// A replica that stops serves its clients until they have gone, and lets nobody in: who came now would be cut off with it.
func TestStoppingReplicaLetsNobodyIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	own := loopback.Address()
	r := w.replica(func(c *server.Config) { c.Replicas, c.StopWait = []string{own, loopback.Address()}, patience })
	r.put("n1", 1, policy("a", "1"))
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{})
	require.Len(t, s.chunk().GetItems(), 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	eventually(t, "connections are refused", func() bool {
		c, err := net.Dial("tcp", own)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	r.put("n1", 2, policy("a", "2"))
	require.Len(t, s.chunk().GetItems(), 1, "who is there is served")
	require.NoError(t, s.CloseSend())
	<-stopped
}
