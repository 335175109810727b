package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/server"
	"github.com/muslin-net/muslin/typha/views"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// world is what tests run in: a certificate authority and a datastore.
type world struct {
	t     testing.TB
	ca    *pki.CA
	dir   string
	etcd  *embedded.Server
	at    string // address of etcd
	store datastore.Client
	bare  datastore.Client // the same without checks
	pods  intake.PodSource // nil: no Kubernetes
}

// worlds counts worlds: the datastore of each has an address to itself, which nobody takes while it is down.
var worlds atomic.Int32

func newWorld(t testing.TB) *world {
	ca, err := pki.NewCA("test", time.Now())
	require.NoError(t, err)
	w := &world{t: t, ca: ca, dir: t.TempDir()}
	require.NoError(t, ca.Write(w.dir))
	w.at = fmt.Sprintf("127.0.1.%d:0", worlds.Add(1))
	w.startStore()
	t.Cleanup(func() { w.etcd.Close() })
	store, err := etcd.New(t.Context(), etcd.Config{Endpoints: []string{"http://" + w.at}, Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	w.store, w.bare = datastore.Validating(store), store
	require.NoError(t, datastore.Init(t.Context(), w.store))
	return w
}

// startStore starts etcd, also again after its end.
func (w *world) startStore() {
	var err error
	w.etcd, err = embedded.Start(w.t.Context(), embedded.Config{Dir: filepath.Join(w.dir, "etcd"), Listen: w.at, Logger: quiet})
	require.NoError(w.t, err)
	w.at = strings.TrimPrefix(w.etcd.Endpoint(), "http://")
}

// files issues a certificate.
func (w *world) files(role pki.Role) rpc.Files {
	pair, err := w.ca.Issue(role, time.Now())
	require.NoError(w.t, err)
	dir, err := filepath.Abs(w.t.TempDir())
	require.NoError(w.t, err)
	require.NoError(w.t, pair.Write(dir))
	return rpc.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
}

// replica is a running typha. Its views are filled by the test, unless it is a whole one.
type replica struct {
	t       testing.TB
	address string
	enroll  string
	views   *views.Store
	state   *cache.Cache
	metrics *prometheus.Registry
	server  *server.Server
	stop    func() // stops it and waits for its end
}

// replica starts a server over views that the test fills.
func (w *world) replica(change ...func(*server.Config)) *replica {
	return w.start(false, change...)
}

// typha starts a server over the datastore's own views.
func (w *world) typha(change ...func(*server.Config)) *replica {
	return w.start(true, change...)
}

// noIntake is for replicas whose views do not come from the datastore.
type noIntake struct{ server.Intake }

func (noIntake) Wake(context.Context) error { return nil }

func (noIntake) Invalid() map[api.Key]error { return nil }

func (w *world) start(whole bool, change ...func(*server.Config)) *replica {
	log := slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	r := &replica{t: w.t, views: views.NewStore(), metrics: prometheus.NewRegistry()}
	state := cache.New()
	r.state = state
	in := intake.New(w.store, state, intake.Options{Logger: log, Pods: w.pods})
	cfg := server.Config{
		Views: r.views, Cache: state, Intake: in, Datastore: w.store, Alloc: alloc.New(w.store, alloc.Options{Log: log}),
		Files: w.files(pki.Typha(netip.MustParseAddr("127.0.0.1"))), CAKey: filepath.Join(w.dir, "ca.key"), Tokens: filepath.Join(w.dir, "tokens"),
		StopWait: time.Second, Log: log, Metrics: r.metrics,
	}
	cfg.Pods = w.pods != nil
	if !whole {
		cfg.Intake = noIntake{}
	}
	loop := intake.NewLoop(in, compute.New(), r.views)
	if whole {
		cfg.Applied = loop.Applied
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := server.New(cfg)
	require.NoError(w.t, err)
	loop.Observe(s)
	r.server = s
	main, enroll := listen(w.t), listen(w.t)
	if len(cfg.Replicas) > 0 {
		main.Close()
		main, err = net.Listen("tcp", cfg.Replicas[0])
		require.NoError(w.t, err)
	}
	r.address, r.enroll = main.Addr().String(), enroll.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Serve(ctx, main, enroll); err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
	if whole {
		running.Go(func() {
			if err := loop.Run(ctx); err != nil && ctx.Err() == nil {
				w.t.Errorf("the loop ended: %v", err)
			}
		})
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	w.t.Cleanup(r.stop)
	return r
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// at is a checkpoint of etcd.
func at(revision uint64) view.Checkpoint { return view.Checkpoint{"etcd": revision} }

// put commits items to a node's view.
func (r *replica) put(node string, revision uint64, items ...view.Item) {
	d := &views.Delta{}
	for _, it := range items {
		d.Put = append(d.Put, views.NewEntry(it))
	}
	r.commit(revision, map[views.Scope]*views.Delta{{Node: node, View: views.NodeView}: d})
}

// drop removes items from a node's view.
func (r *replica) drop(node string, revision uint64, keys ...view.Key) {
	r.commit(revision, map[views.Scope]*views.Delta{{Node: node, View: views.NodeView}: {Drop: keys}})
}

func (r *replica) commit(revision uint64, scopes map[views.Scope]*views.Delta) {
	r.views.Commit(views.Change{Scopes: scopes, Checkpoint: at(revision), Floor: at(revision), InSync: true})
}

// policy is an item that is told apart by its tier.
func policy(name, tier string) view.Policy { return view.Policy{ID: "np/" + name, Tier: tier} }

func policyKey(name string) view.Key { return view.Key{Kind: view.KindPolicy, ID: "np/" + name} }

// follower is a client that follows a view and keeps it.
type follower struct {
	t       testing.TB
	client  *client.Client
	batches chan client.Batch
	hold    bool // do not call Applied
	query   func(ctx context.Context, q client.Question, reply func([]byte) error) error
	stop    func()
}

func (f *follower) OnBatch(b client.Batch) {
	if !f.hold {
		b.Applied()
	}
	f.batches <- b
}

func (f *follower) OnQuery(ctx context.Context, q client.Question, reply func([]byte) error) error {
	if f.query == nil {
		return client.ErrUnserved
	}
	return f.query(ctx, q, reply)
}

// follow runs a client of a node's view.
func (w *world) follow(node string, addresses []string, change ...func(*client.Config, *follower)) *follower {
	cfg := client.Config{
		Addresses: addresses, Files: w.files(pki.Node(node)), Node: node, View: client.NodeView, SaveDelay: time.Millisecond,
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
	f := &follower{t: w.t, batches: make(chan client.Batch, 100)}
	for _, c := range change {
		c(&cfg, f)
	}
	var err error
	f.client, err = client.New(cfg)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.client.Run(ctx, f); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	f.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := f.client.Close(); err != nil {
			w.t.Errorf("Close: %v", err)
		}
	})
	w.t.Cleanup(f.stop)
	return f
}

// next is the next batch.
func (f *follower) next() client.Batch {
	f.t.Helper()
	select {
	case b := <-f.batches:
		return b
	case <-time.After(patience):
		f.t.Fatal("no batch came")
		return client.Batch{}
	}
}

// silent asserts that no batch is there.
func (f *follower) silent() {
	f.t.Helper()
	select {
	case b := <-f.batches:
		f.t.Fatalf("an unexpected batch came: %v", text(b))
	default:
	}
}

// text shows a batch: updates as +id=tier, removals as -id, then the checkpoint's revision.
func text(b client.Batch) string {
	out := ""
	for _, it := range b.Updates {
		out += "+" + it.Key().ID
		if p, ok := it.(view.Policy); ok && p.Tier != "" {
			out += "=" + p.Tier
		}
		out += " "
	}
	for _, k := range b.Removes {
		out += "-" + k.ID + " "
	}
	out += "@" + strconv.FormatUint(b.Checkpoint["etcd"], 10)
	if b.InSync {
		out += " in sync"
	}
	if b.Saved {
		out += " saved"
	}
	return out
}

// operator is a client with an operator's certificate.
func (w *world) operator(addresses ...string) *client.Client {
	c, err := client.New(client.Config{Addresses: addresses, Files: w.files(pki.Operator("ada"))})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// node is a client with a node's certificate that follows nothing.
func (w *world) node(name string, addresses ...string) *client.Client {
	c, err := client.New(client.Config{Addresses: addresses, Files: w.files(pki.Node(name)), Node: name})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, patience, 5*time.Millisecond, what)
}
