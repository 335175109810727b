package verb

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// clusterInformation is what the system says of itself.
var clusterInformation = api.Key{Kind: "ClusterInformation", Name: "default"}

func versionCommand(g *globals) *cobra.Command {
	var clientOnly bool
	var poll time.Duration
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of calicoctl and of the cluster", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Client Version:    %s\n", g.version)
			g.allowMismatch = true // it is to be shown
			if clientOnly {
				return nil
			}
			for {
				err := g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
					o, err := c.Get(ctx, clusterInformation)
					if err != nil {
						return fmt.Errorf("unable to retrieve Cluster Version or Type: %w", err)
					}
					info := o.(*api.ClusterInformation).Spec
					fmt.Fprintf(out, "Cluster Version:   %s\nCluster Type:      %s\n", or(info.CalicoVersion, "unknown"), or(info.ClusterType, "unknown"))
					return nil
				})
				if err != nil || poll == 0 {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(poll):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only calicoctl's own")
	cmd.Flags().DurationVar(&poll, "poll", 0, "show the cluster's again and again, this far apart")
	return cmd
}
