// Go listens with Multipath TCP by default, which knows neither TCP MD5 signatures nor TTL security.
//go:debug multipathtcp=0

// Command bird is the BGP speaker of a node: confd configures it, felix brings it the node's routes and programs the best
// paths it finds. It never touches the kernel's routes itself.
package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/bird/bfd/udp"
	"github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/bird/doctor"
	"github.com/muslin-net/muslin/bird/link"
	"github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
	"github.com/muslin-net/muslin/bird/tap"
	"github.com/muslin-net/muslin/internal/daemon"
)

type settings struct {
	Socket      string `flag:"socket" usage:"unix socket for felix, confd and calicoctl"`
	GobgpSocket string `flag:"gobgp-socket" default:"/run/calico/gobgp.sock" usage:"unix socket for the stock gobgp command, read-only; empty serves none"`
	Backend     string `flag:"backend" env:"CALICO_NETWORKING_BACKEND" default:"bird" usage:"with vxlan or none the node speaks no BGP, and bird does nothing"`
	LibDir      string `flag:"lib-dir" default:"/var/lib/calico" usage:"directory for what a restart needs"`
	HealthAt    string `flag:"health-default" env:"BIRD_HEALTHADDR" default:"localhost:9097" usage:"where health and metrics are served if --health does not say; calico-node's probes ask there"`
	PeerMetrics string `flag:"peer-metrics" env:"BIRD_PEER_METRICS" default:"auto" usage:"which sessions have metrics of their own: individual (all), aggregate (none, only sums), auto (those of BGPPeers, and of the mesh while it has at most 50)"`
}

// Serve says where health and metrics are served.
func (s *settings) Serve() (health, metrics string) { return s.HealthAt, "" }

func main() {
	cfg := settings{Socket: client.DefaultSocket}
	daemon.Main("bird", "BGP speaker of a node", &cfg, func(ctx context.Context, d *daemon.Daemon) error { return run(ctx, d, cfg) })
}

func run(ctx context.Context, d *daemon.Daemon, cfg settings) error {
	daemon.Thrifty(daemon.NodeShare)
	if backend, err := api.ParseBackend(cfg.Backend); err != nil {
		return fmt.Errorf("setting backend: %w", err)
	} else if !backend.BGP() {
		d.Log.Info("this node speaks no BGP: there is nothing to do", "backend", backend)
		<-ctx.Done()
		return nil
	}
	detail, err := server.ParseDetail(cfg.PeerMetrics)
	if err != nil {
		return fmt.Errorf("setting peer-metrics: %w", err)
	}
	log := d.Log
	saved, err := server.OpenSaved(cfg.LibDir)
	if err != nil {
		return err
	}
	var engine *gobgp.Engine
	bird, err := speaker.New(log, func(events speaker.Events) (_ speaker.Engine, err error) {
		engine, err = gobgp.New(ctx, log.With(slog.String("part", "gobgp")), events)
		return engine, err
	})
	if err != nil {
		return err
	}
	detector, err := udp.New(log, bird)
	if err != nil {
		return err
	}
	links, err := link.New(log, bird)
	if err != nil {
		return err
	}
	bird.Guard(speaker.ByBFD, detector)
	bird.Guard(speaker.ByLink, links)
	service := server.New(log, d.Level, bird, saved, uuid.NewString(), daemon.Version())
	d.Metrics.MustRegister(server.NewCollector(bird, detail))
	service.Resume()

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return bird.Run(ctx) })
	group.Go(func() error { return detector.Run(ctx) })
	group.Go(func() error { return links.Run(ctx) })
	group.Go(func() error { return saved.Run(ctx, log, bird.Locals) })
	group.Go(func() error {
		note := func(text string) { d.Health.Note("sessions", text) }
		return server.Watchdog(ctx, bird, d.Health.Add("bgp", server.WatchdogPromise), note)
	})
	group.Go(func() error { return doctor.New(log, bird).Run(ctx) })
	if heard, err := tap.Open(); err != nil {
		log.Info("why peers refuse sessions is not known", "error", err)
	} else {
		group.Go(func() error { return engine.Overhear(ctx, heard) })
	}
	group.Go(func() error { return server.Serve(ctx, cfg.Socket, service.Register) })
	if cfg.GobgpSocket != "" {
		group.Go(func() error { return server.Serve(ctx, cfg.GobgpSocket, engine.RegisterAPI) })
	}
	return group.Wait()
}
