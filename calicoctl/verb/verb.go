// Package verb is calicoctl's commands, one file for each.
package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/open"
)

// reach is how long a command waits for the datastore to answer at all.
const reach = 5 * time.Second

// globals are the flags of all commands.
type globals struct {
	logLevel      string
	context       string
	allowMismatch bool
	config        string
	namespace     string
}

// New is calicoctl's command line.
func New(version string) *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use: "calicoctl", Short: "Manage Muslin network and security policy",
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&g.logLevel, "log-level", "l", "panic", "panic, fatal, error, warn, info or debug")
	flags.StringVar(&g.context, "context", "", "context of the kubeconfig to use")
	flags.BoolVar(&g.allowMismatch, "allow-version-mismatch", false, "work although the cluster runs another version")
	flags.StringVarP(&g.config, "config", "c", "", "file with connection settings (default "+open.DefaultFile+", else the environment)")
	root.AddCommand(
		create(g), apply(g), replace(g), deleteCommand(g), get(g), patch(g), label(g), validate(), ipam(g), node(), versionCommand(g, version),
	)
	return root
}

// withDatastore opens the datastore for one command. It is known to answer before do is called.
func (g *globals) withDatastore(ctx context.Context, do func(context.Context, datastore.Client) error) error {
	cfg, err := open.Load(g.config, os.LookupEnv)
	if err != nil {
		return err
	}
	cfg.K8sContext = g.context
	cfg.Logger, err = g.logger()
	if err != nil {
		return err
	}
	client, err := open.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	patient, cancel := context.WithTimeout(ctx, reach)
	defer cancel()
	if err := client.Ready(patient); err != nil {
		return err
	}
	return do(ctx, datastore.Validating(client))
}

func (g *globals) logger() (*slog.Logger, error) {
	switch g.logLevel {
	case "panic", "fatal", "": // nothing of ours is that bad
		return slog.New(slog.DiscardHandler), nil
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(g.logLevel)); err != nil {
		return nil, fmt.Errorf("flag --log-level: %q is not a level; use panic, fatal, error, warn, info or debug", g.logLevel)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// Run carries out a command line and returns the exit code: 0, or 1 with the reason on stderr.
func Run(ctx context.Context, version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := New(version)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errSilent) {
			fmt.Fprintln(stderr, err)
		}
		return 1
	}
	return 0
}

// errSilent fails a command that has printed what was wrong.
var errSilent = errors.New("failed")
