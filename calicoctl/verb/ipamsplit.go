package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/bits"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func ipamSplit(g *globals) *cobra.Command {
	var name, cidr string
	cmd := &cobra.Command{
		Use: "split NUMBER (--name=POOL | --cidr=CIDR)", Short: "Split a pool into a number of equal ones, a power of 2", Args: cobra.ExactArgs(1),
		Long: "Split a pool into a number of equal ones, a power of 2. What is given out stays where it is. The datastore has to be\n" +
			"locked (calicoctl datastore migrate lock). A split that was interrupted goes on when it is repeated.",
		RunE: func(cmd *cobra.Command, args []string) error {
			parts, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("error reading number to split IP pools into. %s is not a valid number", args[0])
			}
			if (name == "") == (cidr == "") {
				return errors.New("no name or CIDR provided. Provide a name or CIDR to denote the IP pool to split")
			}
			return g.withPlainDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				return splitPool(ctx, cmd.OutOrStdout(), c, name, cidr, parts)
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the pool")
	cmd.Flags().StringVar(&cidr, "cidr", "", "range of the pool")
	return cmd
}

// splitPool makes the parts beside the pool, which for that moment overlap it, and then removes it. c must not refuse that;
// the parts are validated here.
func splitPool(ctx context.Context, out io.Writer, c datastore.Client, name, cidr string, parts int) error {
	info, err := information(ctx, c)
	if err != nil {
		return err
	}
	if !info.Locked() {
		return errors.New("datastore is not locked. Run the `calicoctl datastore migrate lock` command in order split the IP pools")
	}
	pool, err := findPool(ctx, c, name, cidr)
	if err != nil {
		return err
	}
	children, err := splitInto(pool, parts)
	if err != nil {
		return err
	}
	if !pool.Spec.Disabled {
		pool.Spec.Disabled = true
		o, err := c.Update(ctx, pool)
		if err != nil {
			return fmt.Errorf("error disabling IP pool %s: %w", pool.Name, err)
		}
		pool.ResourceVersion = o.GetResourceVersion()
	}
	for _, child := range children {
		if _, err := c.Create(ctx, child); err != nil {
			if there, getErr := c.Get(ctx, api.KeyOf(child)); getErr == nil && there.(*api.IPPool).Spec.CIDR == child.Spec.CIDR {
				continue // made by a split that was interrupted
			}
			return fmt.Errorf("error making split pool with cidr %s: %w", child.Spec.CIDR, err)
		}
	}
	if _, err := c.Delete(ctx, api.KeyOf(pool), datastore.Precondition{Revision: pool.ResourceVersion}); err != nil {
		return fmt.Errorf("error removing the IP pool that was split %s: %w", pool.Name, err)
	}
	fmt.Fprintf(out, "IP Pool %s was successfully split into %d smaller pools.\n", pool.Name, len(children))
	for _, child := range children {
		fmt.Fprintf(out, "Created %s with CIDR %s.\n", child.Name, child.Spec.CIDR)
	}
	fmt.Fprintln(out, "You may now unlock the data store.")
	return nil
}

func findPool(ctx context.Context, c datastore.Client, name, cidr string) (*api.IPPool, error) {
	if name != "" {
		o, err := c.Get(ctx, api.Key{Kind: "IPPool", Name: name})
		if err != nil {
			return nil, fmt.Errorf("unable to find IP pool with name %s: %w", name, err)
		}
		return o.(*api.IPPool), nil
	}
	wanted, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, fmt.Errorf("flag --cidr: %q is not a CIDR", cidr)
	}
	var all []*api.IPPool
	if err := readAll(ctx, c, "IPPool", &all); err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.Prefix() == wanted.Masked() {
			return p, nil
		}
	}
	return nil, fmt.Errorf("unable to find IP pool covering the specified CIDR %s", cidr)
}

// splitInto are the equal parts of a pool, as pools of their own.
func splitInto(pool *api.IPPool, parts int) ([]*api.IPPool, error) {
	const longest = 253
	whole := pool.Prefix()
	if parts < 2 || bits.OnesCount(uint(parts)) != 1 {
		return nil, fmt.Errorf("number to split CIDR into is not a valid power of 2: %d", parts)
	}
	length := whole.Bits() + bits.Len(uint(parts)) - 1
	if !whole.IsValid() || length > pool.EffectiveBlockSize() {
		return nil, fmt.Errorf("the CIDR %s is not large enough to be split into %d parts with blocks of /%d", pool.Spec.CIDR, parts, pool.EffectiveBlockSize())
	}
	out := make([]*api.IPPool, parts)
	for i := range out {
		child := pool.DeepCopy()
		child.UID, child.ResourceVersion, child.Generation, child.CreationTimestamp = types.UID(""), "", 0, (&api.IPPool{}).CreationTimestamp
		child.Name = fmt.Sprintf("split-%s-%d", pool.Name, i)
		if over := len(child.Name) - longest; over > 0 {
			child.Name = fmt.Sprintf("split-%s-%d", pool.Name[:len(pool.Name)-over], i)
		}
		child.Spec.CIDR, child.Spec.Disabled = part(whole, length, i).String(), false
		child.Default()
		if err := child.Validate(); err != nil {
			return nil, err
		}
		out[i] = child
	}
	return out, nil
}

// part is the part number i of a range that is cut into parts with a prefix length.
func part(whole netip.Prefix, length, i int) netip.Prefix {
	base := whole.Addr()
	n := new(big.Int).SetBytes(base.AsSlice())
	n.Add(n, new(big.Int).Lsh(big.NewInt(int64(i)), uint(base.BitLen()-length)))
	a, _ := netip.AddrFromSlice(n.FillBytes(make([]byte, base.BitLen()/8)))
	return netip.PrefixFrom(a, length)
}
