package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"

	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/datastore/open"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/kube-controllers/configure"
	"github.com/muslin-net/muslin/kube-controllers/kube"
)

// cluster is what controllers work on.
type cluster struct {
	store  datastore.Client
	etcd   *etcd.Client       // nil if the datastore is another
	custom *kubernetes.Client // nil if the datastore is another
	api    *rest.Config       // how to reach Kubernetes; nil if there is none
}

// openCluster opens the datastore, and finds out whether there is Kubernetes. It waits for neither.
func openCluster(ctx context.Context, d *daemon.Daemon, cfg settings) (c cluster, err error) {
	conf, err := open.FromEnvironment(os.LookupEnv)
	if err != nil {
		return c, err
	}
	conf.Type, conf.EtcdEndpoints = cmp.Or(cfg.Datastore, conf.Type), cmp.Or(cfg.Endpoints, conf.EtcdEndpoints)
	conf.Kubeconfig = cmp.Or(cfg.Kubeconfig, conf.Kubeconfig)
	conf.Logger = d.Log
	backend, err := open.Open(ctx, conf)
	if err != nil {
		return c, err
	}
	switch b := backend.(type) {
	case *etcd.Client:
		c.etcd = b
		if c.api, err = kubefollow.Config(conf.Kubeconfig); err != nil {
			return c, errors.Join(err, backend.Close())
		}
	case *kubernetes.Client:
		c.custom, c.api = b, b.REST()
	}
	c.store = datastore.Validating(backend)
	return c, nil
}

// kind is what of the cluster decides which controllers there are.
func (c cluster) kind() configure.Cluster {
	return configure.Cluster{Etcd: c.custom == nil, Kubernetes: c.api != nil}
}

// kubernetes reaches the API of Kubernetes; nil if there is none.
func (c cluster) kubernetes(held func() bool, trouble func(resource string, err error), log *slog.Logger) (*kube.API, error) {
	if c.api == nil {
		return nil, nil
	}
	return kube.New(c.api, held, trouble, log)
}
