// Command calico-node prepares a node (-startup), follows its addresses (-monitor-addresses) and answers its probes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/node/probe"
	"github.com/muslin-net/muslin/node/startup"
	"github.com/muslin-net/muslin/node/watch"
	"github.com/muslin-net/muslin/typha/client"
)

// config is what the command line says.
type config struct {
	startup, monitor, version                  bool
	felixLive, felixReady, birdLive, birdReady bool
	drain, undrain                             bool
	drainWait                                  time.Duration
	birdSocket                                 string
	felixHealth, birdHealth                    string
	node, libDir, typha, typhaName             string
	files                                      rpc.Files
}

// rewatch is how long to wait after the kernel's messages were lost.
const rewatch = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, parse()); err != nil {
		fmt.Fprintln(os.Stderr, "calico-node:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func parse() (c config) {
	flag.BoolVar(&c.startup, "startup", false, "find the node's addresses, register it, propose default pools, and end")
	flag.BoolVar(&c.monitor, "monitor-addresses", false, "keep the node's registration at its addresses, and do not end")
	flag.BoolVar(&c.felixLive, "felix-live", false, "succeed if felix lives")
	flag.BoolVar(&c.felixReady, "felix-ready", false, "succeed if felix is ready")
	flag.BoolVar(&c.birdLive, "bird-live", false, "succeed if bird lives")
	flag.BoolVar(&c.birdReady, "bird-ready", false, "succeed if bird holds a configuration and serves its sessions, whether or not they are up")
	flag.BoolVar(&c.birdLive, "bird6-live", false, "the same as -bird-live: one bird serves both families")
	flag.BoolVar(&c.birdReady, "bird6-ready", false, "the same as -bird-ready")
	flag.Duration("threshold-time", 0, "accepted for compatibility: bird's readiness does not depend on its age, nor on other nodes")
	flag.BoolVar(&c.drain, "drain-bgp", false, "for preStop: announce the node's routes as about to go (RFC 8326), wait, withdraw them, and end")
	flag.DurationVar(&c.drainWait, "drain-wait", 30*time.Second, "how long -drain-bgp gives peers to find other ways")
	flag.BoolVar(&c.undrain, "undrain-bgp", false, "put the node back into service after -drain-bgp")
	flag.StringVar(&c.birdSocket, "bird-socket", bird.DefaultSocket, "where bird serves")
	flag.BoolVar(&c.version, "v", false, "print the version")
	flag.StringVar(&c.felixHealth, "felix-health", "localhost:9099", "felix's health address")
	flag.StringVar(&c.birdHealth, "bird-health", "localhost:9097", "bird's health address")
	flag.StringVar(&c.node, "node", "", "name of this node [$NODENAME]")
	flag.StringVar(&c.libDir, "lib-dir", "/var/lib/calico", "directory that outlives reboots")
	flag.StringVar(&c.typha, "typha", os.Getenv("FELIX_TYPHAADDR"), "addresses of typha, host:port, separated by commas [$FELIX_TYPHAADDR]")
	flag.StringVar(&c.typhaName, "typha-name", "typha", "name in typha's certificate")
	flag.StringVar(&c.files.CA, "ca", "/etc/calico/ca.pem", "CA certificate, PEM")
	flag.StringVar(&c.files.Cert, "cert", "/etc/calico/node.pem", "this node's certificate, PEM")
	flag.StringVar(&c.files.Key, "key", "/etc/calico/node-key.pem", "its key, PEM")
	flag.Parse()
	return c
}

func run(ctx context.Context, c config) error {
	group, ctx := errgroup.WithContext(ctx)
	asked := false
	do := func(wanted bool, job func() error) {
		if wanted {
			asked = true
			group.Go(job)
		}
	}
	do(c.version, func() error { fmt.Println(daemon.Version()); return nil })
	do(c.startup, func() error { return register(ctx, c, startup.Run) })
	do(c.monitor, func() error { return register(ctx, c, follow) })
	do(c.felixLive, func() error { return probe.Check(ctx, "felix", c.felixHealth, "/liveness") })
	do(c.felixReady, func() error { return probe.Check(ctx, "felix", c.felixHealth, "/readiness") })
	do(c.birdLive, func() error { return checkBird(ctx, c, "/liveness") })
	do(c.birdReady, func() error { return checkBird(ctx, c, "/readiness") })
	do(c.drain || c.undrain, func() error { return drain(ctx, c) })
	if !asked {
		return errors.New("nothing was asked for; --help lists what can be")
	}
	return group.Wait()
}

// checkBird passes where no bird is wanted, so that one set of probes does for every backend.
func checkBird(ctx context.Context, c config, path string) error {
	backend, err := startup.Backend(os.Getenv)
	if err != nil || !backend.BGP() {
		return err
	}
	return probe.Check(ctx, "bird", c.birdHealth, path)
}

// drain takes the node out of BGP, or puts it back. Where no bird is wanted there is nothing to do.
func drain(ctx context.Context, c config) error {
	backend, err := startup.Backend(os.Getenv)
	if err != nil || !backend.BGP() {
		return err
	}
	speaker, err := bird.New(c.birdSocket)
	if err != nil {
		return err
	}
	defer speaker.Close()
	if c.undrain {
		return speaker.Undrain(ctx)
	}
	return speaker.Drain(ctx, c.drainWait)
}

// follow keeps the registration at the host's addresses. What the kernel tells makes it quick; the polls alone would do.
func follow(ctx context.Context, cfg startup.Config, typha startup.Typha) error {
	changed := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return startup.Follow(ctx, cfg, typha, changed) })
	group.Go(func() error {
		for {
			err := watch.Addresses(ctx, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
			if ctx.Err() != nil {
				return nil
			}
			cfg.Log.Warn("changes of addresses are seen by polling until they can be watched again", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(rewatch):
			}
		}
	})
	return group.Wait()
}

// register does what tells typha of the node.
func register(ctx context.Context, c config, do func(context.Context, startup.Config, startup.Typha) error) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	name, err := startup.NodeName(c.node, c.libDir, os.Getenv, log)
	if err != nil {
		return err
	}
	typha := onDemand{client.Config{
		Addresses: strings.FieldsFunc(c.typha, func(r rune) bool { return r == ',' }), ServerName: c.typhaName,
		Files: c.files, Node: name, Log: log,
	}}
	return do(ctx, startup.Config{Node: name, LibDir: c.libDir, Env: os.Getenv, Log: log}, typha)
}

// onDemand connects to typha for each call: calls are rare, and a connection from an address that the node no longer has
// would hold the next one up until it times out.
type onDemand struct{ config client.Config }

func (o onDemand) Register(ctx context.Context, r client.Registration) (client.Registered, error) {
	typha, err := client.New(o.config)
	if err != nil {
		return client.Registered{}, fmt.Errorf("typha: %w", err)
	}
	defer typha.Close()
	return typha.Register(ctx, r)
}
