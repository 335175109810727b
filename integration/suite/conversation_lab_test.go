//go:build lab

package suite

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pace is the time between two messages of a conversation.
const pace = 20 * time.Millisecond

// conversation is a TCP connection between two pods on which numbers go back and forth all the time, each one more than the
// one before.
type conversation struct {
	name string

	mu      sync.Mutex // guards the following
	rounds  int
	longest time.Duration // a number and its answer took
	err     error
}

// conversations are several, told apart by their ports.
type conversations []*conversation

// converse opens connections between pairs of pods and keeps them busy until the test ends.
func (c *cluster) converse(t *testing.T, pairs ...[2]string) conversations {
	t.Helper()
	return c.converseOver(t, false, pairs...)
}

// converseOver is converse over IPv4 or IPv6.
func (c *cluster) converseOver(t *testing.T, v6 bool, pairs ...[2]string) conversations {
	t.Helper()
	var all conversations
	for i, p := range pairs {
		all = append(all, c.conversation(t, p[0], p[1], netip.AddrPortFrom(firstOf(c.pod(t, p[1]), v6), uint16(7000+i))))
	}
	all.goOn(t, "at the beginning")
	return all
}

func (c *cluster) conversation(t *testing.T, from, to string, at netip.AddrPort) *conversation {
	t.Helper()
	client, server := c.connection(t, from, to, at)
	talk := &conversation{name: fmt.Sprintf("%s to %s (%s)", from, to, at)}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, server) })
	both.Go(func() { talk.talk(client) })
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
		both.Wait()
	})
	return talk
}

// connection opens one between two pods, at an address of the second one.
func (c *cluster) connection(t *testing.T, from, to string, at netip.AddrPort) (client, server *net.TCPConn) {
	t.Helper()
	ctx := within(t, patience)
	ln, err := c.Listen(ctx, to, at)
	require.NoError(t, err)
	defer ln.Close()
	client, err = c.Dial(ctx, from, at)
	require.NoError(t, err)
	server, err = ln.AcceptTCP()
	require.NoError(t, err)
	return client, server
}

func (c *conversation) talk(conn *net.TCPConn) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	said, heard := make([]byte, 8), make([]byte, 8)
	for number := uint64(1); ; number++ {
		binary.BigEndian.PutUint64(said, number)
		began := time.Now()
		_, err := conn.Write(said)
		if err == nil {
			_, err = io.ReadFull(conn, heard)
		}
		if got := binary.BigEndian.Uint64(heard); err == nil && got != number {
			err = fmt.Errorf("said %d, and heard %d", number, got)
		}
		c.mu.Lock()
		c.rounds++
		c.longest = max(c.longest, time.Since(began))
		c.err = err
		c.mu.Unlock()
		if err != nil {
			return
		}
		<-tick.C
	}
}

func (c *conversation) look() (rounds int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rounds, c.err
}

// takeLongest is the longest wait since it was asked for last.
func (c *conversation) takeLongest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.longest
	c.longest = 0
	return d
}

// haveTalked tells which of them have had no answer since this was asked for.
func (cs conversations) haveTalked() func() string {
	before := make([]int, len(cs))
	for i, c := range cs {
		before[i], _ = c.look()
	}
	return func() string {
		for i, c := range cs {
			if now, err := c.look(); err != nil || now == before[i] {
				return fmt.Sprintf("no answer from %s: %v", c.name, err)
			}
		}
		return ""
	}
}

// goOn requires that all connections are alive: more answers come.
func (cs conversations) goOn(t *testing.T, when string) {
	t.Helper()
	for _, c := range cs {
		before, _ := c.look()
		eventually(t, patience, func() string {
			now, err := c.look()
			switch {
			case err != nil:
				return fmt.Sprintf("the connection %s broke (%s): %v", c.name, when, err)
			case now < before+10:
				return fmt.Sprintf("the connection %s stands still (%s)", c.name, when)
			}
			return ""
		})
	}
}

// wereSmooth requires that no answer took longer than d since this was asked last.
func (cs conversations) wereSmooth(t *testing.T, d time.Duration) {
	t.Helper()
	for _, c := range cs {
		_, err := c.look()
		assert.NoError(t, err, c.name)
		assert.Less(t, c.takeLongest(), d, "the longest wait for an answer from %s", c.name)
	}
}

// takeLongest is the longest wait of all since it was asked for last.
func (cs conversations) takeLongest() (d time.Duration) {
	for _, c := range cs {
		d = max(d, c.takeLongest())
	}
	return d
}
