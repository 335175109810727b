// Command typha is the heart of a cluster: it watches the datastore, computes what each node must know, serves it, and
// does every write that a node causes.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/open"
	"github.com/muslin-net/muslin/datastore/trouble"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/server"
	"github.com/muslin-net/muslin/typha/views"
)

type settings struct {
	InCluster

	Listen       string   `flag:"listen" env:"TYPHA_LISTEN" default:":5473" usage:"address to serve nodes and operators on"`
	EnrollListen string   `flag:"enroll-listen" env:"TYPHA_ENROLLLISTEN" usage:"address to enrol new nodes on; empty enrols none"`
	CA           string   `flag:"ca" env:"TYPHA_CAFILE" usage:"file with the certificates of the CA, PEM"`
	Cert         string   `flag:"cert" env:"TYPHA_SERVERCERTFILE" usage:"file with typha's certificate, PEM"`
	Key          string   `flag:"key" env:"TYPHA_SERVERKEYFILE" usage:"file with the certificate's key, PEM"`
	CAKey        string   `flag:"ca-key" env:"TYPHA_CAKEYFILE" usage:"file with the key of the CA, to sign certificates of nodes with"`
	Tokens       string   `flag:"tokens" env:"TYPHA_TOKENS" usage:"file with join tokens; it is made when the first one is"`
	NewToken     string   `flag:"new-token" usage:"print a join token for the node of this name, good for a day and one enrolment, and exit"`
	Unmanaged    []string `flag:"unmanaged" env:"TYPHA_UNMANAGED" usage:"CIDRs whose addresses nodes may give to pods without IPAM, by another plugin such as host-local; the ranges that Kubernetes gives to nodes are known"`
	Replicas     []string `flag:"replicas" env:"TYPHA_REPLICAS" usage:"addresses of all replicas as nodes reach them, this one's first"`

	Datastore  string `flag:"datastore" usage:"etcdv3, kubernetes or embedded [$DATASTORE_TYPE]"`
	Endpoints  string `flag:"datastore-endpoints" usage:"URLs of etcd; certificates come from the environment as for calicoctl [$ETCD_ENDPOINTS]"`
	Directory  string `flag:"datastore-dir" usage:"directory of the embedded datastore [$DATASTORE_DIRECTORY]"`
	SecretsDir string `flag:"secrets-dir" env:"TYPHA_SECRETSDIR" usage:"directory with passwords of BGP, <secret>/<key>; empty takes them from Kubernetes if there is one"`
	Kubeconfig string `flag:"kubeconfig" env:"KUBECONFIG" usage:"kubeconfig for Services, EndpointSlices, cluster-wide policies and Secrets; empty means the cluster that typha runs in as a pod, if it does"`
	Namespace  string `flag:"namespace" env:"NAMESPACE" default:"kube-system" usage:"namespace of the Secrets with passwords of BGP"`
	ClusterIPs string `flag:"advertise-cluster-ips" env:"CALICO_ADVERTISE_CLUSTER_IPS" usage:"CIDR of cluster addresses to announce, in place of serviceClusterIPs"`

	Reachable string `flag:"datastore-listen" usage:"address at which others reach the embedded datastore; empty for a free port of this host alone [$DATASTORE_LISTEN]"`
}

func main() {
	var cfg settings
	daemon.Main("typha", "watches the datastore and tells each node what it must know", &cfg,
		func(ctx context.Context, d *daemon.Daemon) error { return run(ctx, d, cfg) })
}

// garbageShare is the garbage that typha has beside what it knows of a cluster, in percent: less than daemons of nodes, since what it
// knows is large. docs/performance.md has what other shares cost.
const garbageShare = 30

func run(ctx context.Context, d *daemon.Daemon, cfg settings) (err error) {
	daemon.Thrifty(garbageShare)
	if cfg.NewToken != "" {
		return printToken(cfg)
	}
	cfg.complete(&cfg)
	computing, err := cfg.computing()
	if err != nil {
		return err
	}
	unmanaged, err := cfg.unmanaged()
	if err != nil {
		return err
	}
	listener, enroll, err := listen(cfg)
	if err != nil {
		return err
	}
	starting := d.Health.Add("start", 0)
	starting.NotReady("waiting for the CA and the datastore")
	cluster, err := cfg.cluster(d)
	if err != nil {
		return err
	}
	identity, err := cluster.identity(ctx, cfg)
	if err != nil {
		return err
	}
	if _, err := rpc.ServerTLS(identity.files); err != nil { // before anything is written
		return err
	}
	store, bare, err := openDatastore(ctx, d, cfg, cluster.board)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	state := cache.New()
	options, err := cfg.sources(d, cluster)
	if err != nil {
		return err
	}
	in := intake.New(store, state, options)
	nodeViews := views.NewStore()
	engine := compute.New()
	engine.Configure(computing)
	loop := intake.NewLoop(in, engine, nodeViews)
	srv, err := server.New(server.Config{
		Unmanaged: unmanaged,
		Views:     nodeViews, Cache: state, Intake: in, Applied: loop.Applied, Datastore: store,
		Alloc: alloc.New(store, alloc.Options{Log: d.Log, Known: state}),
		Files: identity.files, CAKey: identity.caKey, Tokens: cfg.Tokens, TokenReviewer: cluster.tokens,
		Replicas: cfg.Replicas, ReplicaName: cluster.replicaName, Discover: cluster.replicas != nil, NodeNetwork: cluster.network,
		Pods: options.Pods != nil, Kubernetes: options.PodsAreEndpoints, Endpoints: bare,
		Log: d.Log, Metrics: d.Metrics, Health: d.Health,
	})
	if err != nil {
		return err
	}
	loop.Observe(srv)
	starting.Ready()
	d.Log.Info("serving", "address", listener.Addr().String())
	// The server stops first: until the last client has gone its view must keep up.
	flow, stop := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := loop.Run(flow); flow.Err() == nil {
			return err
		}
		return nil
	})
	group.Go(func() error {
		defer stop()
		return srv.Serve(ctx, listener, enroll)
	})
	if !options.SourcePerKind { // Kubernetes ends its watches itself, and they tell
		group.Go(func() error { return cluster.board.Keep(flow, "the datastore", store.Ready) })
		group.Go(func() error {
			full := func(ctx context.Context) error { return datastore.Full(ctx, store) }
			return trouble.KeepFull(flow, "typha", full, func(text string) { d.Health.Note("what cannot be written", text) }, d.Metrics, d.Log)
		})
	}
	group.Go(func() error { return identity.keep(flow) })
	group.Go(func() error {
		own, port := cfg.self(listener.Addr())
		return cluster.discover(flow, own, port, srv.SetReplicas)
	})
	return group.Wait()
}

// listen opens the listeners at once, so that a port in use is an error of the start. enroll is nil without an address.
func listen(cfg settings) (main, enroll net.Listener, err error) {
	if main, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, nil, fmt.Errorf("setting listen: cannot listen on %s: %w; choose a free address", cfg.Listen, err)
	}
	if cfg.EnrollListen != "" {
		if enroll, err = net.Listen("tcp", cfg.EnrollListen); err != nil {
			return nil, nil, fmt.Errorf("setting enroll-listen: cannot listen on %s: %w; choose a free address", cfg.EnrollListen, err)
		}
	}
	return main, enroll, nil
}

// openDatastore opens the datastore, waits for it to answer, and writes what must be there in every cluster. bare is the same
// without checks where endpoints are pods. A Kubernetes that does not let typha in is waited for: what is wrong there is put right
// without anybody looking at typha.
func openDatastore(ctx context.Context, d *daemon.Daemon, cfg settings, board *trouble.Board) (store, bare datastore.Client, err error) {
	conf, err := cfg.datastore()
	if err != nil {
		return nil, nil, err
	}
	conf.Logger = d.Log
	bare, err = open.Open(ctx, conf, embedded.Backend())
	if err != nil {
		return nil, nil, err
	}
	store = datastore.Validating(bare)
	prepare := func(ctx context.Context) error {
		err := store.Ready(ctx)
		if err == nil {
			err = datastore.Init(ctx, store)
		}
		return err
	}
	if conf.Type == open.TypeKubernetes {
		err = board.Until(ctx, "the datastore", prepare)
	} else {
		bare = nil
		start, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		err = prepare(start)
	}
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, bare, nil
}

func printToken(cfg settings) error {
	if cfg.Tokens == "" {
		return errors.New("setting tokens: give the path of the file that keeps the join tokens")
	}
	token, err := server.NewJoinToken(cfg.Tokens, cfg.NewToken, 24*time.Hour)
	if err == nil {
		fmt.Println(token)
	}
	return err
}
