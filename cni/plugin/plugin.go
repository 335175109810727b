// Package plugin carries out the verbs of the CNI specification by asking felix. It is what the two plugins, calico and
// calico-ipam, are made of; they hold no state and no credential.
package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-net/muslin/cni/conf"
	"github.com/muslin-net/muslin/felix/client/cni"
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

// RestartTime is for how long ADD, DEL and GC wait for a felix that is away: pods start and end while it is restarted, and where
// it does not come back the runtime is told soon. CHECK and STATUS do not wait.
const RestartTime = 10 * time.Second

// Main returns the verbs of the calico plugin, which wait as long as restart for felix.
func Main(restart time.Duration) skel.CNIFuncs {
	with := caller(restart).with
	return skel.CNIFuncs{
		Add: with(conf.Parse, add), Del: with(conf.Read, del), Check: with(conf.Parse, check), Status: with(conf.Parse, status), GC: with(conf.Read, gc),
	}
}

// IPAM returns the verbs of the calico-ipam plugin, for networks whose main plugin is another one.
func IPAM(restart time.Duration) skel.CNIFuncs {
	with := caller(restart).with
	return skel.CNIFuncs{
		Add: with(conf.ParseIPAM, assign), Del: with(conf.Read, unassign), Check: with(conf.Read, nothing), Status: with(conf.ParseIPAM, status), GC: with(conf.Read, nothing),
	}
}

// call is one invocation with everything read and judged.
type call struct {
	*skel.CmdArgs
	network *conf.Network
	pairs   map[string]string
	felix   cni.Felix
}

// caller is for how long the verbs wait for felix.
type caller time.Duration

// with reads the input and turns errors into those of the specification.
func (restart caller) with(read func([]byte) (*conf.Network, error), verb func(context.Context, call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		network, err := read(args.StdinData)
		if err != nil {
			return types.NewError(codeBadConfig, "invalid network configuration", err.Error())
		}
		pairs, err := conf.ParseArgs(args.Args)
		if err != nil {
			return types.NewError(codeBadEnvironment, "invalid CNI_ARGS", err.Error())
		}
		felix := cni.Felix{Socket: cmp.Or(network.FelixSocket, cni.DefaultSocket), Patience: time.Duration(restart)}
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
	case errors.Is(err, cni.ErrTryAgain):
		return types.NewError(codeTryAgain, "calico cannot do this now", err.Error())
	case errors.Is(err, cni.ErrInvalid):
		return types.NewError(codeBadConfig, "calico cannot do what is asked for", err.Error())
	case errors.Is(err, cni.ErrNoNetns):
		return types.NewError(codeBadEnvironment, "CNI_NETNS is of no use", err.Error())
	case errors.Is(err, cni.ErrMismatch):
		return types.NewError(codeInternal, "the container's network is not as ADD left it", err.Error())
	}
	return types.NewError(codeInternal, "calico failed", err.Error())
}

func (c call) attachment() cni.Attachment {
	return cni.Attachment{Network: c.network.Name, ContainerID: c.ContainerID, Interface: c.IfName}
}

// config is what felix is asked for.
func (c call) config() (cni.Config, error) {
	n := c.network
	if err := conf.CheckArgs(c.pairs); err != nil {
		return cni.Config{}, types.NewError(codeBadEnvironment, "invalid CNI_ARGS", err.Error())
	}
	pod, err := n.Pod(c.pairs)
	if err != nil {
		return cni.Config{}, fmt.Errorf("%w: %w", cni.ErrInvalid, err)
	}
	return cni.Config{
		MTU: n.MTU, IPv4: pod.IPv4, IPv6: pod.IPv6, IPv4Pools: pod.IPv4Pools, IPv6Pools: pod.IPv6Pools, Fixed: pod.Fixed, Addresses: pod.Unmanaged,
		KubernetesPolicy: n.Policy.Type == "k8s", AllowForwarding: n.ContainerSettings.AllowIPForwarding,
		IPAddrsNoIPAM: n.FeatureControl.IPAddrsNoIPAM, FloatingIPs: n.FeatureControl.FloatingIPs,
		Queues: n.NumQueues, Labels: n.Labels(), PolicyWait: n.PolicyWait(), RequirePolicy: n.RequirePolicy,
		MAC: pod.MAC, Floating: pod.Floating, AllowedSources: pod.AllowedSources, Limits: pod.Limits,
	}, nil
}

func add(ctx context.Context, c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	delegates := !c.network.Own() && len(cfg.Addresses) == 0
	if delegates {
		if err := c.delegateAdd(ctx, &cfg); err != nil {
			return err
		}
	}
	added, err := c.felix.Add(ctx, c.attachment(), c.Netns, c.pairs, cfg)
	if err != nil {
		if delegates {
			err = c.giveBack(ctx, err)
		}
		return err
	}
	return types.PrintResult(result(c, added), c.network.CNIVersion)
}

// del unwires the pod first: an address is not given back while a pod may still use it.
func del(ctx context.Context, c call) error {
	if err := c.felix.Delete(ctx, c.attachment(), c.Netns, c.pairs); err != nil {
		return err
	}
	return c.delegate(ctx, "DEL")
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
	return c.delegate(ctx, "CHECK")
}

func status(ctx context.Context, c call) error {
	if err := c.felix.Status(ctx); err != nil {
		return types.NewError(codeNotAvailable, "calico cannot add pods now", err.Error())
	}
	return c.delegate(ctx, "STATUS")
}

func gc(ctx context.Context, c call) error {
	valid := make([]cni.Attachment, len(c.network.ValidAttachments))
	for i, a := range c.network.ValidAttachments {
		valid[i] = cni.Attachment{Network: c.network.Name, ContainerID: a.ContainerID, Interface: a.IfName}
	}
	if err := c.felix.GC(ctx, c.network.Name, valid); err != nil {
		return err
	}
	return c.delegate(ctx, "GC")
}

func assign(ctx context.Context, c call) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	addrs, err := c.felix.Assign(ctx, c.attachment(), c.pairs, cfg)
	if err != nil {
		return err
	}
	return types.PrintResult(assigned(addrs), c.network.CNIVersion)
}

func unassign(ctx context.Context, c call) error { return c.felix.Unassign(ctx, c.attachment()) }

// nothing is CHECK and GC of the IPAM plugin. felix knows no endpoint of a pod that another plugin wires: it cannot tell what of it
// should be there, nor which of its addresses the node has given up. docs/cni.md says so.
func nothing(context.Context, call) error { return nil }
