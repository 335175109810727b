//go:build lab

package suite

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// bin is where make build puts the binaries.
func bin(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../bin")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "lab"), "run make build first")
	return dir
}

// cluster brings the demo's cluster up, changed as the test wishes, and removes it at the end. If the test failed, the logs
// of all processes are shown.
func cluster(t *testing.T, name string, change func(*lab.Topology)) (*lab.Lab, lab.Topology) {
	t.Helper()
	topology, err := lab.DemoTopology()
	require.NoError(t, err)
	if change != nil {
		change(&topology)
	}
	dir, err := os.MkdirTemp("", "suite")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, lab.Options{Name: name, StateDir: filepath.Join(dir, "state"), BinDir: bin(t), Topology: topology, Attached: true})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		assert.NoError(t, l.Down(context.Background()))
	})
	return l, topology
}

func showLogs(t *testing.T, l *lab.Lab) {
	st, err := l.Status(context.Background())
	if err != nil {
		return
	}
	for _, p := range st.Processes {
		if text, err := os.ReadFile(p.Log); err == nil && len(text) > 0 {
			t.Logf("%s on %s (%s, started %d times):\n%s", p.Name, p.Node, p.State, p.Starts, text[max(0, len(text)-4000):])
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// expect probes from everyone to all pods and requires what the mode promises.
func expect(t *testing.T, l *lab.Lab, topology lab.Topology, mode lab.Mode) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	require.NoError(t, l.AwaitRoutes(ctx, topology, mode))
	want, err := l.Expect(ctx, mode)
	require.NoError(t, err)
	m, err := l.Matrix(ctx)
	require.NoError(t, err)
	require.Empty(t, m.Wrong(want))
}

// conversation is a TCP connection between two pods on which a byte goes back and forth all the time.
type conversation struct {
	mu     sync.Mutex
	rounds int
	err    error
}

// converse opens a connection from one pod to another and keeps it busy until the test ends.
func converse(t *testing.T, l *lab.Lab, from, to string) *conversation {
	t.Helper()
	ctx := within(t, 20*time.Second)
	ln, err := l.Listen(ctx, to, netip.MustParseAddrPort("0.0.0.0:7"))
	require.NoError(t, err)
	st, err := l.Status(ctx)
	require.NoError(t, err)
	var addr netip.Addr
	for _, p := range st.Pods {
		if p.ID == to {
			addr = p.Addresses[0]
		}
	}
	client, err := l.Dial(ctx, from, netip.AddrPortFrom(addr, 7))
	require.NoError(t, err)
	server, err := ln.AcceptTCP()
	require.NoError(t, err)
	c := &conversation{}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, server) })
	both.Go(func() { c.talk(client) })
	t.Cleanup(func() {
		client.Close()
		server.Close()
		ln.Close()
		both.Wait()
	})
	return c
}

func (c *conversation) talk(conn *net.TCPConn) {
	b := []byte{1}
	for {
		_, err := conn.Write(b)
		if err == nil {
			_, err = io.ReadFull(conn, b)
		}
		c.mu.Lock()
		c.rounds++
		c.err = err
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// goesOn requires that the connection is alive: many more answers come.
func (c *conversation) goesOn(t *testing.T, when string) {
	t.Helper()
	look := func() (int, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.rounds, c.err
	}
	before, err := look()
	require.NoError(t, err, "the connection broke: %s", when)
	require.Eventually(t, func() bool {
		now, err := look()
		return err == nil && now > before+100
	}, 5*time.Second, 5*time.Millisecond, "the connection stands still: %s", when)
}
