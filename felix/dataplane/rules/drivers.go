package rules

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
)

// open makes a driver.
func (r *Rules) open(c choice) (d Driver, err error) {
	if c.Kind != NFTables {
		return iptables.New(iptables.Config{
			Variant: c.variant(), AtEnd: c.atEnd, Lock: iptables.LockWait{Probe: c.lockProbe}, SetLimit: c.setLimit, In: r.cfg.In, Log: r.cfg.Log,
		})
	}
	err = r.cfg.In(func() error {
		d, err = nftables.New(nftables.Config{Log: r.cfg.Log})
		return err
	})
	return d, err
}

// remove takes out what a kind of driver programmed, while another is in force. Both variants of iptables have the same sets.
func (r *Rules) remove(ctx context.Context, k, inForce Kind) error {
	if k == NFTables {
		return r.cfg.In(func() error { return nftables.Remove(ctx) })
	}
	if !r.left(ctx, k, inForce) {
		return nil
	}
	d, err := iptables.New(iptables.Config{Variant: k.variant(), In: r.cfg.In, Log: r.cfg.Log})
	if errors.Is(err, iptables.ErrNoProgram) {
		r.cfg.Log.Warn("rules that an earlier felix may have left cannot be looked for", "driver", k, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove what %s programmed: %w", k, err)
	}
	defer func() { _ = d.Close() }()
	return d.Remove(ctx, inForce != NFTables)
}

// left tells whether something of a kind of iptables is in the kernel. It asks without the programs, which need not be there.
func (r *Rules) left(ctx context.Context, k, inForce Kind) (found bool) {
	_ = r.cfg.In(func() error {
		switch k {
		case IPTablesNFT:
			found = slices.ContainsFunc(nftChains(ctx), func(c nft.ChainName) bool {
				return strings.HasPrefix(c.Name, "cali-") && (c.Table.Family == nft.IP4 || c.Table.Family == nft.IP6) && c.Table.Name != "calico"
			})
		case IPTablesLegacy:
			found = len(legacyTables()) > 0
		}
		found = found || inForce == NFTables && k == IPTablesLegacy && anySets(ctx)
		return nil
	})
	return found
}

// anySets tells whether sets of ours are in the kernel's ip_set.
func anySets(ctx context.Context) bool {
	kernel, err := ipset.Open()
	if err != nil {
		return false
	}
	defer func() { _ = kernel.Close() }()
	headers, err := kernel.Headers(ctx)
	if err != nil {
		return false // a kernel without
	}
	for name := range headers {
		if strings.HasPrefix(name, "cali4") || strings.HasPrefix(name, "cali6") {
			return true
		}
	}
	return false
}
