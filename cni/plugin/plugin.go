// Package plugin carries out the verbs of the CNI specification by asking felix. It is what the two plugins, calico and
// calico-ipam, are made of; they hold no state and no credential.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/muslin-net/muslin/cni/conf"
	"github.com/muslin-net/muslin/felix/client"
)

// Error codes of the CNI specification.
const (
	codeBadEnvironment = types.ErrInvalidEnvironmentVariables
	codeBadConfig      = types.ErrInvalidNetworkConfig
	codeTryAgain       = types.ErrTryAgainLater
	codeNotAvailable   = 50
	codeInternal       = types.ErrInternal
)

// Kubelet gives a sandbox two minutes; felix answers or gives up well within.
const patience = 60 * time.Second

// Main returns the verbs of the calico plugin.
func Main() skel.CNIFuncs {
	return skel.CNIFuncs{Add: with(add), Del: with(del), Check: with(check), Status: with(status), GC: with(gc)}
}

// IPAM returns the verbs of the calico-ipam plugin, for networks whose main plugin is another one.
func IPAM() skel.CNIFuncs {
	return skel.CNIFuncs{Add: with(assign), Del: with(unassign), Check: with(nothing), Status: with(status), GC: with(nothing)}
}

// call is one invocation with everything read and judged.
type call struct {
	*skel.CmdArgs
	network *conf.Network
	pairs   map[string]string
	felix   *client.Client
}

// with reads the input, connects to felix, and turns errors into those of the specification.
func with(verb func(context.Context, call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		network, err := conf.Parse(args.StdinData)
		if err != nil {
			return types.NewError(codeBadConfig, "invalid network configuration", err.Error())
		}
		pairs, err := conf.ParseArgs(args.Args)
		if err != nil {
			return types.NewError(codeBadEnvironment, "invalid CNI_ARGS", err.Error())
		}
		socket := network.FelixSocket
		if socket == "" {
			socket = client.DefaultSocket
		}
		felix, err := client.Dial(socket)
		if err != nil {
			return types.NewError(codeBadConfig, "invalid felix_socket", err.Error())
		}
		defer felix.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return wrap(verb(ctx, call{CmdArgs: args, network: network, pairs: pairs, felix: felix}))
	}
}

func wrap(err error) error {
	var ready *types.Error
	switch {
	case err == nil, errors.As(err, &ready):
		return err
	case errors.Is(err, client.ErrTryAgain):
		return types.NewError(codeTryAgain, "calico cannot do this now", err.Error())
	}
	return types.NewError(codeInternal, "calico failed", err.Error())
}

func (c call) attachment() client.Attachment {
	return client.Attachment{Network: c.network.Name, ContainerID: c.ContainerID, Interface: c.IfName}
}

func (c call) config() client.Config {
	n := c.network
	return client.Config{
		MTU: n.MTU, IPv4: n.Own() && n.IPv4(), IPv6: n.Own() && n.IPv6(),
		IPv4Pools: n.IPAM.IPv4Pools, IPv6Pools: n.IPAM.IPv6Pools,
		KubernetesPolicy: n.Policy.Type == "k8s", AllowForwarding: n.ContainerSettings.AllowIPForwarding,
		AddrsNoIPAM: n.FeatureControl.IPAddrsNoIPAM, FloatingIPs: n.FeatureControl.FloatingIPs,
		Queues: n.NumQueues, Labels: n.Labels(), PolicyWait: n.PolicyWait(), RequirePolicy: n.RequirePolicy,
	}
}

func add(ctx context.Context, c call) (err error) {
	cfg := c.config()
	if !c.network.Own() {
		given, err := invoke.DelegateAdd(ctx, c.network.IPAM.Type, c.StdinData, nil)
		if err != nil {
			return fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err)
		}
		defer func() {
			if err != nil { // the address must not outlive an ADD that failed
				err = errors.Join(err, invoke.DelegateDel(ctx, c.network.IPAM.Type, c.StdinData, nil))
			}
		}()
		if cfg.Addresses, err = addressesOf(given); err != nil {
			return err
		}
	}
	added, err := c.felix.Add(ctx, c.attachment(), c.Netns, c.pairs, cfg)
	if err != nil {
		return err
	}
	return types.PrintResult(result(c, added), c.network.CNIVersion)
}

// result has the shape of spec §6.2: host and container interface, addresses with full mask, one route for each.
func result(c call, added client.Added) *current.Result {
	r := assigned(added.Addresses)
	r.Interfaces = []*current.Interface{
		{Name: added.HostInterface},
		{Name: c.IfName, Mac: added.MAC, Mtu: added.MTU, Sandbox: c.Netns},
	}
	for _, ip := range r.IPs {
		ip.Interface = current.Int(1)
	}
	return r
}

func assigned(addrs []netip.Addr) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for _, a := range addrs {
		host := net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		r.IPs = append(r.IPs, &current.IPConfig{Address: host})
		r.Routes = append(r.Routes, &types.Route{Dst: host})
	}
	return r
}

func del(ctx context.Context, c call) error {
	err := c.felix.Delete(ctx, c.attachment(), c.Netns, c.pairs)
	if !c.network.Own() {
		err = errors.Join(err, invoke.DelegateDel(ctx, c.network.IPAM.Type, c.StdinData, nil))
	}
	return err
}

func check(ctx context.Context, c call) error {
	parsed, err := previous(c)
	if err != nil {
		return err
	}
	addrs, err := addressesOf(parsed)
	if err != nil {
		return err
	}
	var mac string
	for _, i := range parsed.Interfaces {
		if i.Sandbox != "" && i.Name == c.IfName {
			mac = i.Mac
		}
	}
	return c.felix.Check(ctx, c.attachment(), c.Netns, mac, addrs)
}

// previous is the result of the ADD that a CHECK is about.
func previous(c call) (*current.Result, error) {
	if len(c.network.PrevResult) == 0 {
		return nil, types.NewError(codeBadConfig, "prevResult is missing", "CHECK compares with the result of ADD; the runtime must pass it")
	}
	r, err := create.Create(c.network.CNIVersion, c.network.PrevResult)
	if err != nil {
		return nil, types.NewError(codeBadConfig, "prevResult cannot be read", err.Error())
	}
	return current.NewResultFromResult(r)
}

func status(ctx context.Context, c call) error {
	if err := c.felix.Status(ctx); err != nil {
		return types.NewError(codeNotAvailable, "calico cannot add pods now", err.Error())
	}
	return nil
}

func gc(ctx context.Context, c call) error {
	valid := make([]client.Attachment, len(c.network.ValidAttachments))
	for i, a := range c.network.ValidAttachments {
		valid[i] = client.Attachment{Network: c.network.Name, ContainerID: a.ContainerID, Interface: a.IfName}
	}
	return c.felix.GC(ctx, c.network.Name, valid)
}

func assign(ctx context.Context, c call) error {
	addrs, err := c.felix.Assign(ctx, c.attachment(), c.pairs, c.config())
	if err != nil {
		return err
	}
	return types.PrintResult(assigned(addrs), c.network.CNIVersion)
}

func unassign(ctx context.Context, c call) error { return c.felix.Unassign(ctx, c.attachment()) }

// nothing is CHECK and GC of the IPAM plugin: felix checks addresses with the endpoint, and collects them by handle.
func nothing(context.Context, call) error { return nil }

func addressesOf(r types.Result) ([]netip.Addr, error) {
	parsed, err := current.NewResultFromResult(r)
	if err != nil {
		return nil, err
	}
	out := make([]netip.Addr, len(parsed.IPs))
	for i, ip := range parsed.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("result holds the address %v, which is none", ip.Address)
		}
		out[i] = a.Unmap()
	}
	return out, nil
}
