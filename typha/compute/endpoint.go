package compute

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// endpoint is a subject that policies apply to.
type endpoint struct {
	workload *api.WorkloadEndpoint // exactly one of the two
	host     *api.HostEndpoint
	pod      *api.WorkloadEndpoint // what the pod says, if it is one that is known; workload too if nothing else is known of it
	gone     bool
	flushed
}

// flushed is what the views have of an endpoint.
type flushed struct {
	node  nodeID
	entry *views.Entry // nil if it is in no view
	lists [passes]*list
	// peering is what confd's view has of it: nil unless it speaks BGP with its node.
	peering *views.Entry
	// without are policies that select it and have no effect on it, of which users are warned.
	without []string
}

// become takes over what is new of a later version.
func (ep *endpoint) become(now *endpoint) {
	ep.workload, ep.host, ep.pod = now.workload, now.host, now.pod
}

// workloadSubject is an endpoint as it is stored or reported (o), and as its pod says; one of the two may be nil.
func workloadSubject(o, pod *api.WorkloadEndpoint) *subject {
	is := pod
	if pod == nil {
		is = o
	}
	s := &subject{
		labels:   is.Labels,
		system:   system{is.Namespace, is.Spec.Orchestrator, is.Spec.ServiceAccountName},
		parents:  is.Spec.Profiles,
		endpoint: &endpoint{workload: o, pod: pod},
	}
	if o != nil {
		s.nets = parsePrefixes(o.Spec.IPNetworks)
	} else {
		s.endpoint.workload = pod
	}
	for _, p := range is.Spec.Ports {
		if n, ok := p.Protocol.Number(); ok && p.Name != "" {
			s.ports = append(s.ports, port{p.Name, view.Protocol(n), p.Port})
		}
	}
	return s
}

func hostSubject(o *api.HostEndpoint) *subject {
	s := &subject{
		labels:   o.Labels,
		parents:  o.Spec.Profiles,
		nets:     parsePrefixes(o.Spec.ExpectedIPs),
		endpoint: &endpoint{host: o},
	}
	for _, p := range o.Spec.Ports {
		if n, ok := p.Protocol.Number(); ok && p.Name != "" {
			s.ports = append(s.ports, port{p.Name, view.Protocol(n), p.Port})
		}
	}
	return s
}

// networkSetSubject also inherits the labels of its namespace.
func networkSetSubject(o *api.NetworkSet) *subject {
	return &subject{
		labels:  o.Labels,
		system:  system{namespace: o.Namespace},
		parents: []string{"kns." + o.Namespace},
		nets:    parsePrefixes(o.Spec.Nets),
	}
}

func globalNetworkSetSubject(o *api.GlobalNetworkSet) *subject {
	return &subject{labels: o.Labels, nets: parsePrefixes(o.Spec.Nets)}
}

// flushEndpoints computes the dirty endpoints. What they need now is counted before what they needed is let go, so that
// nothing is taken from a node only to be given back.
func (e *Engine) flushEndpoints() {
	for s := range e.dirtyEndpoints {
		e.flushEndpoint(s)
	}
	clear(e.dirtyEndpoints)
	clear(e.gone)
}

func (e *Engine) flushEndpoint(s *subject) {
	ep := s.endpoint
	was := ep.flushed
	ep.flushed = flushed{}
	var item view.Item
	switch {
	case ep.gone:
	case ep.host != nil:
		ep.node = e.number(ep.host.Spec.Node)
		item = e.hostItem(s)
	case len(s.nets) > 0 || ep.pod != nil:
		ep.node = e.number(ep.workload.Spec.Node)
		item = e.workloadItem(s)
	}
	if item != nil {
		for _, l := range ep.lists {
			if l != nil {
				e.needList(l, ep.node)
			}
		}
		ep.entry = views.NewEntry(item)
		if was.at(ep.node, ep.entry.Key) && was.entry.Version == ep.entry.Version {
			ep.entry = was.entry
		} else {
			e.out.put(e.viewOf(ep.node), ep.entry)
		}
	}
	for _, id := range ep.without {
		if !slices.Contains(was.without, id) {
			e.warnings = append(e.warnings, fmt.Sprintf(
				"policy %s is doNotTrack and has no effect on host endpoint %s, which is of all interfaces (*); name the interface", id, ep.host.Name))
		}
	}
	if item == nil {
		e.leaveGroup(s)
	}
	e.flushPeering(ep, was)
	e.flushFloating(s, was)
	if was.entry == nil {
		return
	}
	if ep.entry == nil || !was.at(ep.node, ep.entry.Key) {
		e.out.drop(e.viewOf(was.node), was.entry.Key)
	}
	for _, l := range was.lists {
		if l != nil {
			e.yieldList(l, was.node)
		}
	}
}

// at tells whether an endpoint is in a node's view under a key.
func (f *flushed) at(node nodeID, k view.Key) bool {
	return f.entry != nil && f.node == node && f.entry.Key == k
}

// profilesOf separates the profiles of an endpoint into those that are known and reasons why it must stay closed.
func profilesOf(s *subject) (known, incomplete []string) {
	for _, p := range s.inherits {
		if p.known {
			known = append(known, p.name)
		} else {
			incomplete = append(incomplete, "profile "+p.name)
		}
	}
	return known, incomplete
}

func (e *Engine) workloadItem(s *subject) view.Item {
	o := s.endpoint.workload
	is := s.endpoint.pod
	if is == nil {
		is = o
	}
	known, incomplete := profilesOf(s)
	l := e.groupOf(s, known).list
	s.endpoint.lists[normal] = l
	item := view.WorkloadEndpoint{
		ID:                   endpointID(o),
		ContainerID:          o.Spec.ContainerID,
		Interface:            o.Spec.InterfaceName,
		MAC:                  o.Spec.MAC,
		PolicyList:           l.id,
		Incomplete:           incomplete,
		AllowSpoofedPrefixes: parsePrefixes(is.Spec.AllowSpoofedSourcePrefixes),
		QoS:                  qos(is.Spec.QoSControls),
	}
	item.Peering = e.peeringOf(s)
	for _, p := range s.nets {
		item.Addresses = append(item.Addresses, p.Addr())
	}
	item.NATs = s.nats()
	if pod := s.endpoint.pod; pod != nil {
		item.UID, item.Request = PodUID(pod), e.request(pod)
	}
	return item
}

// nats are the floating addresses of a workload: as its pod asks for them, or as they are stored where there is no pod.
func (s *subject) nats() (out []view.NAT) {
	if pod := s.endpoint.pod; pod != nil {
		asked, err := annotation.Pod(pod.Annotations)
		if err != nil {
			return nil
		}
		for _, external := range asked.Floating {
			for _, own := range s.nets {
				if own.Addr().Is4() == external.Is4() {
					out = append(out, view.NAT{External: external, Internal: own.Addr()})
				}
			}
		}
		return out
	}
	for _, n := range s.endpoint.workload.Spec.IPNATs {
		external, err1 := netip.ParseAddr(n.ExternalIP)
		internal, err2 := netip.ParseAddr(n.InternalIP)
		if err1 == nil && err2 == nil {
			out = append(out, view.NAT{External: external, Internal: internal})
		}
	}
	return out
}

// flushFloating tells the routes of an endpoint's floating addresses.
func (e *Engine) flushFloating(s *subject, was flushed) {
	before, now := was.nats(), s.endpoint.nats()
	if was.node == s.endpoint.node && slices.Equal(before, now) {
		return
	}
	for _, n := range before {
		e.routes.setFloating(n.External, s.key, nil)
	}
	for _, n := range now {
		e.routes.setFloating(n.External, s.key, &holder{node: e.names[s.endpoint.node], internal: n.Internal})
	}
}

// nats are the floating addresses that the views have.
func (f *flushed) nats() []view.NAT {
	if f.entry == nil {
		return nil
	}
	w, _ := f.entry.Item.(view.WorkloadEndpoint)
	return w.NATs
}

// Warnings are what came up since they were last asked for, for the log.
func (e *Engine) Warnings() []string {
	w := e.warnings
	e.warnings = nil
	return w
}

// endpointID is the name of an endpoint on its node.
func endpointID(o *api.WorkloadEndpoint) view.EndpointID {
	workload := o.Spec.Workload
	switch o.Spec.Orchestrator {
	case api.OrchestratorKubernetes:
		workload = o.Spec.Pod
	case api.OrchestratorCNI:
		workload = o.Spec.ContainerID
	}
	return view.EndpointID{
		Orchestrator: o.Spec.Orchestrator,
		Workload:     o.Namespace + "/" + workload,
		Endpoint:     o.Spec.Endpoint,
	}
}

func qos(q *api.QoSControls) *view.QoS {
	if q == nil {
		return nil
	}
	limit := func(n int64) uint64 { return uint64(max(n, 0)) }
	v := view.QoS{
		IngressBandwidth:      limit(q.IngressBandwidth),
		IngressBurst:          limit(q.IngressBurst),
		IngressPeakrate:       limit(q.IngressPeakrate),
		IngressMinburst:       limit(q.IngressMinburst),
		EgressBandwidth:       limit(q.EgressBandwidth),
		EgressBurst:           limit(q.EgressBurst),
		EgressPeakrate:        limit(q.EgressPeakrate),
		EgressMinburst:        limit(q.EgressMinburst),
		IngressPacketRate:     limit(q.IngressPacketRate),
		IngressPacketBurst:    limit(q.IngressPacketBurst),
		EgressPacketRate:      limit(q.EgressPacketRate),
		EgressPacketBurst:     limit(q.EgressPacketBurst),
		IngressMaxConnections: limit(q.IngressMaxConnections),
		EgressMaxConnections:  limit(q.EgressMaxConnections),
	}
	if v == (view.QoS{}) {
		return nil
	}
	return &v
}

func (e *Engine) hostItem(s *subject) view.Item {
	o := s.endpoint.host
	known, incomplete := profilesOf(s)
	policies := e.applying(s)
	item := view.HostEndpoint{Name: o.Name, Interface: o.Spec.InterfaceName, Incomplete: incomplete}
	for _, p := range s.nets {
		item.ExpectedIPs = append(item.ExpectedIPs, p.Addr())
	}
	for p, id := range [passes]*string{normal: &item.Normal, untracked: &item.Untracked, preDNAT: &item.PreDNAT, forward: &item.Forward} {
		if pass(p) == untracked && o.Spec.InterfaceName == "*" {
			for _, q := range policies { // cannot be done for all interfaces at once, and is not in Calico either
				if untracked.takes(&q.rules.item) {
					s.endpoint.without = append(s.endpoint.without, q.rules.item.ID)
				}
			}
			continue
		}
		var profiles []string
		if pass(p) == normal {
			profiles = known
		}
		if l := e.listOf(pass(p), policies, profiles); l != nil {
			s.endpoint.lists[p] = l
			*id = l.id
		}
	}
	return item
}
