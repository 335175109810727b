// Package node is the way from what users wrote to the firewall of a node, in memory: typha's computation, the node's view,
// and what felix makes of it, put together as the binaries do and without them.
package node

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// Firewall is what the drivers of a node are told of a world.
func Firewall(w oracle.World, settings oracle.Settings, node string) desired.FirewallDelta {
	s := state.New(node)
	configure(&s.Config.Spec, settings)
	s.Apply(view.Batch{Updates: Items(w, node), InSync: true})
	for _, o := range w.Objects {
		if e, ok := o.(*api.WorkloadEndpoint); ok && e.Spec.Node == node {
			s.SetLocal(local(e))
		}
	}
	var f render.Firewall
	return f.Update(s)
}

func configure(c *api.FelixConfigurationSpec, s oracle.Settings) {
	if s.EndpointToHost != "" {
		c.DefaultEndpointToHostAction = s.EndpointToHost
	}
	if s.VXLANPort != 0 {
		c.VXLANPort = new(int(s.VXLANPort))
	}
	for name, ports := range map[string]string{"failsafeInboundHostPorts": s.FailsafeIn, "failsafeOutboundHostPorts": s.FailsafeOut} {
		if ports == "" {
			continue
		}
		if err := api.SetFelixParameter(c, name, ports); err != nil {
			panic(err) // who asks makes them up
		}
	}
	c.AllowVXLANPacketsFromWorkloads, c.AllowIPIPPacketsFromWorkloads = &s.AllowVXLAN, &s.AllowIPIP
}

// local is a workload as the node that wired it knows it.
func local(o *api.WorkloadEndpoint) state.Endpoint {
	workload := o.Spec.Workload
	switch o.Spec.Orchestrator {
	case api.OrchestratorKubernetes:
		workload = o.Spec.Pod
	case api.OrchestratorCNI:
		workload = o.Spec.ContainerID
	}
	e := state.Endpoint{
		ID:          view.EndpointID{Orchestrator: o.Spec.Orchestrator, Workload: o.Namespace + "/" + workload, Endpoint: o.Spec.Endpoint},
		ContainerID: o.Spec.ContainerID, Namespace: o.Namespace, Pod: o.Spec.Pod, Interface: o.Spec.InterfaceName,
	}
	for _, n := range o.Spec.IPNetworks {
		e.Addresses = append(e.Addresses, netip.MustParsePrefix(n).Addr())
	}
	return e
}

// Items are a node's view of a world.
func Items(w oracle.World, node string) []view.Item {
	e := compute.New()
	put := func(o api.Object) { e.Apply(cache.Change{Key: api.KeyOf(o), Object: o}) }
	for _, o := range w.Objects {
		put(o)
	}
	for i := range w.Kubernetes {
		put(kubernetes.NetworkPolicy(w.Kubernetes[i].ObjectMeta, &w.Kubernetes[i].Spec))
	}
	wide := func(kind, name string, p *api.GlobalNetworkPolicy) {
		if p != nil {
			e.Apply(cache.Change{Key: api.Key{Kind: kind, Name: name}, Object: p})
		}
	}
	for i := range w.Cluster {
		p, _ := kubernetes.ClusterNetworkPolicy(&w.Cluster[i])
		wide(kubernetes.KindCluster, w.Cluster[i].Name, p)
	}
	for i := range w.Admin {
		p, _ := kubernetes.AdminNetworkPolicy(&w.Admin[i])
		wide(kubernetes.KindAdmin, w.Admin[i].Name, p)
	}
	for i := range w.Baseline {
		p, _ := kubernetes.BaselineAdminNetworkPolicy(&w.Baseline[i])
		wide(kubernetes.KindBaseline, w.Baseline[i].Name, p)
	}
	for _, s := range w.Services {
		e.SetEndpointSlice(s.Name+"-1", slice(s))
	}
	change := e.Flush()
	all := map[view.Key]view.Item{}
	take := func(d *views.Delta) {
		if d == nil {
			return
		}
		for _, entry := range d.Put {
			all[entry.Key] = entry.Item()
		}
	}
	take(&change.Common[views.NodeView])
	take(change.Scopes[views.Scope{Node: node, View: views.NodeView}])
	keys := slices.SortedFunc(maps.Keys(all), views.CompareKeys)
	out := make([]view.Item, len(keys))
	for i, k := range keys {
		out[i] = all[k]
	}
	return out
}

func slice(s oracle.Service) *compute.EndpointSlice {
	out := &compute.EndpointSlice{Service: s.Name}
	for _, a := range s.Addresses {
		out.Endpoints = append(out.Endpoints, compute.Endpoint{Addresses: []netip.Addr{a}, Ready: true})
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, compute.ServicePort{Protocol: view.Protocol(p.Protocol), Port: p.Number})
	}
	return out
}
