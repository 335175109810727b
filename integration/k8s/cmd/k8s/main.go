// Command k8s runs Kubernetes on this machine, with Muslin in it, and lets its user look around.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/k8s/bench"
	"github.com/muslin-net/muslin/integration/k8s/cluster"
	"github.com/muslin-net/muslin/integration/lab"
)

func main() {
	lab.Hidden()
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	var status exitStatus
	switch {
	case errors.As(err, &status):
		return int(status)
	case err != nil:
		fmt.Fprintln(os.Stderr, "k8s:", err)
		return 1
	}
	return 0
}

// exitStatus is that of a program that ran in the cluster, handed on.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func root() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "k8s",
		Short: "Kubernetes on this machine, with Muslin in it",
		Long: `k8s runs a whole Kubernetes on this machine: a control plane, and workers with a kubelet and containerd each, all of
them namespaces. Nothing of it is in this machine's network, processes or mounts.`,
		Example: `  k8s up
  k8s kubectl get pods -A -o wide
  k8s shell worker-1
  k8s down`,
		SilenceUsage: true, SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&name, "name", "k8s", "which cluster; several can be up at once")
	cmd.AddCommand(upCmd(&name), downCmd(&name), statusCmd(&name), listCmd(), kubectlCmd(&name), shellCmd(&name), importCmd(&name), buildCmd(), benchCmd())
	return cmd
}

// networks are what a cluster can come up with.
var networks = []string{"ipip", "vxlan", "bgp", "cross-subnet", "policy-only", "bridge", "none"}

func upCmd(name *string) *cobra.Command {
	var workers int
	var network, source string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a cluster up and wait until it is ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(networks, network) {
				return fmt.Errorf("--network %q is unknown: use one of %v", network, networks)
			}
			out := cmd.ErrOrStderr()
			began := time.Now()
			c, err := cluster.Up(cmd.Context(), cluster.Options{
				Name: *name, Workers: workers, Progress: lab.PrintProgress(out), Log: func(line string) { fmt.Fprintln(out, line) },
			})
			if err != nil {
				return err
			}
			if err := bring(cmd.Context(), c, network, source, lab.PrintProgress(out)); err != nil {
				return fmt.Errorf("%w\nthe cluster is up for you to look around (k8s kubectl describe pods -A); k8s down removes it", err)
			}
			fmt.Fprintf(out, "cluster %s is ready after %.0f s, files in %s\nnext: %s kubectl get pods -A -o wide\n",
				*name, time.Since(began).Seconds(), c.StateDir(), os.Args[0])
			return nil
		},
	}
	cmd.Flags().IntVar(&workers, "workers", 2, "how many machines run pods")
	cmd.Flags().StringVar(&network, "network", "ipip", fmt.Sprintf("the overlay of deploy/overlays that is installed, or something else: %v", networks))
	cmd.Flags().StringVar(&source, "source", ".", "the project's directory, with deploy/overlays and bin/images")
	return cmd
}

// bring installs the network.
func bring(ctx context.Context, c *cluster.Cluster, network, source string, progress func(lab.Progress)) error {
	step := func(name string, fn func() error) error {
		began := time.Now()
		if err := fn(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		progress(lab.Progress{Step: name, Done: true, Took: time.Since(began)})
		return nil
	}
	switch network {
	case "none":
		return nil
	case "bridge":
		return step("bridge and host-local", func() error { return errors.Join(c.UseBridge(ctx), c.AwaitNodes(ctx)) })
	}
	source, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	if err := step("Muslin's images", func() error { return c.ImportMuslin(ctx, source) }); err != nil {
		return err
	}
	return step("Muslin", func() error { return c.Install(ctx, filepath.Join(source, "deploy/overlays", network)) })
}

func buildCmd() *cobra.Command {
	var programs []string
	for _, p := range k8s.Programs {
		programs = append(programs, string(p))
	}
	return &cobra.Command{
		Use: "build [PROGRAM...]", Short: "Build programs of Kubernetes, or all, ahead of what needs them", ValidArgs: programs, Args: cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = programs
			}
			for _, name := range args {
				path, err := k8s.Build(cmd.Context(), k8s.Program(name), func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) })
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), path)
			}
			return nil
		},
	}
}

func downCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove a cluster and all that is left of it, also after a crash", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cluster.Down(cmd.Context(), *name) },
	}
}

func listCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Name the clusters of this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := cluster.List()
			for _, n := range names {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return err
		},
	}
}

func statusCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show machines, programs, nodes and pods", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Open(*name)
			if err != nil {
				return err
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if err := st.Print(cmd.OutOrStdout(), time.Now()); err != nil {
				return err
			}
			for _, kind := range []string{"nodes", "pods"} {
				text, err := c.Kubectl(cmd.Context(), "", "get", kind, "-A", "-o", "wide")
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "\n%s", text)
			}
			return nil
		},
	}
}

func kubectlCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "kubectl ...", Short: "Run kubectl as an administrator of the cluster", DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			// Flags are kubectl's, but for --name right at the start.
			if len(args) > 1 && args[0] == "--name" {
				*name, args = args[1], args[2:]
			}
			return inside(cmd, *name, cluster.Control, append([]string{"kubectl"}, args...))
		},
	}
}

func shellCmd(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "shell [MACHINE [COMMAND...]]", Short: "Run a shell, or a command, on a machine (default " + cluster.Control + ", which has kubectl)",
		RunE: func(cmd *cobra.Command, args []string) error {
			machine, command := cluster.Control, []string{"bash"}
			if len(args) > 0 {
				machine = args[0]
			}
			if len(args) > 1 {
				command = args[1:]
			}
			return inside(cmd, *name, machine, command)
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after MACHINE are the command's
	return cmd
}

func importCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "import ARCHIVE...", Short: "Bring images onto all workers, as docker save or make images write them", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Open(*name)
			if err != nil {
				return err
			}
			return c.Import(cmd.Context(), args...)
		},
	}
}

func benchCmd() *cobra.Command {
	var source string
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure Muslin in Kubernetes, on clusters of its own", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := filepath.Abs(source)
			if err != nil {
				return err
			}
			return bench.Run(cmd.Context(), bench.Options{Source: source, Out: cmd.OutOrStdout(), Log: cmd.ErrOrStderr()})
		},
	}
	cmd.Flags().StringVar(&source, "source", ".", "the project's directory, with deploy/overlays and bin/images")
	return cmd
}

// inside runs a command on a machine with this one's own input and outputs.
func inside(cmd *cobra.Command, name, machine string, args []string) error {
	c, err := cluster.Open(name)
	if err != nil {
		return err
	}
	code, err := c.Exec(cmd.Context(), machine, lab.Command{
		Args: args, Env: cluster.Environment(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err == nil && code != 0 {
		err = exitStatus(code)
	}
	return err
}
