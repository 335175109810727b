// Command scale measures Muslin with a whole cluster on this machine: a real etcd, a real typha, a thousand real clients.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/integration/scale"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	self, _ := os.Executable() // with an empty one the start of typha fails, and says so
	o := scale.Options{Self: self, Out: os.Stdout, Log: os.Stderr}
	cmd := &cobra.Command{Use: "scale", Short: "A whole cluster's load on one machine", SilenceUsage: true, SilenceErrors: true}
	bench := &cobra.Command{Use: "bench", Short: `Measure, and print lines "BENCH name value unit"`}
	bench.PersistentFlags().StringVar(&o.Typha, "typha", filepath.Join(filepath.Dir(self), "typha"), "the binary of typha")
	size := bench.PersistentFlags().String("size", "large", "small (100 nodes), medium (500) or large (2,000)")
	bench.PersistentFlags().DurationVar(&o.During, "during", 20*time.Second, "for how long changes are made for a figure")
	bench.PersistentFlags().StringVar(&o.Profiles, "profiles", "", "directory for profiles of typha, and of what felix holds")
	area := func(name, short string, run func(context.Context, scale.Options, string) error) {
		bench.AddCommand(&cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), o, *size)
		}})
	}
	area("typha", "Typha with a thousand clients", scale.BenchTypha)
	area("felix", "One felix with all others elsewhere", scale.BenchFelix)
	worker := &cobra.Command{Use: scale.WorkerArgument, Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return scale.Serve() }}
	cmd.AddCommand(bench, worker)
	return cmd
}
