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

// Kubelet gives a sandbox two minutes; felix answers or gives up well within. What must be taken back after a failure
// has a time of its own.
const (
	patience = 60 * time.Second
	backTime = 10 * time.Second
)

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
		if text := pairs["IP"]; text != "" {
			if _, err := netip.ParseAddr(text); err != nil {
				return types.NewError(codeBadEnvironment, "invalid CNI_ARGS", fmt.Sprintf("IP=%s is not an address", text))
			}
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

// wrap gives an error the shape and code of the specification; one that another plugin chose is kept.
func wrap(err error) error {
	var coded *types.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded):
		if error(coded) == err { //nolint:errorlint // whether it is that very error
			return err
		}
		return types.NewError(coded.Code, coded.Msg, err.Error())
	case errors.Is(err, client.ErrTryAgain):
		return types.NewError(codeTryAgain, "calico cannot do this now", err.Error())
	case errors.Is(err, client.ErrInvalid):
		return types.NewError(codeBadConfig, "calico cannot do what is asked for", err.Error())
	case errors.Is(err, client.ErrMismatch):
		return types.NewError(codeInternal, "the container's network is not as ADD left it", err.Error())
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
		if cfg.Addresses, err = addressesOf(given); err != nil {
			return c.giveBack(ctx, err)
		}
	}
	added, err := c.felix.Add(ctx, c.attachment(), c.Netns, c.pairs, cfg)
	if err != nil {
		return c.giveBack(ctx, err)
	}
	return types.PrintResult(result(c, added), c.network.CNIVersion)
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
	if err := verb(ctx, c.network.IPAM.Type, c.StdinData, nil); err != nil {
		return fmt.Errorf("IPAM plugin %s: %w", c.network.IPAM.Type, err)
	}
	return nil
}

// result has the shape of spec §6.2: host and container interface, addresses with full mask, one route for each.
func result(c call, added client.Added) *current.Result {
	r := assigned(added.Addresses)
	r.Interfaces = []*current.Interface{
		{Name: added.HostInterface},
		{Name: c.IfName, Mac: added.MAC, Mtu: added.MTU, Sandbox: c.Netns},
	}
	for _, ip := range r.IPs {
		ip.Interface = new(1)
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

// del unwires the pod first: an address is not given back while a pod may still use it.
func del(ctx context.Context, c call) error {
	if err := c.felix.Delete(ctx, c.attachment(), c.Netns, c.pairs); err != nil {
		return err
	}
	return c.delegate(ctx, invoke.DelegateDel)
}

func check(ctx context.Context, c call) error {
	parsed, err := previous(c)
	if err != nil {
		return err
	}
	mac, addrs, err := ours(c, parsed)
	if err != nil {
		return err
	}
	if err := c.felix.Check(ctx, c.attachment(), c.Netns, mac, addrs); err != nil {
		return err
	}
	return c.delegate(ctx, invoke.DelegateCheck)
}

// ours picks this attachment's part of a result, which plugins later in the chain may have added to.
func ours(c call, r *current.Result) (mac string, addrs []netip.Addr, err error) {
	mine := -1
	for n, i := range r.Interfaces {
		if i.Sandbox != "" && i.Name == c.IfName {
			mine, mac = n, i.Mac
		}
	}
	part := &current.Result{CNIVersion: r.CNIVersion}
	for _, ip := range r.IPs {
		if ip.Interface == nil || *ip.Interface == mine {
			part.IPs = append(part.IPs, ip)
		}
	}
	addrs, err = addressesOf(part)
	return mac, addrs, err
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
	return c.delegate(ctx, invoke.DelegateStatus)
}

func gc(ctx context.Context, c call) error {
	valid := make([]client.Attachment, len(c.network.ValidAttachments))
	for i, a := range c.network.ValidAttachments {
		valid[i] = client.Attachment{Network: c.network.Name, ContainerID: a.ContainerID, Interface: a.IfName}
	}
	if err := c.felix.GC(ctx, c.network.Name, valid); err != nil {
		return err
	}
	return c.delegate(ctx, invoke.DelegateGC)
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
