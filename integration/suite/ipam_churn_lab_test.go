//go:build lab

package suite

import (
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/ipam/lease"
)

// churned is how many pods are added or deleted.
const churned = 2000

// TestAddressesOutliveChurn: pods come and go on four nodes while processes are killed at random and etcd is away for a
// minute. When all is over, blocks, handles, kernels and journals say the same.
func TestAddressesOutliveChurn(t *testing.T) {
	c := up(t, "suite-leases", lab.ModeDirect, onEtcd)
	nodes := []string{"master", "worker-1", "worker-2", "worker-3"}
	links := func() (out []string) {
		for _, node := range nodes {
			out = append(out, c.sh(t, node, "ip -br link | grep -c '^cali' || true; ip route | grep -c 'dev cali' || true"))
		}
		return out
	}
	before := links()
	churning := c.churn(t, nodes...)

	var kills atomic.Int64
	over := make(chan struct{})
	done := make(chan struct{})
	go func() { // each is started again at once
		defer close(done)
		for {
			v := victim{nodes[rand.IntN(len(nodes))], lab.ProcessFelix}
			if rand.IntN(5) == 0 {
				v = typha
			}
			select {
			case <-over:
				return
			case <-time.After(time.Duration(500+rand.IntN(1500)) * time.Millisecond): // the pace of the trouble; nothing waits for it
			}
			if !assert.NoError(t, c.Kill(t.Context(), v.node, v.process)) || !assert.NoError(t, c.Start(t.Context(), v.node, v.process)) {
				return
			}
			kills.Add(1)
		}
	}()
	churning.awaitTotal(t, churned/2)
	c.kill(t, etcd)
	time.Sleep(time.Minute) // as long as it is to be away
	c.start(t, etcd)
	churning.awaitTotal(t, churned)
	close(over)
	<-done
	churning.end()
	t.Logf("%d processes were killed", kills.Load())

	for _, node := range nodes {
		c.awaitReady(t, node)
	}
	c.awaitStored(t)
	c.reachable(t)
	eventually(t, 2*patience, func() string { return c.disagreement(t, nodes) })
	for _, name := range churning.left(t, c) {
		c.del(t, name)
	}
	c.awaitStored(t)
	eventually(t, 2*patience, func() string { return c.disagreement(t, nodes) })
	require.Equal(t, before, links(), "interfaces and routes of pods in the kernels")
}

// awaitTotal waits until so many pods were added or deleted, as long as it goes on.
func (ch *churn) awaitTotal(t *testing.T, n int) {
	t.Helper()
	for ch.total() < n {
		ch.awaitMore(t, 1)
	}
}

// disagreement tells what the nodes' journals hold and the blocks do not, or the other way round.
func (c *cluster) disagreement(t *testing.T, nodes []string) string {
	t.Helper()
	held := map[string]string{} // address to node
	for _, node := range nodes {
		journal, err := base64.StdEncoding.DecodeString(strings.TrimSpace(c.run(t, node, "base64", "-w0", "/var/lib/calico/felix/addresses/journal")))
		require.NoError(t, err)
		s, _, _, err := lease.Decode(journal)
		if err != nil {
			return fmt.Sprintf("the journal of %s: %v", node, err) // it may be read in the middle of a write
		}
		for a, slot := range s.Slots {
			if slot.Phase != lease.Warm && slot.Phase != lease.Cooling {
				return fmt.Sprintf("%s is %s on %s", a, slot.Phase, node)
			}
			held[a.String()] = node
		}
		for handle, debt := range s.Debts {
			if !debt.Held {
				return fmt.Sprintf("%s is still to be freed on %s", handle, node)
			}
		}
	}
	there := map[string]string{}
	for _, m := range warmRow.FindAllStringSubmatch(c.run(t, "master", "calicoctl", "ipam", "check", "--show-all-ips"), -1) {
		there[m[1]] = m[2]
	}
	if !maps.Equal(held, there) {
		return fmt.Sprintf("the journals hold %v, and the blocks say %v", held, there)
	}
	return ""
}

var warmRow = regexp.MustCompile(`(?m)(\d+\.\d+\.\d+\.\d+).*Node\((\S+)\) warm pool`)
