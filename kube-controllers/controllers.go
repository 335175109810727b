package main

import (
	"context"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/kube-controllers/board"
	"github.com/muslin-net/muslin/kube-controllers/compaction"
	"github.com/muslin-net/muslin/kube-controllers/finalizers"
	"github.com/muslin-net/muslin/kube-controllers/hostendpoints"
	"github.com/muslin-net/muslin/kube-controllers/information"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc"
	"github.com/muslin-net/muslin/kube-controllers/kube"
	"github.com/muslin-net/muslin/kube-controllers/loadbalancer"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/mirror"
	"github.com/muslin-net/muslin/kube-controllers/nodes"
	"github.com/muslin-net/muslin/kube-controllers/reflector"
)

// all are the controllers of this cluster; k is nil if there is no Kubernetes.
func all(d *daemon.Daemon, on cluster, store *loop.Store, k *kube.API, cfg settings) []board.Controller {
	collector := ipamgc.New(store, ipamgc.Options{DryRun: cfg.DryRun, KeepEndpoints: on.custom != nil}, d.Log, d.Metrics)
	reflectors := reflector.New(store, reflector.Options{Overlap: cfg.Overlap, Lost: cfg.Lost}, d.Log, d.Metrics)
	list := everywhere(store, reflectors, collector, d.Log)
	list = append(list, informer(store, on, cfg.Type, d.Log))
	if on.etcd != nil {
		list = append(list, compactor(on.etcd, d.Log))
	}
	if on.custom != nil {
		list = append(list, native(store, on.custom.Native, d.Log)...)
	}
	if k == nil {
		return list
	}
	if on.etcd != nil {
		list = append(list, withEtcd(store, k, cfg.Gone, d.Log)...)
	}
	return append(list, balancer(store, k, d.Log))
}

// always is the part of those that have no entry in the configuration.
func always(*board.Spec) any { return true }

// everywhere are the controllers of every cluster.
func everywhere(store *loop.Store, reflectors *reflector.Controller, collector *ipamgc.Controller, log *slog.Logger) []board.Controller {
	return []board.Controller{
		{Name: "reflector", Part: always, Run: func(ctx context.Context, _ *board.Spec) error { return reflectors.Run(ctx) }},
		{Name: "ipamgc", Part: func(s *board.Spec) any {
			if s.Controllers.Node == nil {
				return nil
			}
			return true // the rest it looks up itself
		}, Run: func(ctx context.Context, _ *board.Spec) error { return collector.Run(ctx) }},
		{Name: "hostendpoint", Part: func(s *board.Spec) any {
			if s.Controllers.Node == nil {
				return nil
			}
			return []any{s.Controllers.Node.HostEndpoint, s.Controllers.Node.ReconcilerPeriod}
		}, Run: func(ctx context.Context, s *board.Spec) error {
			return hostendpoints.Run(ctx, store, s.Controllers.Node.HostEndpoint, period(s.Controllers.Node.ReconcilerPeriod), log)
		}},
	}
}

// withEtcd are the controllers that bring what Kubernetes has into etcd.
func withEtcd(store *loop.Store, k *kube.API, gone time.Duration, log *slog.Logger) []board.Controller {
	return []board.Controller{
		{Name: "node", Part: func(s *board.Spec) any {
			if s.Controllers.Node == nil {
				return nil
			}
			return []any{s.Controllers.Node.SyncLabels, s.Controllers.Node.ReconcilerPeriod}
		}, Run: func(ctx context.Context, s *board.Spec) error {
			n := s.Controllers.Node
			o := nodes.Options{Labels: n.SyncLabels != api.Disabled, Wait: gone, Every: period(n.ReconcilerPeriod)}
			return nodes.Run(ctx, store, k, k.Nodes(), o, log)
		}},
		copies("policy", func(c *api.ControllersConfig) *api.ReconcilerConfig { return c.Policy },
			func(ctx context.Context, every time.Duration) error {
				return mirror.Policies(k.NetworkPolicies()).Run(ctx, store, every, log)
			}),
		copies("namespace", func(c *api.ControllersConfig) *api.ReconcilerConfig { return c.Namespace },
			func(ctx context.Context, every time.Duration) error {
				return mirror.Profiles("namespace", "kns.", k.Namespaces()).Run(ctx, store, every, log)
			}),
		copies("serviceaccount", func(c *api.ControllersConfig) *api.ReconcilerConfig { return c.ServiceAccount },
			func(ctx context.Context, every time.Duration) error {
				return mirror.Profiles("serviceaccount", "ksa.", k.ServiceAccounts()).Run(ctx, store, every, log)
			}),
		copies("workloadendpoint", func(c *api.ControllersConfig) *api.ReconcilerConfig { return c.WorkloadEndpoint },
			func(ctx context.Context, every time.Duration) error {
				return mirror.EndpointLabels(k.Pods()).Run(ctx, store, every, log)
			}),
	}
}

// copies is a controller that copies objects.
func copies(name string, entry func(*api.ControllersConfig) *api.ReconcilerConfig, run func(context.Context, time.Duration) error) board.Controller {
	return board.Controller{
		Name: name,
		Part: func(s *board.Spec) any {
			if e := entry(&s.Controllers); e != nil {
				return e
			}
			return nil
		},
		Run: func(ctx context.Context, s *board.Spec) error {
			return run(ctx, period(entry(&s.Controllers).ReconcilerPeriod))
		},
	}
}

// balancer gives addresses to services.
func balancer(store *loop.Store, k *kube.API, log *slog.Logger) board.Controller {
	return board.Controller{Name: "loadbalancer", Part: func(s *board.Spec) any {
		if s.Controllers.LoadBalancer == nil {
			return nil
		}
		return s.Controllers.LoadBalancer.AssignIPs
	}, Run: func(ctx context.Context, s *board.Spec) error {
		return loadbalancer.Run(ctx, store, k, k.Services(), s.Controllers.LoadBalancer.AssignIPs, log)
	}}
}

// native are the controllers of clusters whose objects are custom resources of projectcalico.org/v3.
func native(store *loop.Store, is func(context.Context) (bool, error), log *slog.Logger) []board.Controller {
	where := func(run func(context.Context, *loop.Store, *slog.Logger) error) func(context.Context, *board.Spec) error {
		return func(ctx context.Context, _ *board.Spec) error {
			switch yes, err := is(ctx); {
			case err != nil:
				return err
			case !yes:
				<-ctx.Done()
				return ctx.Err()
			}
			return run(ctx, store, log)
		}
	}
	return []board.Controller{
		{Name: "ippool", Part: always, Run: where(finalizers.Pools)},
		{Name: "tier", Part: always, Run: where(finalizers.Tiers)},
	}
}

// informer says what the cluster is.
func informer(store *loop.Store, on cluster, types string, log *slog.Logger) board.Controller {
	facts := information.Facts{Version: daemon.Version(), Types: information.Types(types, "typha")}
	if on.custom != nil {
		facts.Types = append(facts.Types, "kdd")
	}
	return board.Controller{Name: "information", Part: always, Run: func(ctx context.Context, _ *board.Spec) error {
		return information.Run(ctx, store, facts, log)
	}}
}

// compactor has etcd forget.
func compactor(store compaction.Store, log *slog.Logger) board.Controller {
	return board.Controller{Name: "compaction", Part: func(s *board.Spec) any {
		if period(s.EtcdV3CompactionPeriod) == 0 {
			return nil
		}
		return s.EtcdV3CompactionPeriod
	}, Run: func(ctx context.Context, s *board.Spec) error {
		return compaction.Run(ctx, store, period(s.EtcdV3CompactionPeriod), log)
	}}
}

func period(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}
