package ipamgc

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/audit"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc/leak"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// facts are what is stored, read.
type facts struct {
	leak.State
	pools    []*api.IPPool // in name order
	grace    time.Duration
	cooldown time.Duration
	off      string // why nothing is collected; empty: it is
}

// read takes the objects apart. Blocks that are damaged are told and left out.
func (r *run) read(all loop.Objects) facts {
	f := facts{State: leak.State{Nodes: map[string]*api.Node{}}}
	var config *api.KubeControllersConfiguration
	var info *api.ClusterInformation
	var reservations []*api.IPReservation
	for _, o := range all {
		switch o := o.(type) {
		case *api.Node:
			f.Nodes[o.Name] = o
		case *api.WorkloadEndpoint:
			f.Endpoints = append(f.Endpoints, o)
		case *api.IPAMBlock:
			b, err := block.Of(o.DeepCopy())
			if err != nil {
				r.log.Warn("leaving out a block", "block", o.Name, "error", err)
			} else if !o.Spec.Deleted {
				f.Blocks = append(f.Blocks, b)
			}
		case *api.BlockAffinity:
			if kind, node, _, err := api.ParseAffinityName(o.Name); err == nil && kind == api.AffinityHost {
				f.Claims = append(f.Claims, node)
			}
		case *api.IPPool:
			f.pools = append(f.pools, o)
		case *api.IPReservation:
			reservations = append(reservations, o)
		case *api.IPAMConfiguration:
			f.cooldown = time.Duration(o.Spec.IPCooldownSeconds) * time.Second
		case *api.KubeControllersConfiguration:
			config = o
		case *api.ClusterInformation:
			info = o
		}
	}
	f.off = whyOff(config, info)
	if config = cmp.Or(config, api.NewKubeControllersConfiguration()); config.Spec.Controllers.Node != nil {
		if period := config.Spec.Controllers.Node.LeakGracePeriod; period != nil {
			f.grace = period.Duration
		}
	}
	slices.SortFunc(f.pools, func(x, y *api.IPPool) int { return strings.Compare(x.Name, y.Name) })
	f.Reserved, _ = block.ReadReserved(reservations) // who gives addresses out tells what is wrong
	f.Owners = leak.Reported{Nodes: f.Nodes, Endpoints: reported(f.Nodes, f.Endpoints)}
	return f
}

// whyOff says why nothing may be collected, nothing if it may. Both are nil where they are not stored.
func whyOff(config *api.KubeControllersConfiguration, info *api.ClusterInformation) string {
	switch {
	case info != nil && info.Locked():
		return "the datastore is locked"
	case config != nil && config.Spec.Controllers.Node == nil:
		return "KubeControllersConfiguration(default) has no spec.controllers.node"
	}
	return ""
}

func (f *facts) rules(o Options) leak.Rules {
	rules := leak.Rules{Grace: f.grace, Fence: o.Fence, Again: o.Retry}
	if rules.Grace > 0 {
		rules.Grace = max(rules.Grace, o.LeastGrace)
	}
	return rules
}

// reported are the addresses of endpoints on nodes that are there.
func reported(nodes map[string]*api.Node, endpoints []*api.WorkloadEndpoint) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, ep := range endpoints {
		if nodes[ep.Spec.Node] == nil {
			continue
		}
		for _, a := range audit.EndpointAddrs(ep) {
			out[a] = true
		}
	}
	return out
}

// pool is the name of the pool of an address, as metrics have it.
func (f *facts) pool(a netip.Addr) string {
	for _, p := range f.pools {
		if p.Prefix().Contains(a) {
			return p.Name
		}
	}
	return "no_ippool"
}
