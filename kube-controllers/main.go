// Command kube-controllers runs what the cluster needs once: controllers that keep the datastore right. Any number of
// processes may run; one of them leads, with or without Kubernetes.
package main

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/datastore/trouble"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/kube-controllers/board"
	"github.com/muslin-net/muslin/kube-controllers/configure"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/probe"
)

type settings struct {
	Kubeconfig string        `flag:"kubeconfig" usage:"kubeconfig of the cluster; empty means that in which this runs as a pod, if it does [$KUBECONFIG]"`
	Status     string        `flag:"status-file" default:"/status/status.json" usage:"file that check-status reads; not written where its folder is missing"`
	Datastore  string        `flag:"datastore" usage:"etcdv3 or kubernetes [$DATASTORE_TYPE]"`
	Endpoints  string        `flag:"datastore-endpoints" usage:"URLs of etcd; certificates come from the environment as for calicoctl [$ETCD_ENDPOINTS]"`
	Lease      time.Duration `flag:"lease" default:"15s" usage:"how long the leader may be silent before another takes its place"`
	Type       string        `flag:"cluster-type" env:"CLUSTER_TYPE" usage:"what the cluster is made of, separated by commas, as ClusterInformation shall say it; k8s,bgp for example"`
	Overlap    time.Duration `flag:"reflector-overlap" env:"REFLECTOR_OVERLAP" default:"30s" usage:"for how long BGP sessions stay beside those that come in their place"`
	DryRun     bool          `flag:"ipam-dry-run" env:"IPAM_DRY_RUN" usage:"tell which lost addresses would be released, and release none"`
	Lost       time.Duration `flag:"reflector-lost" env:"REFLECTOR_LOST" default:"30s" usage:"how long a route reflector may be away before another takes its place"`
	Gone       time.Duration `flag:"node-gone" env:"NODE_GONE" default:"30s" usage:"for how long Kubernetes has to be without a node before its Node is deleted, with etcd"`
}

func main() {
	if args, asked := probe.Asked(os.Args); asked {
		os.Exit(probe.Check(args, os.Stdout))
	}
	var cfg settings
	daemon.Main("kube-controllers", "keeps the datastore right, once for the cluster", &cfg,
		func(ctx context.Context, d *daemon.Daemon) error { return run(ctx, d, cfg) })
}

func run(ctx context.Context, d *daemon.Daemon, cfg settings) (err error) {
	if cfg.Lease < 3*time.Second || cfg.Lease%time.Second != 0 {
		return errors.New("setting lease: give whole seconds, 3 at least; 15s is the default")
	}
	env, err := configure.ReadEnvironment(os.LookupEnv)
	if err != nil {
		return err
	}
	on, err := openCluster(ctx, d, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.store.Close()) }()

	unread := trouble.NewBoard("kube-controllers", func(text string) { d.Health.Note("what cannot be read", text) }, d.Metrics, d.Log)
	lead := election(d, on, cfg)
	store := loop.NewStore(lead.Guard(), unread.Tell, d.Log)
	k, err := on.kubernetes(lead.Held, unread.Tell, d.Log)
	if err != nil {
		return err
	}
	controllers := all(d, on, store, k, cfg)
	config := board.NewRunning(env, on.kind(), d.Log)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return config.Follow(ctx, store) })
	group.Go(func() error { return board.Run(ctx, config, d.Log, process(d, cfg)...) })
	group.Go(func() error {
		return lead.Run(ctx, func(ctx context.Context) error {
			group, ctx := errgroup.WithContext(ctx)
			group.Go(func() error { return board.Report(ctx, store, config, d.Log) })
			group.Go(func() error { return board.Run(ctx, config, d.Log, controllers...) })
			return group.Wait()
		})
	})
	return group.Wait()
}
