// Command confd computes the BGP configuration of a node from its view of the cluster, which typha sends, and keeps bird at
// it. It answers operators' questions about bird, and writes the configuration as bird.yaml for people.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/confd/client"
	"github.com/muslin-net/muslin/confd/render"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/rpc"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
	typha "github.com/muslin-net/muslin/typha/client"
)

type settings struct {
	typha.Settings

	Node       string `flag:"node" env:"NODENAME" usage:"name of this node"`
	BirdSocket string `flag:"bird-socket" usage:"unix socket of bird"`
	RouterID   string `flag:"router-id" env:"CALICO_ROUTER_ID" usage:"IPv4 address, or hash for one made of the node's name; empty means the node's IPv4 address"`
	Backend    string `flag:"backend" env:"CALICO_NETWORKING_BACKEND" default:"bird" usage:"with vxlan or none there is no bird to configure, and confd does nothing"`
	Speaker    string `flag:"speaker" env:"CALICO_BGP_SPEAKER" default:"muslin" usage:"program that speaks BGP: muslin for our bird, bird2 for BIRD 2"`
	BIRD2File  string `flag:"bird2-file" default:"/etc/calico/bird2.conf" usage:"file to write for BIRD 2"`
	BIRD2Ctl   string `flag:"bird2-socket" default:"/run/calico/bird2.ctl" usage:"control socket of BIRD 2"`
	BIRD2      string `flag:"bird2-program" default:"/usr/sbin/bird" usage:"BIRD 2, to check the file with"`
	Severity   string `flag:"log-severity" env:"BGP_LOGSEVERITYSCREEN" usage:"Trace, Debug, Info, Warning, Error or Fatal, for good; empty means what BGPConfiguration says, or else log-level"`
	LibDir     string `flag:"lib-dir" default:"/var/lib/calico" usage:"directory for the saved view and bird.yaml"`
}

func main() {
	cfg := settings{BirdSocket: bird.DefaultSocket}
	daemon.Main("confd", "BGP configuration of a node", &cfg, func(ctx context.Context, d *daemon.Daemon) error { return run(ctx, d, cfg) })
}

func run(ctx context.Context, d *daemon.Daemon, cfg settings) error {
	backend, err := api.ParseBackend(cfg.Backend)
	if err != nil {
		return fmt.Errorf("setting backend: %w", err)
	}
	if cfg.Severity != "" {
		level, err := daemon.ParseSeverity(cfg.Severity)
		if err != nil {
			return fmt.Errorf("setting log-severity: %w", err)
		}
		d.Level.Set(level)
	}
	following, err := cfg.Config(cfg.Node, os.LookupEnv, d.Log)
	if err != nil {
		return err
	}
	following.View, following.StatePath = typha.BGPView, filepath.Join(cfg.LibDir, "confd", "view")
	view, err := typha.New(following)
	if err != nil {
		return err
	}
	defer func() { _ = view.Close() }()
	if !backend.BGP() {
		d.Log.Info("no bird on this node: there is nothing to configure", "backend", backend)
		client.NoPeers(ctx, d.Log, view)
		<-ctx.Done()
		return nil
	}
	asked, err := bird.New(cfg.BirdSocket)
	if err != nil {
		return err
	}
	defer func() { _ = asked.Close() }()
	group, ctx := errgroup.WithContext(ctx)
	target, err := speakerOf(ctx, d, group, cfg, asked)
	if err != nil {
		return err
	}
	pusher := client.NewPusher(d.Log, target, filepath.Join(cfg.LibDir, "bird.yaml"))
	follower := client.NewFollower(d.Log, render.NewState(render.Options{Node: cfg.Node, RouterID: cfg.RouterID}), pusher, asked)

	if cfg.Severity == "" {
		follower.Level(d.Level)
	}
	group.Go(func() error { return view.Run(ctx, follower) })
	group.Go(func() error { return client.NewTeller(d.Log, asked, view).Run(ctx) })
	group.Go(func() error { return pusher.Run(ctx, client.Report(d.Health.Add("bird", 0))) })
	return group.Wait()
}

// speakerOf is who speaks BGP on this node, to be configured. For a BIRD 2 that speaks in the place of our bird, confd answers on
// bird's socket until ctx ends, and has its metrics.
func speakerOf(ctx context.Context, d *daemon.Daemon, group *errgroup.Group, cfg settings, ours *bird.Client) (client.Target, error) {
	speaker, err := api.ParseSpeaker(cfg.Speaker)
	if err != nil {
		return nil, fmt.Errorf("setting speaker: %w", err)
	}
	if speaker != api.SpeakerBIRD2 {
		return client.Muslin{Bird: ours}, nil
	}
	l, err := rpc.ListenUnix(cfg.BirdSocket)
	if err != nil {
		return nil, err
	}
	theirs := &client.BIRD2{File: cfg.BIRD2File, Socket: cfg.BIRD2Ctl, Program: cfg.BIRD2}
	server := rpc.NewServer(nil)
	birdv1.RegisterBirdServiceServer(server, client.NewStandin(d.Log, theirs))
	d.Metrics.MustRegister(client.NewMetrics(ours.Peers))
	group.Go(func() error {
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		return server.Serve(l)
	})
	return theirs, nil
}
