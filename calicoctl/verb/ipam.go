package verb

import "github.com/spf13/cobra"

func ipam(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "ipam", Short: "Look at the use of addresses, and mend it"}
	cmd.AddCommand(ipamShow(g), ipamCheck(g), ipamRelease(g), ipamSplit(g), ipamConfigure(g))
	return cmd
}
