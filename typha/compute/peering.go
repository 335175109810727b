package compute

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// peering is a BGPPeer that selects pods: they speak BGP with their node.
type peering struct {
	name      string
	selection *selection
}

// setPeering takes in a BGPPeer, or with nil its end.
func (e *Engine) setPeering(name string, o *api.BGPPeer) {
	was := e.peerings[name]
	delete(e.peerings, name)
	if o != nil && o.Spec.LocalWorkloadSelector != "" {
		if s, err := selector.Parse(o.Spec.LocalWorkloadSelector); err == nil {
			now := &peering{name: name, selection: e.index.selection(s)}
			now.selection.peerings[now] = struct{}{}
			e.peerings[name] = now
			e.endpointsIn(now.selection)
		}
	}
	if was != nil {
		e.endpointsIn(was.selection)
		delete(was.selection.peerings, was)
		e.index.release(was.selection)
	}
}

// setSpeaker takes in what a BGPConfiguration, or with nil its end, says of where pods find the speakers of their nodes.
func (e *Engine) setSpeaker(name string, o *api.BGPConfiguration) {
	var port uint16
	gateways := e.gateways
	if o != nil {
		port = o.Spec.ListenPort
	}
	if name == api.DefaultName {
		gateways = nil
		if o != nil {
			for _, text := range []string{o.Spec.LocalWorkloadPeeringIPV4, o.Spec.LocalWorkloadPeeringIPV6} {
				if a, err := netip.ParseAddr(text); err == nil {
					gateways = append(gateways, a)
				}
			}
		}
	}
	if port == e.bgpPorts[name] && slices.Equal(gateways, e.gateways) {
		return
	}
	e.bgpPorts[name], e.gateways = port, gateways
	if port == 0 {
		delete(e.bgpPorts, name)
	}
	for _, p := range e.peerings {
		e.endpointsIn(p.selection)
	}
}

// endpointsIn has the endpoints of a selection computed anew.
func (e *Engine) endpointsIn(sel *selection) {
	for s := range e.index.of(sel.subjects) {
		e.touch(s)
	}
}

// peeringOf is how a pod speaks BGP with its node; nil if no BGPPeer selects it.
func (e *Engine) peeringOf(s *subject) *view.Peering {
	var names []string
	for _, sel := range s.matches {
		for p := range sel.peerings {
			names = append(names, p.name)
		}
	}
	if names == nil {
		return nil
	}
	slices.Sort(names)
	node := s.endpoint.where().Node
	port := cmp.Or(e.bgpPorts[api.NodeConfigPrefix+node], e.bgpPorts[api.DefaultName], api.DefaultBGPPort)
	return &view.Peering{BGPPeers: names, Port: port, Gateways: e.gateways}
}

// flushPeering tells confd of a pod that speaks BGP.
func (e *Engine) flushPeering(ep *endpoint, was flushed) {
	if made := ep.made(); made != nil && made.rest != nil && made.rest.peering != nil {
		w := made.Make().(view.WorkloadEndpoint)
		ep.get().peering = views.NewEntry(view.WorkloadEndpoint{ID: w.ID, Addresses: w.Addresses, Peering: &view.Peering{BGPPeers: w.Peering.BGPPeers}})
	}
	before, now := was.has().peering, ep.has().peering
	if before != nil && (now == nil || now.Key != before.Key || ep.node != was.node) {
		e.out.drop(bgpView(e.names[was.node]), before.Key)
		before = nil
	}
	switch {
	case now == nil:
	case before != nil && before.Version == now.Version:
		ep.get().peering = before
	default:
		e.out.put(bgpView(e.names[ep.node]), now)
	}
}
