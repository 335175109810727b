package link

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echo is a server that says everything again.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, n *Network, server string) net.Conn {
	address, err := n.To(server)
	require.NoError(t, err)
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c
}

// said says something and returns what comes back.
func said(c net.Conn, text string) (string, error) {
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	b := make([]byte, len(text))
	_, err := io.ReadFull(c, b)
	return string(b), err
}

func network(t *testing.T) *Network {
	n := New()
	t.Cleanup(n.Close)
	return n
}

func TestItPassesAndCounts(t *testing.T) {
	t.Parallel()
	server, n := echo(t), network(t)
	got, err := said(dial(t, n, server), "hello")
	require.NoError(t, err)
	assert.Equal(t, "hello", got)
	assert.Eventually(t, func() bool { down, up := n.Bytes(); return down == 5 && up == 5 }, 10*time.Second, time.Millisecond)
}

func TestACutEndsConnectionsAndRefusesOthers(t *testing.T) {
	t.Parallel()
	server, n := echo(t), network(t)
	c := dial(t, n, server)
	_, err := said(c, "hello")
	require.NoError(t, err)
	n.Set(State{Cut: true})
	_, err = said(c, "hello")
	require.Error(t, err)
	address, err := n.To(server)
	require.NoError(t, err)
	if refused, err := net.Dial("tcp", address); err == nil { // else it was refused so soon that it was never there
		t.Cleanup(func() { refused.Close() })
		_, err = said(refused, "hello")
		require.Error(t, err)
	}
	n.Set(State{})
	_, err = said(dial(t, n, server), "hello")
	require.NoError(t, err)
}

func TestWhatIsHeldComesLater(t *testing.T) {
	t.Parallel()
	server, n := echo(t), network(t)
	c := dial(t, n, server)
	_, err := said(c, "hello")
	require.NoError(t, err)
	n.Set(State{Held: true})
	_, err = c.Write([]byte("again"))
	require.NoError(t, err, "nobody is told")
	require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	require.Error(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	n.Set(State{})
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	assert.Equal(t, "again", string(b))
}

func TestDropLetsOthersIn(t *testing.T) {
	t.Parallel()
	server, n := echo(t), network(t)
	c := dial(t, n, server)
	_, err := said(c, "hello")
	require.NoError(t, err)
	n.Drop()
	_, err = said(c, "hello")
	require.Error(t, err)
	_, err = said(dial(t, n, server), "hello")
	require.NoError(t, err)
}

func TestASlowNetworkIsSlow(t *testing.T) {
	t.Parallel()
	server, n := echo(t), network(t)
	c := dial(t, n, server)
	n.Set(State{BytesPerSecond: 200})
	begin := time.Now()
	_, err := said(c, string(make([]byte, 60)))
	require.NoError(t, err)
	assert.Greater(t, time.Since(begin), 200*time.Millisecond, "less than the 300 ms that it takes at least would be a fast one")
}
