package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/kube-controllers/board"
	"github.com/muslin-net/muslin/kube-controllers/leader"
	"github.com/muslin-net/muslin/kube-controllers/probe"
)

// election has one of several processes lead. Whoever stands by is as ready as who leads.
func election(d *daemon.Daemon, on cluster, cfg settings) *leader.Leader {
	host, _ := os.Hostname() // for people; what follows is unlike any other
	health := d.Health.Add("datastore", 0)
	lead := leader.New(leader.Config{
		Store: on.store, Name: "kube-controllers", Identity: host + "-" + rand.Text()[:8], Lease: cfg.Lease, Retry: cfg.Lease / 6, Log: d.Log,
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
	return lead
}

// process is what of the process itself goes by the configuration, whether it leads or not. A level of logs that the flag names
// stays.
func process(d *daemon.Daemon, cfg settings) []board.Controller {
	list := []board.Controller{
		board.MetricsPort(d.Metrics, d.Log),
		{Name: "status", Part: func(s *board.Spec) any {
			if s.HealthChecks == api.Disabled {
				return nil
			}
			return true
		}, Run: func(ctx context.Context, _ *board.Spec) error { return probe.Write(ctx, cfg.Status, d.Health, d.Log) }},
	}
	if d.Level.Level() == slog.LevelInfo {
		list = append(list, board.Controller{
			Name: "log", Part: func(s *board.Spec) any { return s.LogSeverityScreen },
			Run: func(ctx context.Context, s *board.Spec) error {
				d.Level.Set(board.Level(s.LogSeverityScreen))
				<-ctx.Done()
				return ctx.Err()
			},
		})
	}
	return list
}
