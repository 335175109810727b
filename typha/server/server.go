// Package server is typha's face: it serves views to nodes, takes their reports and registrations, hands out addresses,
// relays operators' questions, and enrols nodes. It owns the listeners, the sessions and every write that a node causes.
//
// It refuses to compute: what a node must know is decided in typha/compute and kept in typha/views; how addresses are
// found is ipam/alloc's business. Who is calling is decided by the certificate alone, never by a message.
package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/ipam/alloc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// Config is what a server is made of.
type Config struct {
	Views     *views.Store
	Cache     *cache.Cache
	Intake    Intake
	Datastore datastore.Client // every write goes through it, so it should be a validating one
	Alloc     *alloc.Allocator // over the same datastore

	// Applied is told when all connected nodes have applied what the views say of a pool, so that a change of its mode
	// can go on; nil where nobody waits for that. It is not told where there are several replicas: what the nodes of the
	// others have applied is not known here, and the change goes by the clock.
	Applied func(ctx context.Context, pool string, stage uint64) error

	// Files are the CA's certificate and typha's certificate and key.
	Files rpc.Files
	// CAKey is the path of the CA's key, Tokens that of the store of join tokens; both only where nodes enrol here.
	CAKey, Tokens string
	// CertificateLife is for how long nodes get certificates; 0 means 23 h.
	CertificateLife time.Duration
	// TokenReviewer, if set, checks the service-account tokens of nodes that enrol.
	TokenReviewer TokenReviewer

	// Replicas are the addresses (host:port) by which nodes reach all replicas of typha, this one's first. Each one's
	// certificate is for its host. Empty tells nodes of no other address than the one they have.
	Replicas []string
	// ReplicaName, if set, is what the certificates of all replicas are for, in place of their hosts.
	ReplicaName string
	// Discover says that the replicas are told by SetReplicas, and that nothing is known of them before.
	Discover bool

	// Pods says that the cache has the pods of Kubernetes. Then what a pod is they say, and not what its node reports.
	Pods bool
	// Kubernetes says that the datastore is Kubernetes: endpoints are pods, and nodes and profiles are others' to make.
	Kubernetes bool
	// Endpoints, if set, is the datastore without checks, through which endpoints are written that typha itself has judged: pods
	// change all the time, and what is noted on them is nobody else's to write.
	Endpoints datastore.Client

	// NodeNetwork, if set, tells Kubernetes which nodes have a network.
	NodeNetwork NodeNetwork

	// Unmanaged are ranges whose addresses nodes may have without asking IPAM, as other IPAM plugins than ours give them.
	Unmanaged []netip.Prefix

	// CheckpointWait is how long a client that knows more than this replica waits for it to catch up; 0 means 15 s, which
	// is more than the datastore takes to say that nothing has happened.
	CheckpointWait time.Duration
	// ReportPatience is how late the report on a node's BGP may be before a replica to which only the node's felix is
	// connected says that it has none; 0 means 10 s.
	ReportPatience time.Duration
	// HelloWait is how long a stream may take to say who it is and what it has; 0 means 30 s.
	HelloWait time.Duration
	// BalanceEvery is how often a replica looks at whether it has more than its share of the clients; 0 means 5 s.
	BalanceEvery time.Duration
	// StopWait is how long a stopping server takes to send its clients elsewhere, if there is an elsewhere; 0 means 5 s.
	StopWait time.Duration

	Log     *slog.Logger         // nil means slog.Default
	Metrics *prometheus.Registry // nil registers nowhere
	Health  *daemon.Health       // nil tells nobody
}

// Server serves typha.v1.
type Server struct {
	cfg       Config
	instance  string // of this run
	log       *slog.Logger
	metrics   *metrics
	refusals  *refusals
	guard     *guard
	turnstile turnstile
	commons   commons
	sessions  *registry
	reports   *reports
	nodes     *nodes
	statuses  *statuses
	health    *daemon.Part // nil tells nobody
	presence  *presence
	applied   *applied
	replicas  *replicas
	network   *network
	enroller  *enroller // nil where nodes do not enrol here
	full      lastFullness

	tls *tls.Config
}

// New makes a server. A certificate or key that cannot be read is an error here.
func New(cfg Config) (*Server, error) {
	cfg.CheckpointWait = cmp.Or(cfg.CheckpointWait, 15*time.Second)
	cfg.HelloWait = cmp.Or(cfg.HelloWait, 30*time.Second)
	cfg.StopWait = cmp.Or(cfg.StopWait, 5*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	s := &Server{cfg: cfg, instance: rand.Text(), log: cfg.Log.With("part", "server"), metrics: newMetrics(cfg.Metrics)}
	var err error
	if s.tls, err = rpc.ServerTLS(cfg.Files); err != nil {
		return nil, err
	}
	if cfg.CAKey != "" {
		if s.enroller, err = newEnroller(cfg.Files.CA, cfg.CAKey, cfg.Tokens, cfg.TokenReviewer); err != nil {
			return nil, err
		}
	}
	s.refusals = newRefusals(s.log, s.metrics.refused)
	s.guard = newGuard(s.metrics, s.refusals)
	s.turnstile = newTurnstile()
	s.sessions = newRegistry(s.metrics)
	s.replicas = newReplicas(cfg)
	s.applied = newApplied(cfg, s.sessions, s.replicas.alone, s.log)
	s.network = newNetwork(cfg, s.log)
	s.reports = newReports(cmp.Or(cfg.Endpoints, cfg.Datastore), cfg.Kubernetes, func(k api.Key) bool { return cfg.Cache.Snapshot().Get(k) != nil }, s.log, s.metrics)
	s.nodes = newNodes(cfg.Datastore, cfg.Cache, cfg.Alloc, s.log)
	s.nodes.kubernetes = cfg.Kubernetes
	s.nodes.connected = s.sessions.nodes
	s.statuses = newStatuses(cfg, s.log)
	if cfg.Health != nil { // at no moment may typha seem ready that has not read the datastore
		s.health = cfg.Health.Add("views", 10*time.Second)
		s.health.NotReady("reading the datastore")
	}
	s.presence = newPresence(cfg, s.sessions, s.replicas, s.log)
	s.sessions.joined = s.nodes.joined
	return s, nil
}

// Serve serves until ctx ends; then it sends its clients to the other replicas and stops. enroll is the listener for
// nodes without a certificate; nil if there is none. Serve closes the listeners.
func (s *Server) Serve(ctx context.Context, listener, enroll net.Listener) error {
	if enroll != nil && s.enroller == nil {
		return errors.Join(errors.New("there is a listener to enrol nodes, but no CA key to sign with; give its path by --ca-key"),
			listener.Close(), enroll.Close())
	}
	group, ctx := errgroup.WithContext(ctx)
	main, entrance := s.newServer(s.tls)
	typhav1.RegisterSyncServiceServer(main, syncService{Server: s})
	typhav1.RegisterEndpointsServiceServer(main, endpointsService{Server: s})
	typhav1.RegisterIpamServiceServer(main, ipamService{Server: s})
	typhav1.RegisterNodesServiceServer(main, nodesService{Server: s})
	typhav1.RegisterQueryServiceServer(main, queryService{Server: s})
	if s.enroller != nil {
		typhav1.RegisterEnrollmentServiceServer(main, enrollmentService{Server: s, renew: true})
	}
	s.guard.learn(main)
	group.Go(func() error { return serve(main, entrance, listener) })
	group.Go(func() error { return s.reports.run(ctx) })
	group.Go(func() error { return s.nodes.run(ctx) })
	group.Go(func() error { return s.statuses.runPools(ctx) })
	group.Go(func() error { return s.statuses.runNodes(ctx) })
	group.Go(func() error { return s.statuses.runTiers(ctx) })
	group.Go(func() error { return s.presence.run(ctx) })
	group.Go(func() error { return newBalancer(s).run(ctx) })
	group.Go(func() error { return newNodeReports(s).run(ctx) })
	group.Go(func() error { return s.applied.run(ctx) })
	group.Go(func() error { return s.network.run(ctx) })
	group.Go(func() error { return s.watchHealth(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		main.GracefulStop() // until Stop; nobody is let in meanwhile, who would have to go at once
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		s.sendAway()
		entrance.close()
		main.Stop()
		return nil
	})
	if enroll != nil {
		// Whoever can reach it may call: none may stay.
		side, entrance := s.newServer(s.enroller.tls(s.cfg.Files), grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: enrollStay, MaxConnectionAge: enrollStay, MaxConnectionAgeGrace: enrollStay,
		}), grpc.MaxRecvMsgSize(maxSize[typhav1.EnrollmentService_Enroll_FullMethodName]), grpc.MaxConcurrentStreams(enrollAtOnce))
		typhav1.RegisterEnrollmentServiceServer(side, enrollmentService{Server: s})
		group.Go(func() error { return serve(side, entrance, enroll) })
		group.Go(func() error {
			<-ctx.Done()
			entrance.close()
			side.Stop()
			return nil
		})
	}
	return group.Wait()
}

// enrollStay is how long a node that enrols may stay connected, enrollAtOnce how many calls of a connection may be under way.
const (
	enrollStay   = 30 * time.Second
	enrollAtOnce = 16
)

// writeBuffer is what a connection gathers before it writes, in bytes. A change for all nodes takes one of each connection at the
// same time: gRPC looks around for more before it writes what is little.
const writeBuffer = 8 << 10

// newServer makes a server behind the guard, and the door that its listener is to have.
func (s *Server) newServer(config *tls.Config, more ...grpc.ServerOption) (*grpc.Server, *door) {
	d := newDoor(credentials.NewTLS(config), s.refusals)
	return rpc.NewServer(config, slices.Concat([]grpc.ServerOption{grpc.Creds(d), grpc.WriteBufferSize(writeBuffer)}, s.guard.options(), more)...), d
}

func serve(server *grpc.Server, d *door, l net.Listener) error {
	if err := server.Serve(listener{l, d}); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// watchHealth tells whether views can be served: not before everything there is has been read and computed.
func (s *Server) watchHealth(ctx context.Context) error {
	if s.health == nil {
		return nil
	}
	ready := false
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, inSync := s.cfg.Views.Checkpoint(); inSync && !ready {
			debug.FreeOSMemory() // everything was decoded at once, which never comes again
			s.health.Ready()
			ready = true
		}
		s.health.Alive()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
