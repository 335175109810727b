package storm

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	dsetcd "github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/integration/process"
	"github.com/muslin-net/muslin/integration/storm/history"
	"github.com/muslin-net/muslin/integration/storm/link"
	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/views"
)

// Config says what a cluster is made of.
type Config struct {
	Typha    string // the program
	Dir      string // for logs, certificates and the datastore
	Replicas int
	Members  int   // of etcd; 0 means one
	Quota    int64 // of etcd, in bytes; 0 means more than is needed
	Size     Size
	Clients  int // of the first nodes, one each
	Seed     uint64
	Log      *slog.Logger
	Prepare  func(*Follower) // if set, is given each client before it begins
}

// Cluster is etcd, replicas of typha, what the datastore holds, and clients.
type Cluster struct {
	cfg       Config
	ca        *pki.CA
	etcd      *etcd
	replicas  []*Replica
	store     datastore.Client
	World     *World
	network   *link.Network // between clients and replicas
	Followers []*Follower
	writes    *history.Writes

	scratch *views.Store // what everything must be
	stop    func()
}

// Replica is one typha.
type Replica struct {
	*process.Process
	address string // that nodes are told
	health  string
	toEtcd  *link.Network
}

// NewCluster starts everything but the clients.
func NewCluster(ctx context.Context, cfg Config) (c *Cluster, err error) {
	c = &Cluster{cfg: cfg, network: link.New(), writes: &history.Writes{}, stop: func() {}}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.ca, err = pki.NewCA("storm", time.Now()); err != nil {
		return c, err
	}
	if c.etcd, err = newEtcd(cfg.Dir, cfg.Members, cfg.Quota); err != nil {
		return c, err
	}
	if err = c.etcd.startAll(); err != nil {
		return c, err
	}
	if c.store, err = dsetcd.New(ctx, dsetcd.Config{Endpoints: c.etcd.urls(), BookmarkEvery: time.Second, Logger: cfg.Log}); err != nil {
		return c, err
	}
	if err = c.until(ctx, "etcd answers", func() bool { return c.store.Ready(ctx) == nil }); err != nil {
		return c, err
	}
	c.World = NewWorld(cfg.Size, c.store, c.writes, cfg.Seed)
	if err = datastore.Init(ctx, datastore.Validating(c.store)); err != nil {
		return c, err
	}
	if err = c.World.Fill(ctx); err != nil {
		return c, err
	}
	for range cfg.Replicas {
		c.replicas = append(c.replicas, &Replica{address: loopback.Address(), health: loopback.Address(), toEtcd: link.New()})
	}
	for i, r := range c.replicas {
		if err = c.prepare(i, r); err != nil {
			return c, err
		}
		if err = r.Start(); err != nil {
			return c, err
		}
	}
	c.compute()
	return c, c.ready(ctx)
}

// prepare says how a replica is run.
func (c *Cluster) prepare(i int, r *Replica) error {
	host, err := netip.ParseAddrPort(r.address)
	if err != nil {
		return err
	}
	files, err := c.issue(fmt.Sprintf("typha%d", i), pki.Typha(host.Addr()))
	if err != nil {
		return err
	}
	var far []string
	for _, a := range c.etcd.addresses {
		through, err := r.toEtcd.To(a)
		if err != nil {
			return err
		}
		far = append(far, "http://"+through)
	}
	all := []string{r.address}
	for _, o := range c.replicas {
		if o != r {
			all = append(all, o.address)
		}
	}
	r.Process = &process.Process{
		Name: fmt.Sprintf("typha%d", i), Path: c.cfg.Typha, Log: filepath.Join(c.cfg.Dir, fmt.Sprintf("typha%d.log", i)),
		Args: []string{
			"--listen", r.address, "--health", r.health, "--ca", files.CA, "--cert", files.Cert, "--key", files.Key,
			"--replicas", strings.Join(all, ","), "--datastore", "etcdv3", "--datastore-endpoints", strings.Join(far, ","),
		},
	}
	return nil
}

func (c *Cluster) issue(name string, role pki.Role) (rpc.Files, error) {
	dir := filepath.Join(c.cfg.Dir, "pki", name)
	pair, err := c.ca.Issue(role, time.Now())
	if err != nil {
		return rpc.Files{}, err
	}
	return rpc.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}, pair.Write(dir)
}

// addresses are those of all replicas.
func (c *Cluster) addresses() (list []string) {
	for _, r := range c.replicas {
		list = append(list, r.address)
	}
	return list
}

// compute follows the datastore as a typha of its own that nobody ever restarts or cuts off, and whose views are thus what all
// views must come to.
func (c *Cluster) compute() {
	state := cache.New()
	c.scratch = views.NewStore()
	loop := intake.NewLoop(intake.New(c.store, state, intake.Options{Logger: c.cfg.Log}), compute.New(), c.scratch)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = loop.Run(ctx) }) // ends with ctx only
	c.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
}

// fromScratch are all views as computed from nothing but what the datastore holds now.
func (c *Cluster) fromScratch(ctx context.Context) (*views.Store, error) {
	c.stop()
	c.compute()
	revision, err := c.etcd.revision(ctx)
	if err != nil {
		return nil, err
	}
	return c.scratch, c.until(ctx, "the views are computed", func() bool {
		datastore.Prompt(c.store)
		return c.scratch.Reached(view.Checkpoint{"etcd": uint64(revision)})
	})
}

// patience is how long anything is waited for that must happen in the end.
const patience = 2 * time.Minute

// until waits for something.
func (c *Cluster) until(ctx context.Context, what string, holds func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for this: %s", what)
		case <-tick.C:
		}
	}
	return nil
}

// ready waits until all replicas that run are ready.
func (c *Cluster) ready(ctx context.Context) error {
	for _, r := range c.replicas {
		if r.PID() == 0 {
			continue
		}
		if err := c.until(ctx, r.Name+" is ready", func() bool { _, code, err := ask(ctx, r.health, "/readiness"); return err == nil && code == 200 }); err != nil {
			return fmt.Errorf("%w\n%s", err, r.Tail())
		}
	}
	return nil
}

// metrics are a replica's; empty if it does not answer.
func (r *Replica) metrics(ctx context.Context) map[string]float64 {
	text, _, err := ask(ctx, r.health, "/metrics")
	if err != nil {
		return map[string]float64{}
	}
	return process.Samples(text)
}

// Follow starts the clients.
func (c *Cluster) Follow() error {
	for _, node := range c.World.Nodes()[:c.cfg.Clients] {
		f, err := c.follower(node, c.network)
		if err != nil {
			return err
		}
		c.Followers = append(c.Followers, f)
		f.run()
	}
	return nil
}

func (c *Cluster) follower(node string, network *link.Network) (*Follower, error) {
	files, err := c.issue(node, pki.Node(node))
	if err != nil {
		return nil, err
	}
	f, err := newFollower(node, c.addresses(), files, network, c.writes, c.cfg.Log)
	if err == nil && c.cfg.Prepare != nil {
		c.cfg.Prepare(f)
	}
	return f, err
}

// expected is a node's view as it must be.
func expected(store *views.Store, node string) map[view.Key]view.Version {
	out := map[view.Key]view.Version{}
	for k, e := range store.View(views.Scope{Node: node, View: views.NodeView}) {
		out[k] = e.Version
	}
	return out
}

// Settle waits until every client has the view that it must have, computed from scratch, and returns what the judge has found
// since the cluster began. Nobody may write meanwhile but typha.
func (c *Cluster) Settle(ctx context.Context) error {
	store, err := c.fromScratch(ctx)
	if err != nil {
		return err
	}
	behind := slices.Clone(c.Followers)
	waited := c.until(ctx, "all views are what is computed from scratch", func() bool {
		behind = slices.DeleteFunc(behind, func(f *Follower) bool { return f.holds(expected(store, f.node)) })
		return len(behind) == 0
	})
	var faults []string
	for _, f := range c.Followers {
		f.mu.Lock()
		if slices.Contains(behind, f) {
			f.history.Finish(expected(store, f.node))
		}
		for _, fault := range f.history.Faults() {
			faults = append(faults, fault.String())
		}
		f.mu.Unlock()
	}
	if len(faults) > 0 {
		return fmt.Errorf("%d faults, of them:\n%s", len(faults), strings.Join(faults[:min(5, len(faults))], "\n"))
	}
	return waited
}

// synced waits until every client has a stream on which its view came in sync.
func (c *Cluster) synced(ctx context.Context) error {
	return c.until(ctx, "all clients follow", func() bool {
		return !slices.ContainsFunc(c.Followers, func(f *Follower) bool { return !f.last().Synced })
	})
}

// load is how many clients each replica has.
func (c *Cluster) load() []int {
	counts := make([]int, len(c.replicas))
	for _, f := range c.Followers {
		at := f.last().Replica
		for i, r := range c.replicas {
			if strings.HasSuffix(at, r.address) {
				counts[i]++
			}
		}
	}
	return counts
}

// Close ends everything.
func (c *Cluster) Close() {
	var running sync.WaitGroup
	for _, f := range c.Followers {
		running.Go(f.stop)
	}
	running.Wait()
	c.stop()
	for _, r := range c.replicas {
		r.End(syscall.SIGKILL)
		r.toEtcd.Close()
	}
	c.network.Close()
	if c.store != nil {
		c.store.Close()
	}
	if c.etcd != nil {
		c.etcd.endAll()
	}
}

// logs are the ends of what the processes said.
func (c *Cluster) logs() string {
	var out strings.Builder
	for _, r := range c.replicas {
		fmt.Fprintf(&out, "--- %s\n%s\n", r.Name, r.Tail())
	}
	for _, m := range c.etcd.members {
		fmt.Fprintf(&out, "--- %s\n%s\n", m.Name, m.Tail())
	}
	return out.String()
}

// exists tells whether a program is there.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
