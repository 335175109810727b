// Package etcd keeps objects in etcd v3, in the layout Calico uses, so that either of the two can read and write what
// the other wrote.
//
// It owns the mapping between objects and etcd: which key an object lives under (path.go), what its value looks like
// (value.go, ipam.go), and how list, compare-and-swap and watch become etcd requests. It refuses meaning: it neither
// defaults nor validates (datastore.Validating does).
//
//   - One write is one etcd transaction; an object's resourceVersion is the key's mod revision.
//   - A list is read in pages, all at the revision of the first.
//   - A watch resumes by revision through lost connections, restarts of etcd and loss of its leader, without gap or
//     duplicate. It ends by itself only when etcd has compacted what it would need next, or when etcd's data is not
//     the data it was (restored from a backup, another cluster): both are ErrCompacted, and the answer to both is to
//     list again.
//   - A consumer that is too slow costs no memory here: the watch is closed and opened again where the consumer is.
//   - Nothing waits forever for etcd: dialling and each request have a time limit, and the error of an unreachable etcd
//     says which endpoint failed, how, and what to look at.
//
// The IPAM kinds have no metadata in etcd beyond their name: uid, labels and creationTimestamp of a block, affinity,
// handle or IPAM configuration are not stored.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// The operations, as errors name them.
const (
	opGet    = "get"
	opList   = "list"
	opWatch  = "watch"
	opCreate = "create"
	opUpdate = "update"
	opDelete = "delete"
	opReady  = "reach"
)

// Client is the etcd backend. It implements datastore.Client.
type Client struct {
	cfg Config
	log *slog.Logger
	eps []string    // normalised endpoint URLs
	tls *tls.Config // nil without TLS

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // watches and the patrol

	dial chan struct{} // holds one token: whoever has it may set conn
	conn atomic.Pointer[clientv3.Client]

	slowAfter time.Duration
	prompt    chan struct{} // has the patrol make a turn now; room for one

	mu       sync.Mutex // guards the following
	watchers map[*watcher]struct{}
}

var _ datastore.Client = (*Client)(nil)

// New checks the settings and returns a client. It does not contact etcd: the first operation does, so that a daemon may
// start before its datastore. (With DiscoverySRV it asks DNS.) Ready tells whether etcd can be reached.
func New(ctx context.Context, cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	c := &Client{cfg: cfg, log: cfg.Logger, dial: make(chan struct{}, 1), watchers: map[*watcher]struct{}{}, slowAfter: slowAfter, prompt: make(chan struct{}, 1)}
	var err error
	if c.eps, err = cfg.endpoints(ctx); err != nil {
		return nil, err
	}
	if c.tls, err = cfg.tls(); err != nil {
		return nil, err
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("ETCD_USERNAME and ETCD_PASSWORD must be set both or not at all")
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if cfg.BookmarkEvery > 0 {
		c.tasks.Go(c.patrol)
	}
	return c, nil
}

// Ready answers whether etcd serves consistent reads now.
func (c *Client) Ready(ctx context.Context) error {
	err := c.do(ctx, opReady, api.Key{}, func(ctx context.Context, conn *clientv3.Client) error {
		_, err := conn.Get(ctx, ipamConfigPath, clientv3.WithCountOnly())
		return err
	})
	return ofNone(err)
}

// Full answers whether etcd takes no more writes, because a member has used up its quota or its disk (the alarm NOSPACE).
func (c *Client) Full(ctx context.Context) error {
	err := c.do(ctx, opReady, api.Key{}, func(ctx context.Context, conn *clientv3.Client) error {
		// By the connection that there is: the client's own Status makes one for each question.
		status, err := etcdserverpb.NewMaintenanceClient(conn.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
		if err != nil {
			return err
		}
		if slices.ContainsFunc(status.GetErrors(), func(e string) bool { return strings.Contains(e, etcdserverpb.AlarmType_NOSPACE.String()) }) {
			return rpctypes.ErrNoSpace
		}
		return nil
	})
	return ofNone(err)
}

// ofNone is an error of an operation on no object.
func ofNone(err error) error {
	var e *datastore.Error
	switch {
	case !errors.As(err, &e):
		return err
	case e.Reason != nil: // it is about no object, so it names none
		return fmt.Errorf("etcd: %w: %w", e.Reason, e.Err)
	default:
		return fmt.Errorf("etcd: %w", e.Err)
	}
}

// Close ends all watches and the connection, and waits for both. Closing again does nothing.
func (c *Client) Close() error {
	c.mu.Lock() // so that no watch begins between the two
	c.cancel()
	c.mu.Unlock()
	c.tasks.Wait()
	c.dial <- struct{}{} // from now on nobody dials
	if conn := c.conn.Swap(nil); conn != nil {
		if err := conn.Close(); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("closing the connection to etcd: %w", err)
		}
	}
	<-c.dial
	return nil
}
