// Package client is how everything that is not typha talks to typha: felix and confd follow their node's view by Run,
// calico-node registers, felix reports endpoints and takes addresses, calicoctl asks for live state.
//
// It owns the connection (choice of replica, reconnects, resuming), the assembly of chunks into whole batches, the
// client's copy of what it has (so that a reconnect, to any replica, transfers the difference only), and the saved view
// on disk. It hands out values of api/view and of its own; no wire message crosses its border.
//
// It refuses to interpret: what an item means is its user's business.
package client

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/rpc"
)

// View is which view of its node a client follows.
type View uint8

// The views: felix follows NodeView, confd BGPView.
const (
	NodeView View = iota + 1
	BGPView
)

// String is the view's name.
func (v View) String() string {
	switch v {
	case NodeView:
		return "NODE"
	case BGPView:
		return "BGP"
	}
	return "none"
}

// Config says where typha is and who is calling.
type Config struct {
	// Addresses of one or more replicas, as host:port. Replicas that typha tells of are used too.
	Addresses []string
	// ServerName is the name that the replicas' certificates must carry; empty means the host of the address dialled.
	ServerName string
	// Files hold the CA's certificate and the client's certificate and key.
	Files rpc.Files
	// Await says that another process of this node brings the files: while they are not there typha counts as out of reach.
	Await bool

	// Node and View say what Run follows. They are not needed for anything else.
	Node string
	View View
	// StatePath is the file that keeps the applied view over restarts; empty keeps none.
	StatePath string
	// UnsavedPath is a file that is there while more was handed over than StatePath has. It must lie where a reboot clears it, as
	// it clears what was programmed: after a crash a saved view that is older than that is not handed over, so that nothing which
	// is forbidden by now is let through until typha is there. Empty: it is handed over in any case.
	UnsavedPath string
	// SaveDelay is how long a changed view waits at most to be saved; 0 means 1 s.
	SaveDelay time.Duration
	// SetDeltas makes batches carry changes of sets as view.IPSetDelta where the receiver has the set already; otherwise
	// every changed set is handed over whole. Deltas of one set come in the order in which they are to be applied.
	SetDeltas bool
	// OnStatus, if not nil, is told whenever the connection comes or goes. It must not block.
	OnStatus func(Status)
	// Dial are further options of the connections, for who looks at what goes over them.
	Dial []grpc.DialOption
	// Log takes what happens to the connection; nil means slog.Default.
	Log *slog.Logger
}

// Status says how the stream is doing.
type Status struct {
	// Address of the replica that serves the stream; empty while there is none.
	Address string
	// InSync is true once the whole view has been received over this stream.
	InSync bool
	// Pods says that this typha follows the pods of Kubernetes, and tells of each before it is made.
	Pods bool
	// Err says why there is no stream; nil while there is one and before the first attempt.
	Err error
}

// Client talks to typha. It may be used by many goroutines; Run by one at a time.
type Client struct {
	cfg      Config
	log      *slog.Logger
	software string
	replicas *replicas
	saver    *saver               // nil without a StatePath
	hello    func(*session) error // says who a new stream is of, and what is held

	mu      sync.Mutex // guards all below
	status  Status
	session *session // the running stream, if there is one
	ledger  ledger   // what was handed over, and how much of it was applied
	unsaved bool     // the file at UnsavedPath is there
}

// New prepares a client. Nothing is dialled before it is needed. A certificate that cannot be read, or no address, is an
// error here.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("no address of typha is given; name at least one as host:port")
	}
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	cfg.SaveDelay = cmp.Or(cfg.SaveDelay, time.Second)
	if _, err := rpc.ClientTLS(cfg.Files, cfg.ServerName); err != nil && (!cfg.Await || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	c := &Client{
		cfg: cfg, log: cfg.Log.With("part", "typha-client"), software: daemon.Version(),
		replicas: newReplicas(cfg), ledger: newLedger(), hello: (*session).hello,
	}
	if cfg.StatePath != "" {
		c.saver = newSaver(cfg.StatePath, cfg.SaveDelay, c.log)
	}
	return c, nil
}

// Close closes all connections. It does not stop Run, whose context does.
func (c *Client) Close() error { return c.replicas.close() }

// Status tells how the stream is doing.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// setStatus is called by Run only, so that what OnStatus is told last is true.
func (c *Client) setStatus(s Status) {
	c.mu.Lock()
	was := c.status
	c.status = s
	c.mu.Unlock()
	changed := was.Address != s.Address || was.InSync != s.InSync || was.Pods != s.Pods || fmt.Sprint(was.Err) != fmt.Sprint(s.Err)
	if changed && c.cfg.OnStatus != nil {
		c.cfg.OnStatus(s)
	}
}
