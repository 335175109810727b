package scale

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/integration/process"
	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/internal/loopback"
)

// Options say where the programs are, and where to what is said.
type Options struct {
	Typha string    // path of the binary
	Self  string    // path of a program that calls Serve when its argument is WorkerArgument
	Out   io.Writer // figures, one a line
	Log   io.Writer // progress
	// During is for how long changes are made for a figure; 0 means 20 s.
	During time.Duration
	// Profiles is a directory for profiles of typha, taken while figures are, and of what felix holds; empty takes none, since that is
	// not for nothing.
	Profiles string
}

// cluster is a generated world in an etcd, a typha and a crowd of clients, each in processes of their own.
type cluster struct {
	options Options
	world   *World
	writer  *Writer
	dir     string
	pki     string
	etcd    *process.Process
	url     string
	store   datastore.Client
	typha   *typha
	crowd   *crowd
	markers int
}

// newCluster fills an etcd with a world and starts typha over it.
func newCluster(ctx context.Context, o Options, s Shape) (*cluster, error) {
	world, err := NewWorld(s)
	if err != nil {
		return nil, err
	}
	c := &cluster{options: o, world: world, crowd: &crowd{}}
	if err := c.start(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context) (err error) {
	if c.dir, err = os.MkdirTemp("", "muslin-scale"); err != nil {
		return err
	}
	c.pki = filepath.Join(c.dir, "pki")
	if err := c.issue(); err != nil {
		return err
	}
	if c.etcd, c.url, err = startEtcd(ctx, c.dir); err != nil {
		return err
	}
	if c.store, err = etcd.New(ctx, etcd.Config{Endpoints: []string{c.url}, Logger: quiet}); err != nil {
		return err
	}
	c.writer = NewWriter(c.store)
	begin := time.Now()
	objects, err := c.writer.Fill(ctx, c.world, func(n int) { fmt.Fprintf(c.options.Log, "\rfilling: %d objects", n) })
	if err != nil {
		return err
	}
	fmt.Fprintf(c.options.Log, "\rfilled with %d objects in %.1f s\n", objects, time.Since(begin).Seconds())
	port := 0
	if c.options.Profiles != "" {
		port = profilePort
	}
	c.typha, err = startTypha(ctx, c.dir, c.options.Typha, c.url, c.pki, port)
	return err
}

// profilePort is where typha serves profiles if they are asked for. It is below those that the kernel chooses.
const profilePort = 15473

// profile takes a profile of typha, of a time from now on or, with 0, as of now, where profiles are asked for. The figure that is
// taken meanwhile is called name.
func (c *cluster) profile(name, kind string, during time.Duration) {
	if c.options.Profiles == "" {
		return
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/%s", profilePort, kind)
	if during > 0 {
		url += fmt.Sprintf("?seconds=%.0f", during.Seconds())
	}
	body, err := fetch(context.Background(), url)
	if err == nil {
		kind, _, _ = strings.Cut(kind, "?")
		err = os.WriteFile(filepath.Join(c.options.Profiles, name+"."+kind), []byte(body), 0o644)
	}
	if err != nil {
		fmt.Fprintf(c.options.Log, "profile of %s: %v\n", name, err)
	}
}

// issue makes certificates of typha and of all nodes.
func (c *cluster) issue() error {
	ca, err := pki.NewCA("scale", time.Now())
	if err != nil {
		return err
	}
	write := func(role pki.Role, dir string) error {
		pair, err := ca.Issue(role, time.Now())
		if err != nil {
			return err
		}
		return pair.Write(dir)
	}
	if err := write(pki.Typha(netip.MustParseAddrPort(loopback.Address()).Addr()), c.pki); err != nil {
		return err
	}
	for _, n := range c.world.Nodes() {
		if err := os.MkdirAll(filepath.Dir(certificate(c.pki, n)), 0o700); err != nil {
			return err
		}
		if err := write(pki.Node(n), certificate(c.pki, n)); err != nil {
			return err
		}
	}
	return nil
}

// workers starts n worker processes.
func (c *cluster) workers(n int) (err error) {
	c.crowd, err = startWorkers(c.dir, c.options.Self, n)
	return err
}

// close ends everything and removes its files.
func (c *cluster) close() {
	c.crowd.stop()
	if c.typha != nil {
		c.typha.End(syscall.SIGTERM)
	}
	if c.store != nil {
		c.store.Close()
	}
	if c.etcd != nil {
		c.etcd.End(syscall.SIGTERM)
	}
	_ = os.RemoveAll(c.dir) // what is left of a directory for temporary files harms nobody
}

// clients are n clients of one kind. Where there are fewer nodes, several follow one node's view.
func (c *cluster) clients(n int, kind ClientKind) (specs []ClientSpec) {
	for i := range n {
		node := i % c.world.shape.Nodes
		s := ClientSpec{Kind: kind, Node: nodeName(node)}
		switch kind {
		case Whole:
			s.State = filepath.Join(c.dir, "views", fmt.Sprint(i), "view")
		case Felix:
			s.State = filepath.Join(c.dir, "views", fmt.Sprint(i), "view")
			s.Local, s.Host = c.world.localEndpoints(node), hostOf(node)
		}
		specs = append(specs, s)
	}
	return specs
}

// arrival is what it takes until clients that come all at once are in sync.
type arrival struct {
	took  time.Duration
	bytes float64 // of items, all clients together
	cpu   time.Duration
}

// arrive has clients come all at once.
func (c *cluster) arrive(ctx context.Context, specs []ClientSpec) (a arrival, err error) {
	if err := c.crowd.prepare(ctx, c.typha.address, c.pki, specs); err != nil {
		return a, err
	}
	if err := c.settle(ctx); err != nil {
		return a, err
	}
	before, err := c.look(ctx)
	if err != nil {
		return a, err
	}
	if a.took, err = c.crowd.run(ctx); err != nil {
		return a, err
	}
	after, err := c.look(ctx)
	a.bytes, a.cpu = after.bytes-before.bytes, after.CPU-before.CPU
	return a, err
}

// sight is what typha has used and sent so far.
type sight struct {
	Usage
	bytes, batches float64
	at             time.Duration
}

func (c *cluster) look(ctx context.Context) (s sight, err error) {
	if s.Usage, err = usage(c.typha.PID()); err != nil {
		return s, err
	}
	if s.bytes, err = c.typha.metric(ctx, "typha_bytes_sent_total"); err != nil {
		return s, err
	}
	s.batches, err = c.typha.metric(ctx, "typha_batches_sent_total")
	s.at = now()
	return s, err
}

// settle waits until typha has nothing to do any more: it tells of nodes that came and went.
func (c *cluster) settle(ctx context.Context) error {
	for {
		before, err := usage(c.typha.PID())
		if err != nil {
			return err
		}
		if err := backoff.Pause(ctx, settleLook); err != nil {
			return err
		}
		after, err := usage(c.typha.PID())
		if err != nil {
			return err
		}
		if after.CPU-before.CPU <= settleLook/10 {
			return nil
		}
	}
}

// settleLook is over what time a tenth of a core is nothing to do.
const settleLook = time.Second

// barrier waits until every client has all that was written, and returns how long each was without it.
func (c *cluster) barrier(ctx context.Context) (Histogram, error) {
	c.markers++
	change, tells := c.world.Marker(c.markers)
	stamps, err := c.writer.Apply(ctx, change)
	if err != nil {
		return nil, err
	}
	times, err := c.crowd.await(ctx, tells)
	h := Histogram{}
	for _, at := range times {
		h.Add(max(at-stamps[0].At, 0))
	}
	return h, err
}

// storm is what it took to tell clients of changes.
type storm struct {
	Churn
	Latencies
	cpu     float64 // of typha, in cores
	bytes   float64
	batches float64
	clients float64 // CPU of the clients, in cores
	took    time.Duration
}

// storm makes changes for a time and measures until all clients have them.
func (c *cluster) storm(ctx context.Context, rates Rates, only func(int) bool, during time.Duration) (s storm, err error) {
	if err := c.settle(ctx); err != nil {
		return s, err
	}
	if err := c.crowd.record(ctx); err != nil {
		return s, err
	}
	before, err := c.look(ctx)
	if err != nil {
		return s, err
	}
	crowd, err := c.crowd.usage()
	if err != nil {
		return s, err
	}
	if s.Churn, err = c.writer.Churn(ctx, c.world, rates, only, during); err != nil {
		return s, err
	}
	if _, err := c.barrier(ctx); err != nil {
		return s, err
	}
	after, err := c.look(ctx)
	if err != nil {
		return s, err
	}
	crowdAfter, err := c.crowd.usage()
	if err != nil {
		return s, err
	}
	s.took = after.at - before.at
	took := s.took.Seconds()
	s.cpu, s.clients = (after.CPU-before.CPU).Seconds()/took, (crowdAfter.CPU-crowd.CPU).Seconds()/took
	s.bytes, s.batches = after.bytes-before.bytes, after.batches-before.batches
	s.Latencies, err = c.crowd.latencies(ctx, s.Stamps)
	return s, err
}
