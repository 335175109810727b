package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/calicoctl/table"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
)

func ipamShow(g *globals) *cobra.Command {
	var ip, output string
	var blocks, borrowed, configuration bool
	cmd := &cobra.Command{
		Use: "show", Short: "Show how full the pools are, or who has an address", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"ps", "yaml", "json"}, output) {
				return fmt.Errorf("flag --output: unrecognized output format '%s'; use ps, yaml or json", output)
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				a := alloc.New(c, alloc.Options{})
				var doc document
				var err error
				switch {
				case ip != "":
					doc, err = readAddress(ctx, a, ip)
				case borrowed:
					doc, err = readBorrowed(ctx, a)
				case configuration:
					doc, err = readConfiguration(ctx, a)
				default:
					doc, err = readUsage(ctx, a, blocks)
				}
				if err != nil {
					return err
				}
				if output != "ps" {
					return show(cmd.OutOrStdout(), output, doc, nil)
				}
				doc.print(cmd.OutOrStdout())
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&ip, "ip", "", "who has this address")
	flags.BoolVar(&blocks, "show-blocks", false, "the blocks of each pool too")
	flags.BoolVar(&borrowed, "show-borrowed", false, "addresses in use by another node than the block's")
	flags.BoolVar(&configuration, "show-configuration", false, "the settings of address management")
	flags.StringVarP(&output, "output", "o", "ps", "ps, yaml or json")
	return cmd
}

// document is something that is shown: to people as print writes it, to programs as its fields.
type document interface{ print(w io.Writer) }

// usageDocument is how full the pools are. Numbers may be as large as IPv6 pools are.
type usageDocument struct {
	Pools []poolDocument `json:"pools"`
}

type poolDocument struct {
	Name string `json:"name,omitempty"` // empty for blocks that are in no pool
	CIDR string `json:"cidr,omitempty"`
	countsDocument
	Blocks []blockDocument `json:"blocks,omitempty"`
}

type blockDocument struct {
	CIDR     string `json:"cidr"`
	Affinity string `json:"affinity,omitempty"`
	countsDocument
}

// countsDocument are numbers of addresses. Those of warm pools are reserved for their nodes, not in use.
type countsDocument struct {
	Total    *big.Int `json:"total"`
	InUse    *big.Int `json:"inUse"`
	Reserved *big.Int `json:"reserved"`
	WarmPool *big.Int `json:"warmPool"` // of the reserved ones
	Free     *big.Int `json:"free"`
}

func countsOf(c alloc.Counts) countsDocument {
	return countsDocument{
		Total: c.Total, InUse: new(big.Int).Sub(c.InUse, c.Warm), Reserved: new(big.Int).Add(c.Reserved, c.Warm), WarmPool: c.Warm, Free: c.Free,
	}
}

func readUsage(ctx context.Context, a *alloc.Allocator, blocks bool) (document, error) {
	pools, err := a.Usage(ctx)
	if err != nil {
		return nil, err
	}
	var doc usageDocument
	for _, p := range pools {
		out := poolDocument{Name: p.Name, countsDocument: countsOf(p.Counts)}
		if p.Name != "" {
			out.CIDR = p.CIDR.String()
		}
		for _, b := range p.Blocks {
			if blocks {
				out.Blocks = append(out.Blocks, blockDocument{b.CIDR.String(), b.Affinity, countsOf(b.Counts)})
			}
		}
		doc.Pools = append(doc.Pools, out)
	}
	return doc, nil
}

func (d usageDocument) print(w io.Writer) {
	rows := [][]string{{"Grouping", "CIDR", "IPs Total", "IPs In Use", "IPs Reserved", "IPs Free"}}
	warm := new(big.Int)
	add := func(grouping, cidr string, c countsDocument) {
		rows = append(rows, []string{grouping, cidr, digits(c.Total), share(c.InUse, c.Total), share(c.Reserved, c.Total), share(c.Free, c.Total)})
	}
	for _, p := range d.Pools {
		grouping := "IP Pool"
		if p.Name == "" {
			grouping = "No pool"
		}
		add(grouping, p.CIDR, p.countsDocument)
		warm.Add(warm, p.WarmPool)
		for _, b := range p.Blocks {
			add("Block", b.CIDR, b.countsDocument)
		}
	}
	table.Boxed(w, rows)
	if warm.Sign() > 0 {
		fmt.Fprintf(w, "%s of the reserved addresses are held ready by nodes for their pods (warm pools).\n", warm)
	}
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

// addressDocument is who has an address.
type addressDocument struct {
	IP         string            `json:"ip"`
	State      string            `json:"state"` // inUse, warmPool, cooldown or free
	Purpose    string            `json:"purpose,omitempty"`
	Handle     string            `json:"handle,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Sequence   uint64            `json:"sequenceNumber,omitempty"`
	ReleasedAt *time.Time        `json:"releasedAt,omitempty"`
	text       string
}

func readAddress(ctx context.Context, a *alloc.Allocator, text string) (document, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, fmt.Errorf("flag --ip: %q is not an address", text)
	}
	found, err := a.Address(ctx, addr)
	d := addressDocument{IP: addr.String(), Handle: found.Handle, Attributes: found.Owner, Sequence: found.Sequence, ReleasedAt: moment(found.Released)}
	switch {
	case errors.Is(err, alloc.ErrNotAssigned):
		d.State, d.text = "free", fmt.Sprintf("%s is not assigned", addr)
	case errors.Is(err, alloc.ErrCooling):
		d.State, d.text = "cooldown", err.Error()
	case err != nil:
		return nil, err
	case found.Purpose() == block.Warm:
		d.State, d.Purpose = "warmPool", found.Purpose().String()
		d.text = fmt.Sprintf("IP %s is reserved for node %s, which holds it ready for a pod (warm pool)", addr, found.Owner[api.OwnerNode])
	default:
		d.State, d.Purpose, d.text = "inUse", found.Purpose().String(), fmt.Sprintf("IP %s is in use", addr)
	}
	return d, nil
}

func (d addressDocument) print(w io.Writer) {
	fmt.Fprintln(w, d.text)
	if d.Handle != "" {
		fmt.Fprintf(w, "Handle: %s\n", d.Handle)
	}
	if len(d.Attributes) > 0 {
		fmt.Fprintln(w, "Attributes:")
		for _, k := range slices.Sorted(maps.Keys(d.Attributes)) {
			fmt.Fprintf(w, "  %s: %s\n", k, d.Attributes[k])
		}
	}
}

type borrowedDocument struct {
	Borrowed []borrowedAddress `json:"borrowed"`
}

type borrowedAddress struct {
	IP         string `json:"ip"`
	Node       string `json:"borrowingNode"`
	Block      string `json:"block"`
	BlockOwner string `json:"blockOwner,omitempty"`
	Type       string `json:"type"`
	To         string `json:"allocatedTo"`
}

func readBorrowed(ctx context.Context, a *alloc.Allocator) (document, error) {
	list, err := a.Borrowed(ctx)
	if err != nil {
		return nil, err
	}
	doc := borrowedDocument{Borrowed: []borrowedAddress{}}
	for _, b := range list {
		kind, to := "workload", b.Owner[api.OwnerNamespace]+"/"+b.Owner[api.OwnerPod]
		if t := b.Owner[api.OwnerType]; t != "" {
			kind, to = t, b.Handle
		} else if to == "/" {
			to = b.Handle
		}
		doc.Borrowed = append(doc.Borrowed, borrowedAddress{b.Addr.String(), b.Node, b.Block.String(), b.BlockOwner, kind, to})
	}
	return doc, nil
}

func (d borrowedDocument) print(w io.Writer) {
	rows := [][]string{{"IP", "Borrowing-Node", "Block", "Block Owner", "Type", "Allocated-To"}}
	for _, b := range d.Borrowed {
		rows = append(rows, []string{b.IP, b.Node, b.Block, b.BlockOwner, b.Type, b.To})
	}
	table.Boxed(w, rows)
}

type configurationDocument struct {
	StrictAffinity     bool  `json:"strictAffinity"`
	AutoAllocateBlocks bool  `json:"autoAllocateBlocks"`
	MaxBlocksPerHost   int32 `json:"maxBlocksPerHost"`
	IPCooldownSeconds  int32 `json:"ipCooldownSeconds"`
}

func readConfiguration(ctx context.Context, a *alloc.Allocator) (document, error) {
	c, err := a.Configuration(ctx)
	return configurationDocument{c.StrictAffinity, c.AutoAllocates(), c.MaxBlocksPerHost, c.IPCooldownSeconds}, err
}

func (d configurationDocument) print(w io.Writer) {
	table.Boxed(w, [][]string{
		{"Property", "Value"},
		{"StrictAffinity", fmt.Sprint(d.StrictAffinity)},
		{"AutoAllocateBlocks", fmt.Sprint(d.AutoAllocateBlocks)},
		{"MaxBlocksPerHost", fmt.Sprint(d.MaxBlocksPerHost)},
		{"IPCooldownSeconds", fmt.Sprint(d.IPCooldownSeconds)},
	})
}
