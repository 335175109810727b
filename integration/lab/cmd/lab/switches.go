package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/integration/lab"
)

func fabricCmd(f *flags) *cobra.Command {
	var check, format string
	cmd := &cobra.Command{
		Use:   "fabric [--source-dest-check=on|off [NODE...]]",
		Short: "Show or change how the network between the nodes treats their frames",
		Long: `fabric shows for each node whether the network checks its sources and destinations, and what it refused.
With --source-dest-check=on it does as clouds do: a frame from a node is dropped unless its source is the node's
own address, a frame to a node unless its destination is. Only the outer header counts. The change is for the
nodes named, or for all, and holds from the next frame on.
The router between the subnets knows the nodes' subnets only, no pods, whatever is set here.`,
		Example: `  lab fabric
  lab fabric --source-dest-check=on
  lab fabric --source-dest-check=off worker-1 worker-2`,
		RunE: func(cmd *cobra.Command, nodes []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			if check != "" {
				on, ok := map[string]bool{"on": true, "off": false}[check]
				if !ok {
					return fmt.Errorf("--source-dest-check=%s: use on or off", check)
				}
				if err := l.SetSourceDestCheck(cmd.Context(), on, nodes...); err != nil {
					return err
				}
			} else if len(nodes) > 0 {
				return fmt.Errorf("nothing to change for %v; add --source-dest-check=on or off", nodes)
			}
			st, err := l.Fabric(cmd.Context())
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), format, st, func(w io.Writer) error { return st.Print(w) })
		},
	}
	cmd.Flags().StringVar(&check, "source-dest-check", "", "on or off")
	outputFlag(cmd, &format)
	return cmd
}

func backendCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "backend bird|vxlan",
		Short: "Change calico_backend of all nodes: with BGP (bird), or without (vxlan)",
		Long: `backend does to each node what another calico_backend in the DaemonSet does: felix is started anew with
the new value, bird and confd are stopped for vxlan and started for bird.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			return l.SetBackend(cmd.Context(), lab.Backend(args[0]))
		},
	}
}
