// Command kube-controllers runs what the cluster needs once: controllers that keep the datastore right. Any number of
// processes may run; one of them leads, with or without Kubernetes.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/open"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/kube-controllers/leader"
	"github.com/muslin-net/muslin/kube-controllers/reflector"
)

type settings struct {
	Datastore string        `flag:"datastore" usage:"etcdv3 or kubernetes [$DATASTORE_TYPE]"`
	Endpoints string        `flag:"datastore-endpoints" usage:"URLs of etcd; certificates come from the environment as for calicoctl [$ETCD_ENDPOINTS]"`
	Lease     time.Duration `flag:"lease" default:"15s" usage:"how long the leader may be silent before another takes its place"`
	Overlap   time.Duration `flag:"reflector-overlap" env:"REFLECTOR_OVERLAP" default:"30s" usage:"for how long BGP sessions stay beside those that come in their place"`
	Lost      time.Duration `flag:"reflector-lost" env:"REFLECTOR_LOST" default:"30s" usage:"how long a route reflector may be away before another takes its place"`
}

func main() {
	var cfg settings
	daemon.Main("kube-controllers", "keeps the datastore right, once for the cluster", &cfg,
		func(ctx context.Context, d *daemon.Daemon) error { return run(ctx, d, cfg) })
}

func run(ctx context.Context, d *daemon.Daemon, cfg settings) (err error) {
	if cfg.Lease < 3*time.Second || cfg.Lease%time.Second != 0 {
		return errors.New("setting lease: give whole seconds, 3 at least; 15s is the default")
	}
	conf, err := open.FromEnvironment(os.LookupEnv)
	if err != nil {
		return err
	}
	conf.Type, conf.EtcdEndpoints = cmp.Or(cfg.Datastore, conf.Type), cmp.Or(cfg.Endpoints, conf.EtcdEndpoints)
	conf.Logger = d.Log
	store, err := open.Open(ctx, conf)
	if err != nil {
		return err
	}
	store = datastore.Validating(store)
	defer func() { err = errors.Join(err, store.Close()) }()

	host, _ := os.Hostname()               // for people; what follows is unlike any other
	health := d.Health.Add("datastore", 0) // whoever stands by is as ready as who leads
	lead := leader.New(leader.Config{
		Store: store, Name: "kube-controllers", Identity: host + "-" + rand.Text()[:8], Lease: cfg.Lease, Retry: cfg.Lease / 6, Log: d.Log,
		Trouble: func(err error) {
			if health.Ready(); err != nil {
				health.NotReady(err.Error())
			}
		},
	})
	d.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "kube_controllers", Name: "leader", Help: "1 if this process leads.",
	}, func() float64 {
		if lead.Held() {
			return 1
		}
		return 0
	}))
	reflectors := reflector.New(lead.Guard(), reflector.Options{Overlap: cfg.Overlap, Lost: cfg.Lost}, d.Log, d.Metrics)

	return lead.Run(ctx, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return reflectors.Run(ctx) })
		return group.Wait()
	})
}
