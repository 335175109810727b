package gobgp

import (
	"bufio"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/osrg/gobgp/v3/pkg/config/oc"
	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/wire"
)

// gobgp writes an UPDATE for each IPv6 prefix, for each withdrawal, and for each change; it reads attributes that do not end
// where they should as it pleases; it cannot take back what policy has come to reject from peers that are sent all paths; and
// it asks the kernel twice for each message. And it drops, without a word, what comes in before the clock time at which the
// session came up, which is all that comes after the clock was set back. So while a session is up gobgp reads and writes through a connection of ours,
// which package wire helps.
//
// gobgp logs that a session comes up in its loop, under the session's lock, and only then begins to use the connection for
// more than a handshake: that is the moment to put ours in its place. What this relies on is names and types in the version
// that go.mod has; if they are others gobgp keeps its own, and sends the best path alone. TestGobgpLendsItsConnections fails
// then. gobgp takes connections for TCP's own where it sets a TTL, which it does when one is new, and when the TTL of a session
// changes: such a session is made anew (policy.Compare, description).

const (
	// linger is how long what is said waits, after something was said, for more that is said alike. A single UPDATE does not
	// wait.
	linger = 2 * time.Millisecond
	// readAhead is how much is read of a connection at once, in bytes. It holds any message.
	readAhead = 4 * wire.MaxLen
)

// connection is that of a session that is up.
type connection struct {
	net.Conn
	mended func() // called when an UPDATE counts as a withdrawal

	// Owned by the reader:
	first  func() // called before the first message is read; nil afterwards
	in     *bufio.Reader
	unread []byte // of the last message
	plain  bool   // what comes is not BGP: gobgp shall see for itself

	mu      sync.Mutex // guards the following, and writing
	packer  *wire.Packer
	out     []byte
	lingers bool        // what comes waits for later
	later   *time.Timer // of overdue
	failed  error
}

func newConnection(of net.Conn, packer *wire.Packer, first, mended func()) *connection {
	c := &connection{Conn: of, first: first, mended: mended, in: bufio.NewReaderSize(of, readAhead), packer: packer}
	c.later = time.AfterFunc(linger, c.overdue)
	return c
}

// Read reads on in what the peer says, mended.
func (c *connection) Read(to []byte) (int, error) {
	if c.first != nil {
		c.first()
		c.first = nil
	}
	if len(c.unread) == 0 && !c.plain {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if c.plain {
		return c.in.Read(to)
	}
	n := copy(to, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// next takes the next message.
func (c *connection) next() error {
	head, err := c.in.Peek(wire.HeaderLen)
	if err != nil {
		return err
	}
	length := wire.Length(head)
	if c.plain = length < wire.HeaderLen || length > wire.MaxLen; c.plain {
		return nil
	}
	message, err := c.in.Peek(length)
	if err != nil {
		return err
	}
	var mended wire.Mended
	if c.unread, mended = wire.Mend(message); mended == wire.Withdrawn {
		c.mended()
	}
	_, err = c.in.Discard(length) // what was taken stays in its place until more is read
	return err
}

// Write takes a message of gobgp's, which writes whole ones. It may be sent a moment later.
func (c *connection) Write(message []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	said := wire.Withhold(message, policy.TagAdmin)
	if !c.packer.Add(said) {
		c.flush()
		if !c.packer.Add(said) {
			c.send(said)
		}
	}
	if !c.lingers {
		c.pause()
	}
	if c.failed != nil {
		return 0, c.failed
	}
	return len(message), nil
}

// pause sends what waits, and has what comes next wait for a moment if there was anything. It is called with mu held.
func (c *connection) pause() {
	if c.lingers = c.packer.Waiting(); c.lingers {
		c.flush()
		c.later.Reset(linger)
	}
}

// overdue ends the wait. If what waits cannot be sent, nobody may come to hear that from Write.
func (c *connection) overdue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pause(); c.failed != nil {
		_ = c.Close()
	}
}

// flush sends what waits. It is called with mu held.
func (c *connection) flush() {
	c.out = c.packer.Flush(c.out[:0])
	c.send(c.out)
}

// send is called with mu held.
func (c *connection) send(messages []byte) {
	if c.failed == nil && len(messages) > 0 {
		_, c.failed = c.Conn.Write(messages)
	}
}

// Close closes it. What waits is lost: gobgp says its last word before.
func (c *connection) Close() error {
	c.later.Stop()
	return c.Conn.Close()
}

// lends tells whether gobgp keeps what takeOver and goesIdle want where they look for it.
func lends(s *server.BgpServer) bool {
	peers, ok := reflect.TypeOf(s).Elem().FieldByName("neighborMap")
	if !ok || peers.Type.Kind() != reflect.Map || peers.Type.Key().Kind() != reflect.String {
		return false
	}
	session, ok := pointed(peers.Type.Elem(), "fsm")
	if !ok {
		return false
	}
	for name, kind := range map[string]reflect.Type{
		"conn": reflect.TypeFor[net.Conn](), "marshallingOptions": reflect.TypeFor[*bgp.MarshallingOption](),
		"pConf": reflect.TypeFor[*oc.Neighbor](), "lock": reflect.TypeFor[sync.RWMutex](), "state": reflect.TypeFor[bgp.FSMState](),
		"gracefulRestartTimer": reflect.TypeFor[*time.Timer](),
	} {
		if f, ok := pointed(session.Type, name); !ok || f.Type != kind {
			return false
		}
	}
	return true
}

// pointed is a field of the struct that a pointer leads to.
func pointed(p reflect.Type, field string) (f reflect.StructField, ok bool) {
	if p.Kind() != reflect.Pointer || p.Elem().Kind() != reflect.Struct {
		return f, false
	}
	return p.Elem().FieldByName(field)
}

// takeOver has gobgp use a connection of ours with a peer from now on, if it lends them. It is called in gobgp's loop with the
// lock of the peer's session held; the key is gobgp's for the peer.
func (e *Engine) takeOver(key string) {
	if !e.lent {
		return
	}
	e.hide(address(key))
	peer := peersOf(e.server).MapIndex(reflect.ValueOf(key))
	if !peer.IsValid() || peer.IsNil() {
		return
	}
	session := sessionOf(peer)
	conn := opened(session.FieldByName("conn")).Addr().Interface().(*net.Conn)
	lock, config := lockOf(peer), configOf(peer)
	agreed := []*bgp.MarshallingOption{opened(session.FieldByName("marshallingOptions")).Interface().(*bgp.MarshallingOption)}
	numbered := func(f bgp.RouteFamily) bool { return bgp.IsAddPathEnabled(false, f, agreed) }
	*conn = newConnection(*conn, wire.NewPacker(numbered(bgp.RF_IPv4_UC), numbered(bgp.RF_IPv6_UC)), func() {
		lock.Lock()
		defer lock.Unlock()
		config.Timers.State.Uptime = 0 // nothing came in before it
	}, func() {
		e.reasons.Warn("the received Update message was treated as withdraw", log.Fields{
			"Topic": "Peer", "Key": key, "Error": "an attribute reaches beyond the attributes' end",
		})
	})
}
