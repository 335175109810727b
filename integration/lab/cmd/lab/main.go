// Command lab builds clusters of network namespaces on this machine, from Muslin's real binaries, and looks around in
// them. It is also what such a lab runs of its own: its first process and its supervisor are this program again.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

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
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return 0
}

// exitStatus is the status of a program that ran in the lab, handed on.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// flags are those of all commands.
type flags struct {
	name     string
	stateDir string
	binDir   string
}

func (f *flags) open() (*lab.Lab, error) { return lab.Open(f.name, f.stateDir) }

func root() *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Clusters of network namespaces on this machine, running the real binaries",
		Long: `lab builds a cluster on one machine: nodes are namespaces that run the real binaries,
subnets are bridges with a router between them, pods are wired by the real CNI plugin.
It works as root, and as an ordinary user where the kernel allows user namespaces.`,
		Example: `  lab up -f integration/lab/topologies/demo.yaml
  lab status
  lab exec pod-1 -- ip addr
  lab probe pod-1 pod-2
  lab capture worker-1 ens5
  lab down`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	p := cmd.PersistentFlags()
	p.StringVar(&f.name, "name", "lab", "which lab; several can be up at once")
	p.StringVar(&f.stateDir, "state-dir", "", "directory of the lab's files (default "+lab.DefaultStateDir("NAME")+")")
	p.StringVar(&f.binDir, "bin", "", "directory with the binaries (default where this program is)")
	cmd.AddCommand(upCmd(f), downCmd(f), statusCmd(f), listCmd(), podCmd(f), execCmd(f), probeCmd(f), matrixCmd(f),
		killCmd(f), startCmd(f), fabricCmd(f), backendCmd(f), captureCmd(f), demoCmd(f), walkthroughCmd(f), benchCmd(f))
	return cmd
}
