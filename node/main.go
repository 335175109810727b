// Command calico-node prepares a node (-startup), installs the CNI plugins there (-install-cni), keeps its registration and its
// certificate (-monitor-addresses, -monitor-token), and answers its probes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/node/certificate"
	"github.com/muslin-net/muslin/node/install"
	"github.com/muslin-net/muslin/node/probe"
	"github.com/muslin-net/muslin/typha/client"
)

// config is what the command line and the environment say.
type config struct {
	jobs
	client.Settings
	Enrol certificate.Settings

	CNIFrom string `flag:"cni-from" default:"/opt/cni/bin" usage:"directory of the plugins to install"`
	CNIBin  string `flag:"cni-bin-dir" default:"/host/opt/cni/bin" usage:"the host's directory of plugins"`
	CNIConf string `flag:"cni-conf-dir" default:"/host/etc/cni/net.d" usage:"the host's directory of network configurations"`

	DrainWait   time.Duration `flag:"drain-wait" default:"30s" usage:"how long -drain-bgp gives peers to find other ways"`
	BirdSocket  string        `flag:"bird-socket" default:"/run/calico/bird.sock" usage:"where bird serves"`
	FelixHealth string        `flag:"felix-health" usage:"felix's health address; without one what FELIX_HEALTHHOST and FELIX_HEALTHPORT say"`
	HealthHost  string        `flag:"felix-health-host" env:"FELIX_HEALTHHOST" default:"localhost" usage:"host of felix's health address"`
	HealthPort  string        `flag:"felix-health-port" env:"FELIX_HEALTHPORT" default:"9099" usage:"port of felix's health address"`
	BirdHealth  string        `flag:"bird-health" env:"BIRD_HEALTHADDR" default:"localhost:9097" usage:"bird's health address"`
	Threshold   time.Duration `flag:"threshold-time" usage:"accepted for compatibility: bird's readiness does not depend on its age, nor on other nodes"`

	LogLevel string `flag:"log-level" env:"CALICO_STARTUP_LOGLEVEL" default:"info" usage:"debug, info, warning or error"`

	Node   string `flag:"node" usage:"name of this node; without one what NODENAME, an earlier start, or HOSTNAME say"`
	LibDir string `flag:"lib-dir" default:"/var/lib/calico" usage:"directory that outlives reboots"`
}

// jobs are what can be asked for.
type jobs struct {
	Startup    bool `flag:"startup" usage:"get the node's certificate, find its addresses, register it, propose default pools, and end"`
	InstallCNI bool `flag:"install-cni" usage:"install the CNI plugins and their configuration on the host, and end"`
	Follow     bool `flag:"monitor-addresses" usage:"keep the node's registration at its addresses and its certificate from ending, and do not end"`
	Renew      bool `flag:"monitor-token" usage:"the same for the certificate alone"`
	FelixLive  bool `flag:"felix-live" usage:"succeed if felix lives"`
	FelixReady bool `flag:"felix-ready" usage:"succeed if felix is ready"`
	BirdLive   bool `flag:"bird-live" usage:"succeed if bird lives"`
	BirdReady  bool `flag:"bird-ready" usage:"succeed if bird holds a configuration and serves its sessions, whether or not they are up"`
	Bird6Live  bool `flag:"bird6-live" usage:"the same as -bird-live: one bird serves both families"`
	Bird6Ready bool `flag:"bird6-ready" usage:"the same as -bird-ready"`
	Shutdown   bool `flag:"shutdown" usage:"for felix's preStop: have Kubernetes told that the node has no network, so that no pods come until the next felix is in sync; pods that are there keep theirs"`
	Drain      bool `flag:"drain-bgp" usage:"for preStop of a node that goes: announce its routes as about to go (RFC 8326), wait, withdraw them, and end"`
	Undrain    bool `flag:"undrain-bgp" usage:"put the node back into service after -drain-bgp"`
	Version    bool `flag:"v" usage:"print the version"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg, err := parse(os.Args[1:], os.LookupEnv)
	if err == nil {
		err = run(ctx, cfg)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "calico-node:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func parse(args []string, lookupEnv func(string) (string, bool)) (cfg config, err error) {
	flags := flag.NewFlagSet("calico-node", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // a mistake is one line
	declared := daemon.Declare(flags, &cfg, &cfg.Enrol)
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stdout)
		flags.PrintDefaults()
		return cfg, err
	} else if err != nil {
		return cfg, err
	}
	if flags.NArg() > 0 {
		return cfg, fmt.Errorf("%q is no flag; --help lists them", flags.Arg(0))
	}
	return cfg, declared.Resolve(lookupEnv)
}

func run(ctx context.Context, cfg config) error {
	level, err := daemon.ParseSeverity(cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("setting log-level: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	group, ctx := errgroup.WithContext(ctx)
	asked := false
	do := func(wanted bool, job func() error) {
		if wanted {
			asked = true
			group.Go(job)
		}
	}
	do(cfg.Version, func() error { fmt.Println(daemon.Version()); return nil })
	do(cfg.InstallCNI, func() error {
		return install.Main(ctx, install.Config{From: cfg.CNIFrom, Bin: cfg.CNIBin, Conf: cfg.CNIConf}, os.Getenv, log)
	})
	do(cfg.Startup, func() error { return start(ctx, cfg, log) })
	do(cfg.Follow, func() error { return monitorAddresses(ctx, cfg, log) })
	do(cfg.Renew || cfg.Follow, func() error { return monitorToken(ctx, cfg, log) })
	do(cfg.FelixLive, func() error { return probe.Check(ctx, "felix", cfg.felixHealth(), "/liveness") })
	do(cfg.FelixReady, func() error { return probe.Check(ctx, "felix", cfg.felixHealth(), "/readiness") })
	do(cfg.BirdLive || cfg.Bird6Live, func() error { return checkBird(ctx, cfg, "/liveness") })
	do(cfg.BirdReady || cfg.Bird6Ready, func() error { return checkBird(ctx, cfg, "/readiness") })
	do(cfg.Drain || cfg.Undrain, func() error { return drain(ctx, cfg) })
	do(cfg.Shutdown, func() error { return shutdown(ctx, cfg, log) })
	if !asked {
		return errors.New("nothing was asked for; --help lists what can be")
	}
	return group.Wait()
}
