// Package verb is calicoctl's commands, one file for each.
package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/open"
)

// reach is how long a command waits for the datastore to answer at all.
const reach = 5 * time.Second

// globals are the flags of all commands.
type globals struct {
	version       string // calicoctl's own
	logLevel      string
	context       string
	allowMismatch bool
	config        string
	namespace     string
}

// New is calicoctl's command line.
func New(version string) *cobra.Command {
	g := &globals{version: version}
	root := &cobra.Command{
		Use: "calicoctl", Short: "Manage Muslin network and security policy",
		SilenceUsage: true, SilenceErrors: true, Version: version,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: displayName(os.Args[0])},
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&g.logLevel, "log-level", "l", "panic", "panic, fatal, error, warn, info or debug")
	flags.StringVar(&g.context, "context", "", "context of the kubeconfig to use")
	flags.BoolVar(&g.allowMismatch, "allow-version-mismatch", false, "work although the cluster runs another version")
	flags.StringVarP(&g.config, "config", "c", "", "file with connection settings (default "+open.DefaultFile+", else the environment)")
	root.AddCommand(
		create(g), apply(g), replace(g), deleteCommand(g), get(g), patch(g), label(g), validate(), ipam(g), datastoreCommand(g), node(g), clusterCommand(g), bgp(), policy(g), versionCommand(g),
	)
	return root
}

// withDatastore opens the datastore for one command. It is known to answer before do is called.
func (g *globals) withDatastore(ctx context.Context, do func(context.Context, datastore.Client) error) error {
	return g.withPlainDatastore(ctx, func(ctx context.Context, c datastore.Client) error { return do(ctx, datastore.Validating(c)) })
}

// withPlainDatastore is withDatastore for a command that has to do what is refused otherwise: nothing is validated.
func (g *globals) withPlainDatastore(ctx context.Context, do func(context.Context, datastore.Client) error) error {
	cfg, err := g.settings()
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
	if !g.allowMismatch {
		if err := g.sameVersion(patient, client); err != nil {
			return err
		}
	}
	return do(ctx, client)
}

// release are the numbers of a version, without "v" before and whatever follows.
var release = regexp.MustCompile(`^v?(\d+(?:\.\d+)+)`)

// sameVersion refuses to work on a cluster of another release. A cluster that names none, and a calicoctl that is none,
// are not judged.
func (g *globals) sameVersion(ctx context.Context, c datastore.Client) error {
	own := release.FindStringSubmatch(g.version)
	if own == nil {
		return nil
	}
	o, err := c.Get(ctx, clusterInformation)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	theirs := o.(*api.ClusterInformation).Spec.CalicoVersion
	if cluster := release.FindStringSubmatch(theirs); cluster != nil && cluster[1] != own[1] {
		return fmt.Errorf("version mismatch: calicoctl is %s, the cluster %s; use the cluster's calicoctl, or --allow-version-mismatch", g.version, theirs)
	}
	return nil
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
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}
