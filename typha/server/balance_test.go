package server_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// A replica that comes when all clients are elsewhere gets its share, and one that is not there gets nobody, however few it has.
func TestClientsSpreadOverReplicas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const nodes = 12
	for i := range nodes {
		n := &api.Node{}
		n.Name = fmt.Sprintf("n%d", i)
		_, err := w.store.Create(t.Context(), n)
		require.NoError(t, err)
	}
	a, b, gone := loopback.Address(), loopback.Address(), loopback.Address()
	typha := func(own, other string) *replica {
		return w.typha(func(c *server.Config) {
			c.Replicas, c.BalanceEvery = []string{own, other, gone}, time.Second // others' loads are known a moment later
		})
	}
	one := typha(a, b)
	var clients []*client.Client
	for i := range nodes {
		clients = append(clients, w.follow(fmt.Sprintf("n%d", i), []string{a}, func(_ *client.Config, f *follower) { f.batches = make(chan client.Batch, 1000) }).client)
	}
	at := func(address string) (n int) {
		for _, c := range clients {
			if s := c.Status(); s.Address == address && s.InSync {
				n++
			}
		}
		return n
	}
	eventually(t, "all are at the only replica that is there", func() bool { return at(a) == nodes })
	two := typha(b, a)
	eventually(t, "they are spread", func() bool { return at(a)+at(b) == nodes && at(a) <= nodes/2+1 && at(b) <= nodes/2+1 })
	moved := func() float64 {
		return metric(t, one, "typha_clients_moved_total") + metric(t, two, "typha_clients_moved_total")
	}
	// What was moved is what was too much, and not all of them back and forth: each look moves a half of it.
	assert.LessOrEqual(t, moved(), 3.0*nodes)
}

// A replica that does not get to read the datastore keeps nobody whom another one could serve.
func TestReplicaThatHasReadNothingSendsItsClientsOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := loopback.Address(), loopback.Address()
	w.replica(func(c *server.Config) { c.Replicas, c.CheckpointWait = []string{a, b}, 50*time.Millisecond })
	two := w.replica(func(c *server.Config) { c.Replicas = []string{b, a} })
	two.put("n1", 1, policy("a", "1"))
	// The client knows of the first alone, and is told of no other: it is refused, again and again.
	f := w.follow("n1", []string{a})
	eventually(t, "it is refused", func() bool { return f.client.Status().Err != nil })
	assert.ErrorContains(t, f.client.Status().Err, "has not read the datastore yet")
	f.silent()
	// One that knows both ends at the second, wherever it begins.
	for range 5 {
		g := w.follow("n1", []string{a, b})
		assert.Len(t, g.next().Updates, 1)
		g.stop()
	}
}
