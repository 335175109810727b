// Package kubernetes keeps objects in the API of Kubernetes, as Calico does, so that either of the two can read and write
// what the other wrote, and kubectl can too.
//
// It owns the mapping between objects and resources: which resource objects of a kind are made of (places.go), how custom
// resources look (layout.go, classic.go), and how list, compare-and-swap and watch become requests. What nodes, pods,
// namespaces, service accounts and network policies of Kubernetes say in our terms is package api/kubernetes's to tell. It
// refuses meaning: it neither defaults nor validates (datastore.Validating and the API server do).
//
//   - A revision is the resourceVersion of a kind. Those of different kinds cannot be compared. Kinds that are made of two
//     resources (Profile, NetworkPolicy) have revisions of two numbers, "12/34".
//   - A write is one request that holds only if the resource is what it was, with two exceptions: a status that the server
//     keeps apart is written by a second request, and IPAM objects are marked deleted before they are, as Calico does.
//   - A list is read in pages, all at the revision of the first.
//   - A watch resumes by revision through lost connections and API servers that are replaced. An API server that starts
//     anew remembers nothing of before, so that the watch may have to end with ErrCompacted; each watch waits for a random
//     while before it says so, since all consumers will list at once otherwise.
//   - Nothing waits forever, and each failure says what is the matter (the server away, credentials refused, a right or a CRD
//     missing) and what to do.
package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"k8s.io/client-go/rest"

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
)

// Client is the Kubernetes backend. It implements datastore.Client.
type Client struct {
	cfg  Config
	log  *slog.Logger
	host string // the server's URL, for messages
	rest *rest.Config
	http *http.Client

	core, networking rest.Interface
	native, classic  *layout

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // watches

	mu      sync.Mutex         // guards the following
	layout  *layout            // which of the two the cluster has; nil until that is known
	ill     map[api.Key]string // what the log has been told of resources
	failing int                // watches that fail at present
}

var _ datastore.Client = (*Client)(nil)

// New checks the settings and returns a client. It does not contact the API server: the first operation does, so that a
// daemon may start before its datastore. Ready tells whether it can be reached.
func New(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	conf, err := cfg.RESTConfig()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, log: cfg.Logger, host: conf.Host, rest: conf, ill: map[api.Key]string{}}
	if c.http, err = rest.HTTPClientFor(conf); err != nil {
		return nil, fmt.Errorf("settings of the Kubernetes API: %w; correct the certificates and the token", err)
	}
	if err := c.connect(conf); err != nil {
		return nil, err
	}
	if c.layout, err = c.override(cfg.APIGroup); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Ready answers whether the API server can be reached now, knows our kinds, and lets us read them.
func (c *Client) Ready(ctx context.Context) error {
	p, err := c.place(ctx, opList, "ClusterInformation", api.Key{Kind: "ClusterInformation", Name: "*"})
	if err != nil {
		return err
	}
	_, err = c.now(ctx, opList, api.Key{Kind: "ClusterInformation", Name: "*"}, &p.sources[0], "")
	return err
}

// Close ends all watches and connections, and waits for them. Closing again does nothing.
func (c *Client) Close() error {
	c.mu.Lock() // so that no watch begins between the two
	c.cancel()
	c.mu.Unlock()
	c.tasks.Wait()
	c.http.CloseIdleConnections()
	return nil
}
