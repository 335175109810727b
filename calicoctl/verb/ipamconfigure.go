package verb

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func ipamConfigure(g *globals) *cobra.Command {
	values := map[string]*string{}
	cmd := &cobra.Command{
		Use: "configure", Short: "Change settings of address management", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var changes []ipamChange
			for _, s := range ipamSettings {
				if !cmd.Flags().Changed(s.flag) {
					continue
				}
				change, err := s.parse(*values[s.flag])
				if err != nil {
					return fmt.Errorf("flag --%s: %w", s.flag, err)
				}
				changes = append(changes, ipamChange{s.name, *values[s.flag], change})
			}
			if len(changes) == 0 {
				return errors.New("at least one configuration option must be specified")
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				if err := configureIPAM(ctx, c, changes); err != nil {
					return err
				}
				for _, change := range changes {
					fmt.Fprintf(cmd.OutOrStdout(), "Successfully set %s to: %s\n", change.name, change.value)
					if change.name == kubeVirtPersistence {
						fmt.Fprintln(cmd.OutOrStdout(), "It is stored and has no effect yet: addresses of KubeVirt machines end with their pods.")
					}
				}
				return nil
			})
		},
	}
	for _, s := range ipamSettings {
		values[s.flag] = cmd.Flags().String(s.flag, "", s.usage)
	}
	return cmd
}

// kubeVirtPersistence is a setting that nothing here reads yet.
const kubeVirtPersistence = "KubeVirtVMAddressPersistence"

// ipamChange is one setting that a command changes.
type ipamChange struct {
	name, value string
	apply       func(*api.IPAMConfigurationSpec)
}

// ipamSettings are the settings that can be changed, in the order in which changes are told.
var ipamSettings = []struct {
	flag, name, usage string
	parse             func(string) (func(*api.IPAMConfigurationSpec), error)
}{
	{"strictaffinity", "StrictAffinity", "true forbids nodes to borrow addresses from blocks of others; true or false", func(v string) (func(*api.IPAMConfigurationSpec), error) {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return nil, errors.New("invalid value. Use true or false to set strictaffinity")
		}
		return func(s *api.IPAMConfigurationSpec) { s.StrictAffinity = on }, nil
	}},
	{"max-blocks-per-host", "MaxBlocksPerHost", "how many blocks a node may have; 0 is the built-in limit of 20", func(v string) (func(*api.IPAMConfigurationSpec), error) {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return nil, errors.New("invalid value for maxblockhost. Use a valid number")
		}
		return func(s *api.IPAMConfigurationSpec) { s.MaxBlocksPerHost = int32(n) }, nil
	}},
	{"ip-cooldown-seconds", "IPCooldownSeconds", "for how long a released address is not given out again, 0 to 1200", func(v string) (func(*api.IPAMConfigurationSpec), error) {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number of seconds", v)
		}
		return func(s *api.IPAMConfigurationSpec) { s.IPCooldownSeconds = int32(n) }, nil
	}},
	{"kubevirt-ip-persistence", kubeVirtPersistence, "whether KubeVirt machines keep their addresses; Enabled or Disabled; stored, without effect yet", func(v string) (func(*api.IPAMConfigurationSpec), error) {
		if v != string(api.Enabled) && v != string(api.Disabled) {
			return nil, errors.New("invalid value for --kubevirt-ip-persistence. Use Enabled or Disabled")
		}
		return func(s *api.IPAMConfigurationSpec) { s.KubeVirtVMAddressPersistence = &v }, nil
	}},
}

// configureIPAM changes the configuration, or makes it if there is none. It is checked as any other.
func configureIPAM(ctx context.Context, c datastore.Client, changes []ipamChange) error {
	for range conflicts {
		config := api.NewIPAMConfiguration()
		o, err := c.Get(ctx, api.KeyOf(config))
		write := c.Update
		switch {
		case err == nil:
			config = o.(*api.IPAMConfiguration)
		case errors.Is(err, datastore.ErrNotFound):
			write = c.Create
		default:
			return err
		}
		for _, change := range changes {
			change.apply(&config.Spec)
		}
		if _, err = write(ctx, config); !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) {
			return err
		}
	}
	return errors.New("somebody else changed the IPAM configuration each time; try again")
}
