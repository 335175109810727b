package verb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/calicoctl/table"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
)

func ipam(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "ipam", Short: "Look at the use of addresses"}
	cmd.AddCommand(ipamShow(g))
	return cmd
}

func ipamShow(g *globals) *cobra.Command {
	var ip string
	var blocks, borrowed, configuration bool
	cmd := &cobra.Command{
		Use: "show", Short: "Show how full the pools are, or who has an address", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				a := alloc.New(c, alloc.Options{})
				switch {
				case ip != "":
					return showAddress(ctx, cmd, a, ip)
				case borrowed:
					return showBorrowed(ctx, cmd, a)
				case configuration:
					return showConfiguration(ctx, cmd, a)
				}
				return showUsage(ctx, cmd, a, blocks)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&ip, "ip", "", "who has this address")
	flags.BoolVar(&blocks, "show-blocks", false, "the blocks of each pool too")
	flags.BoolVar(&borrowed, "show-borrowed", false, "addresses in use by another node than the block's")
	flags.BoolVar(&configuration, "show-configuration", false, "the settings of address management")
	return cmd
}

func showUsage(ctx context.Context, cmd *cobra.Command, a *alloc.Allocator, blocks bool) error {
	pools, err := a.Usage(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"Grouping", "CIDR", "IPs Total", "IPs In Use", "IPs Reserved", "IPs Free"}}
	add := func(grouping, cidr string, c alloc.Counts) {
		rows = append(rows, []string{grouping, cidr, digits(c.Total), share(c.InUse, c.Total), share(c.Reserved, c.Total), share(c.Free, c.Total)})
	}
	for _, p := range pools {
		if p.Name == "" {
			add("No pool", "", p.Counts)
		} else {
			add("IP Pool", p.CIDR.String(), p.Counts)
		}
		for _, b := range p.Blocks {
			if blocks {
				add("Block", b.CIDR.String(), b.Counts)
			}
		}
	}
	table.Boxed(cmd.OutOrStdout(), rows)
	return nil
}

// digits is a number with five significant digits.
func digits(n *big.Int) string {
	if n.IsInt64() && n.Int64() < 100_000 {
		return n.String()
	}
	f, _ := new(big.Float).SetInt(n).Float64()
	return fmt.Sprintf("%.5g", f)
}

// share is a number with its part of the whole in per cent.
func share(n, total *big.Int) string {
	if total.Sign() == 0 {
		return digits(n)
	}
	percent, _ := new(big.Rat).SetFrac(new(big.Int).Mul(n, big.NewInt(100)), total).Float64()
	return fmt.Sprintf("%s (%.0f%%)", digits(n), percent)
}

func showAddress(ctx context.Context, cmd *cobra.Command, a *alloc.Allocator, text string) error {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("flag --ip: %q is not an address", text)
	}
	out := cmd.OutOrStdout()
	found, err := a.Address(ctx, addr)
	switch {
	case errors.Is(err, alloc.ErrNotAssigned):
		fmt.Fprintf(out, "%s is not assigned\n", addr)
		return nil
	case errors.Is(err, alloc.ErrCooling):
		fmt.Fprintln(out, err)
		return nil
	case err != nil:
		return err
	}
	fmt.Fprintf(out, "IP %s is in use\n", addr)
	if found.Handle != "" {
		fmt.Fprintf(out, "Handle: %s\n", found.Handle)
	}
	if len(found.Owner) > 0 {
		fmt.Fprintln(out, "Attributes:")
		for _, k := range slices.Sorted(maps.Keys(found.Owner)) {
			fmt.Fprintf(out, "  %s: %s\n", k, found.Owner[k])
		}
	}
	return nil
}

func showBorrowed(ctx context.Context, cmd *cobra.Command, a *alloc.Allocator) error {
	list, err := a.Borrowed(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"IP", "Borrowing-Node", "Block", "Block Owner", "Type", "Allocated-To"}}
	for _, b := range list {
		kind, to := "workload", b.Owner["namespace"]+"/"+b.Owner["pod"]
		if t := b.Owner["type"]; t != "" {
			kind, to = t, b.Handle
		} else if to == "/" {
			to = b.Handle
		}
		rows = append(rows, []string{b.Addr.String(), b.Node, b.Block.String(), b.BlockOwner, kind, to})
	}
	table.Boxed(cmd.OutOrStdout(), rows)
	return nil
}

func showConfiguration(ctx context.Context, cmd *cobra.Command, a *alloc.Allocator) error {
	c, err := a.Configuration(ctx)
	if err != nil {
		return err
	}
	auto := c.AutoAllocateBlocks == nil || *c.AutoAllocateBlocks
	table.Boxed(cmd.OutOrStdout(), [][]string{
		{"Property", "Value"},
		{"StrictAffinity", fmt.Sprint(c.StrictAffinity)},
		{"AutoAllocateBlocks", fmt.Sprint(auto)},
		{"MaxBlocksPerHost", fmt.Sprint(c.MaxBlocksPerHost)},
		{"IPCooldownSeconds", fmt.Sprint(c.IPCooldownSeconds)},
	})
	return nil
}
