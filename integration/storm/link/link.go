// Package link is a bad network on loopback: a TCP proxy for each server, which passes bytes on, holds them back, lets few of
// them through, or cuts connections, as it is told while they run.
package link

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muslin-net/muslin/internal/loopback"
)

// State is how the network is.
type State struct {
	Cut  bool // connections are reset, and new ones too
	Held bool // nothing passes, either way, and nobody is told: a half-open connection
	// BytesPerSecond limits what passes towards the client of each connection; 0 does not.
	BytesPerSecond int
}

// Network is the network between some clients and their servers. Make one by New; its methods may be called from any goroutine.
type Network struct {
	mu      sync.Mutex // guards all below
	state   State
	changed chan struct{} // closed when state is replaced
	pipes   map[*pipe]struct{}
	doors   map[string]net.Listener // by the server's address
	closed  bool

	running sync.WaitGroup
	down    atomic.Int64 // bytes that went to clients
	up      atomic.Int64 // bytes that went to servers
}

// pipe is a connection through the network.
type pipe struct{ client, server net.Conn }

// close resets both ends.
func (p *pipe) close() {
	for _, c := range []net.Conn{p.client, p.server} {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset; if that cannot be had, an end
			c.Close()
		}
	}
}

// New returns a network that passes everything.
func New() *Network {
	return &Network{changed: make(chan struct{}), pipes: map[*pipe]struct{}{}, doors: map[string]net.Listener{}}
}

// To is the address by which a server is reached through the network.
func (n *Network) To(server string) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return "", errors.New("the network is closed")
	}
	if l := n.doors[server]; l != nil {
		return l.Addr().String(), nil
	}
	l, err := net.Listen("tcp", loopback.Address())
	if err != nil {
		return "", err
	}
	n.doors[server] = l
	n.running.Go(func() { n.accept(l, server) })
	return l.Addr().String(), nil
}

// Set changes the network. A cut ends what there is.
func (n *Network) Set(s State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = s
	close(n.changed)
	n.changed = make(chan struct{})
	if s.Cut {
		n.reset()
	}
}

// Drop ends all connections and lets new ones be made.
func (n *Network) Drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reset()
}

func (n *Network) reset() {
	for p := range n.pipes {
		p.close()
	}
}

// Bytes are how many went to clients and to servers.
func (n *Network) Bytes() (down, up int64) { return n.down.Load(), n.up.Load() }

// Close ends everything and waits for it.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	for _, l := range n.doors {
		l.Close()
	}
	n.state = State{Cut: true}
	close(n.changed)
	n.changed = make(chan struct{})
	n.reset()
	n.mu.Unlock()
	n.running.Wait()
}

func (n *Network) now() (State, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state, n.changed
}

func (n *Network) accept(l net.Listener, server string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n.running.Go(func() { n.carry(c, server) })
	}
}

func (n *Network) carry(client net.Conn, server string) {
	p := &pipe{client: client}
	if n.pass() != nil {
		p.close()
		return
	}
	far, err := net.Dial("tcp", server)
	if err != nil {
		p.close()
		return
	}
	p.server = far
	if s, _ := n.now(); s.BytesPerSecond > 0 {
		_ = far.(*net.TCPConn).SetReadBuffer(4 << 10) // what waits should wait at the server, not here
	}
	n.mu.Lock()
	cut := n.state.Cut || n.closed
	if !cut {
		n.pipes[p] = struct{}{}
	}
	n.mu.Unlock()
	if cut {
		p.close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { n.copy(p, p.client, p.server, &n.down, true) })
	both.Go(func() { n.copy(p, p.server, p.client, &n.up, false) })
	both.Wait()
	n.mu.Lock()
	delete(n.pipes, p)
	n.mu.Unlock()
}

// errCut is why nothing passes any more.
var errCut = errors.New("the network is cut")

// pass waits until something may pass.
func (n *Network) pass() error {
	for {
		s, changed := n.now()
		switch {
		case s.Cut:
			return errCut
		case !s.Held:
			return nil
		}
		<-changed
	}
}

// copy carries one direction until it ends; then the other one ends too.
func (n *Network) copy(p *pipe, to io.Writer, from io.Reader, count *atomic.Int64, limited bool) {
	defer p.close()
	buffer := make([]byte, 32<<10)
	for {
		size := len(buffer)
		if s, _ := n.now(); limited && s.BytesPerSecond > 0 {
			size = max(1, min(size, s.BytesPerSecond/20))
		}
		read, err := from.Read(buffer[:size])
		if read > 0 {
			if n.pass() != nil {
				return
			}
			if limited {
				n.linger(read)
			}
			if _, err := to.Write(buffer[:read]); err != nil {
				return
			}
			count.Add(int64(read))
		}
		if err != nil {
			return
		}
	}
}

// linger takes as long as so many bytes take at the present rate, or until the network changes.
func (n *Network) linger(bytes int) {
	s, changed := n.now()
	if s.BytesPerSecond <= 0 {
		return
	}
	select {
	case <-changed:
	case <-time.After(time.Duration(bytes) * time.Second / time.Duration(s.BytesPerSecond)):
	}
}
