// Command calicoctl manages the resources of a cluster and looks at the node that it runs on.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/muslin-net/muslin/calicoctl/verb"
	"github.com/muslin-net/muslin/internal/daemon"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return verb.Run(ctx, daemon.Version(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}
