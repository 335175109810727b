package verb

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
)

func validate() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use: "validate -f FILE", Short: "Judge resources in files without a cluster", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := in.read(cmd.InOrStdin(), "")
			if err != nil {
				return err
			}
			bad := 0
			for _, o := range objects {
				o.Default()
				if err := o.Validate(); err != nil {
					bad++
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", api.KeyOf(o), err)
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d resource(s) are not valid", bad, len(objects))
			}
			wording{past: "validated", keys: keysOf(objects)}.succeeded(cmd.OutOrStdout(), len(objects))
			return nil
		},
	}
	in.flags(cmd)
	return cmd
}
