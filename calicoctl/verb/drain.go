package verb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// How a drain is followed.
const (
	drainWait = 30 * time.Second
	drainLook = 250 * time.Millisecond
	drainMost = time.Hour
)

func nodeDrain() *cobra.Command {
	var t target
	var wait time.Duration
	var cancel, detach bool
	cmd := &cobra.Command{
		Use: "drain-bgp", Short: "Take a node out of BGP without losing packets, or put it back", Args: cobra.NoArgs,
		Long: "Announce all routes of a node as about to go (GRACEFUL_SHUTDOWN, RFC 8326), so that its peers find other ways, wait, and\n" +
			"withdraw them. The sessions stay up. If this command is interrupted, the drain goes on. --cancel puts the node back into\n" +
			"service, and so does a restart of bird.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait < 0 || wait > drainMost {
				return fmt.Errorf("flag --wait: %v is out of range; give 0s to %v", wait, drainMost)
			}
			return t.withNode(cmd.Context(), func(ctx context.Context, l live) error {
				if err := l.Drain(ctx, wait, cancel); err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if cancel {
					fmt.Fprintln(out, "The node is back in service.")
					return nil
				}
				fmt.Fprintf(out, "The node's routes are announced as about to go; they are withdrawn in %v.\n", wait)
				if detach {
					return nil
				}
				if err := drained(ctx, l, wait); err != nil {
					return err
				}
				fmt.Fprintln(out, "The node announces nothing any more.")
				return nil
			})
		},
	}
	t.flags(cmd)
	cmd.Flags().DurationVar(&wait, "wait", drainWait, "how long peers have to find other ways")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "put the node back into service")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the end")
	return cmd
}

// drained waits until a drain is over.
func drained(ctx context.Context, l live, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait+farAnswer)
	defer cancel()
	tick := time.NewTicker(max(drainLook, wait/50))
	defer tick.Stop()
	for {
		switch s, err := l.Peers(ctx, ""); {
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("the drain goes on, but cannot be followed: %w", err)
		case err == nil && s.Drain == "drained":
			return nil
		case err == nil && s.Drain == "in service":
			return errors.New("the drain was taken back by somebody else, or bird has restarted")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the drain is not over in time: %w; look with calicoctl node status", ctx.Err())
		case <-tick.C:
		}
	}
}
