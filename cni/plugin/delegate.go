package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/invoke"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/muslin-net/muslin/cni/conf"
	"github.com/muslin-net/muslin/felix/client/cni"
)

// delegateAdd has the network's IPAM plugin, another one than ours, give addresses and routes. If what it gave cannot be
// used, it gets it back.
func (c call) delegateAdd(ctx context.Context, cfg *cni.Config) error {
	stdin, err := c.delegated(ctx)
	if err != nil {
		return err
	}
	given, err := invoke.DelegateAdd(ctx, c.network.IPAM.Type, stdin, nil)
	if err != nil {
		return fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err)
	}
	r, err := current.NewResultFromResult(given)
	if err == nil {
		cfg.Addresses, err = addressesOf(r)
	}
	if err == nil {
		cfg.Routes, err = routesOf(r, c.network.IncludeDefaultRoutes)
	}
	if err != nil {
		return c.giveBack(ctx, fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err))
	}
	return nil
}

// delegated is the configuration for the IPAM plugin: with the node's own ranges, where it asks for them.
func (c call) delegated(ctx context.Context) ([]byte, error) {
	if !conf.UsesPodCIDR(c.StdinData) {
		return c.StdinData, nil
	}
	cidrs, err := c.felix.PodCIDRs(ctx)
	if err != nil {
		return nil, err
	}
	stdin, err := conf.WithPodCIDRs(c.StdinData, cidrs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cni.ErrInvalid, err)
	}
	return stdin, nil
}

// giveBack returns what another IPAM plugin gave, after an ADD that failed, perhaps for want of time.
func (c call) giveBack(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backTime)
	defer cancel()
	return errors.Join(why, c.delegate(ctx, invoke.DelegateDel))
}

// delegate passes a verb on to the network's IPAM plugin, where that is another one than ours.
func (c call) delegate(ctx context.Context, verb func(context.Context, string, []byte, invoke.Exec) error) error {
	if c.network.Own() {
		return nil
	}
	stdin, err := c.delegated(ctx)
	if err == nil {
		err = verb(ctx, c.network.IPAM.Type, stdin, nil)
	}
	if err != nil {
		return fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err)
	}
	return nil
}
