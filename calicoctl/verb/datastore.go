package verb

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/calicoctl/migrate"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/open"
)

func datastoreCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "datastore", Short: "Move a cluster's data, or lock it for work on it"}
	move := &cobra.Command{Use: "migrate", Short: "Move a cluster's data from etcd to Kubernetes"}
	move.AddCommand(
		exportCommand(g), importCommand(g),
		lockCommand(g, true, "lock", "Stop everything that gives addresses out or collects them", "Datastore locked."),
		lockCommand(g, false, "unlock", "Let addresses be given out again", "Datastore unlocked."),
	)
	cmd.AddCommand(move, policyNamesCommand(g))
	return cmd
}

func exportCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "export", Short: "Write everything in etcd to standard output", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.mustUse(open.TypeEtcd); err != nil {
				return err
			}
			return g.withPlainDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				n, err := migrate.WriteExport(ctx, c, g.version, cmd.OutOrStdout())
				if err != nil {
					return fmt.Errorf("failed to export the datastore: %w", err)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Successfully exported %d resource(s)\n", n)
				return nil
			})
		},
	}
}

func importCommand(g *globals) *cobra.Command {
	var file string
	var overwrite bool
	cmd := &cobra.Command{
		Use: "import -f FILE", Short: "Put an export into Kubernetes, or go on doing so", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return errors.New("no file is given; use -f FILE, or -f - for standard input")
			}
			if err := g.mustUse(open.TypeKubernetes); err != nil {
				return err
			}
			x, err := readExport(file, cmd)
			if err != nil {
				return fmt.Errorf("failed to import %s: %w", file, err)
			}
			return g.withPlainDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				done, err := migrate.Import(ctx, c, x, overwrite)
				if err != nil {
					return fmt.Errorf("failed to import %s: %w", file, err)
				}
				tellImport(cmd, done)
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "file that export wrote; - reads standard input")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace what the unfinished import of another export wrote")
	return cmd
}

func tellImport(cmd *cobra.Command, done migrate.Result) {
	if done.Already {
		fmt.Fprintln(cmd.OutOrStdout(), "This export has been imported already; nothing was changed.")
		return
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Successfully imported %d resource(s)\n", done.Written)
	for _, line := range done.Left {
		fmt.Fprintf(cmd.OutOrStdout(), "Left out: %s\n", line)
	}
	fmt.Fprintln(cmd.OutOrStdout(), "The datastore is locked. Look at it, then run 'calicoctl datastore migrate unlock'.")
}

func readExport(file string, cmd *cobra.Command) (*migrate.Export, error) {
	in, err := openFile(file, cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return migrate.Read(in)
}

// mustUse refuses to work on another type of datastore than the one a command is for.
func (g *globals) mustUse(kind string) error {
	cfg, err := g.settings()
	if err != nil {
		return err
	}
	if cfg.Type != kind {
		return fmt.Errorf("this command is for a datastore of type %s, and the settings are for %s; set DATASTORE_TYPE=%[1]s, or give another file with -c", kind, cfg.Type)
	}
	return nil
}

func policyNamesCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "migrate-policy-names", Short: "Take the prefix of the default tier from names of policies that older versions wrote", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.mustUse(open.TypeEtcd); err != nil {
				return fmt.Errorf("%w; in Kubernetes kube-controllers renames policies", err)
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				renamed, err := migrate.PolicyNames(ctx, c)
				for _, r := range renamed {
					fmt.Fprintf(cmd.OutOrStdout(), "%s is now %s\n", r.From, r.To.Name)
				}
				if err != nil {
					return fmt.Errorf("failed to rename policies: %w", err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Successfully renamed %d policies\n", len(renamed))
				return nil
			})
		},
	}
}

func lockCommand(g *globals, lock bool, use, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				if err := setLock(ctx, c, lock); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), done)
				return nil
			})
		},
	}
}

// setLock locks or unlocks. A lock that is there already stays as it is, so that reports made under it stay current. What is a
// part of a cluster only, since its import has not finished, stays locked.
func setLock(ctx context.Context, c datastore.Client, lock bool) error {
	for range conflicts {
		info, err := information(ctx, c)
		if err != nil {
			return err
		}
		if !lock {
			if err := migrate.CheckFinished(info); err != nil {
				return fmt.Errorf("failed to unlock the datastore: %w", err)
			}
		}
		if info.Spec.DatastoreReady != nil && info.Locked() == lock {
			return nil
		}
		ready := !lock
		info.Spec.DatastoreReady = &ready
		if _, err := c.Update(ctx, info); !errors.Is(err, datastore.ErrConflict) {
			return err
		}
	}
	return errors.New("somebody else changed the ClusterInformation each time; try again")
}
