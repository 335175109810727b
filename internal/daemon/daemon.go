// Package daemon is what all our daemons have in common: settings from flags, environment and file, structured logs,
// signals, health and metrics over HTTP. A main is one call of Main.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// Daemon is what a running daemon is given beside its own settings.
type Daemon struct {
	Name    string
	Log     *slog.Logger
	Level   *slog.LevelVar // of Log and what is made of it; begins with the setting log-level
	Metrics *prometheus.Registry
	Health  *Health
}

// common are the settings that every daemon has.
type common struct {
	LogLevel  string `flag:"log-level" default:"info" usage:"debug, info, warn or error"`
	Health    string `flag:"health" usage:"address to serve /liveness, /readiness and /metrics on, as host:port; empty serves none"`
	Metrics   string `flag:"metrics" usage:"another address to serve /metrics on, and nothing else; empty serves none"`
	PprofPort int    `flag:"pprof-port" usage:"loopback port to serve profiles on; 0 serves none"`
}

// Served are settings of a daemon that say where health and metrics are served if its flags do not.
type Served interface {
	// Serve returns addresses as host:port, empty for none.
	Serve() (health, metrics string)
}

// Main runs a daemon and exits the process: 0 after a signal or a nil from run, 1 after an error, which is printed as one
// line. cfg points to a struct whose fields carry the tags flag, env (names separated by commas; the first that is set and
// not empty counts), default and usage; its defaults may also be set beforehand. Settings count in this order: flag,
// environment, file given by --config, default. If cfg is a Served, it has a say in what is served where.
func Main(name, about string, cfg any, run func(context.Context, *Daemon) error) {
	os.Exit(Run(name, about, cfg, run, os.Args[1:], os.Stderr))
}

// Run is Main without the exit, for tests: it returns the exit code.
func Run(name, about string, cfg any, run func(context.Context, *Daemon) error, args []string, stderr io.Writer) int {
	var shared common
	cmd := &cobra.Command{
		Use: name, Short: about, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		Version: Version(),
	}
	settings := newSettings(cmd.Flags(), cfg, &shared)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.resolve(os.LookupEnv); err != nil {
			return err
		}
		if served, ok := cfg.(Served); ok {
			health, metrics := served.Serve()
			shared.Health, shared.Metrics = cmp.Or(shared.Health, health), cmp.Or(shared.Metrics, metrics)
		}
		return start(cmd.Context(), name, shared, stderr, run)
	}
	cmd.AddCommand(&cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), Version()) },
	})
	cmd.SetArgs(args)
	cmd.SetErr(stderr)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

func start(ctx context.Context, name string, cfg common, stderr io.Writer, run func(context.Context, *Daemon) error) error {
	log, level, err := newLogger(stderr, cfg.LogLevel)
	if err != nil {
		return err
	}
	d := &Daemon{Name: name, Log: log, Level: level, Metrics: newRegistry(name), Health: NewHealth()}
	web, err := newWeb(cfg, d)
	if err != nil {
		return err
	}
	log.Info("starting", "version", Version(), "pid", os.Getpid())
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	group.Go(func() error { return web.run(ctx) })
	group.Go(func() error {
		defer cancel() // the web server ends with the work
		return run(ctx, d)
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopped")
	return nil
}

func newLogger(w io.Writer, level string) (*slog.Logger, *slog.LevelVar, error) {
	l := &slog.LevelVar{}
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("setting log-level: %q is not a level; use debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), l, nil
}
