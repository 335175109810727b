package compute

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// endpoint is a subject that policies apply to.
type endpoint struct {
	workload *cache.Endpoint   // as it is stored or reported
	pod      *cache.Endpoint   // as its pod says, if that is known
	host     *api.HostEndpoint // neither of them, if it is of a host
	gone     bool
	flushed
}

// flushed is what the views have of an endpoint.
type flushed struct {
	node  nodeID
	entry *views.Entry // nil if it is in no view
	list  *list        // of the normal pass
	more  *more        // nil of most
}

// more is what the views have of few endpoints.
type more struct {
	lists [passes]*list // of the other passes, of hosts
	// peering is what confd's view has of it: nil unless it speaks BGP with its node.
	peering *views.Entry
	// without are policies that select it and have no effect on it, of which users are warned.
	without []string
}

// lists are those of all passes.
func (f *flushed) lists() [passes]*list {
	all := f.has().lists
	all[normal] = f.list
	return all
}

func (f *flushed) setList(p pass, l *list) {
	if p == normal {
		f.list = l
	} else {
		f.get().lists[p] = l
	}
}

// has is what there is beyond what all have.
func (f *flushed) has() more {
	if f.more == nil {
		return more{}
	}
	return *f.more
}

// get is the same, to be changed.
func (f *flushed) get() *more {
	if f.more == nil {
		f.more = &more{}
	}
	return f.more
}

// where is what says on which node a workload is, and how it is called there.
func (ep *endpoint) where() *cache.Endpoint {
	if ep.workload != nil {
		return ep.workload
	}
	return ep.pod
}

// become takes over what is new of a later version.
func (ep *endpoint) become(now *endpoint) {
	ep.workload, ep.host, ep.pod = now.workload, now.host, now.pod
}

// workloadSubject is an endpoint as it is stored or reported (o), and as its pod says; one of the two may be nil.
func workloadSubject(o, pod *cache.Endpoint) *subject {
	is := pod
	if pod == nil {
		is = o
	}
	s := &subject{traits: is.Traits, endpoint: &endpoint{workload: o, pod: pod}}
	if o != nil {
		s.nets = o.Nets
	}
	for _, p := range is.Ports {
		if n, ok := p.Protocol.Number(); ok && p.Name != "" {
			s.ports = append(s.ports, port{p.Name, view.Protocol(n), p.Port})
		}
	}
	return s
}

func hostSubject(o *api.HostEndpoint) *subject {
	s := &subject{
		traits:   &cache.Traits{Labels: o.Labels, Profiles: o.Spec.Profiles},
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
		traits: &cache.Traits{Labels: o.Labels, Namespace: o.Namespace, Profiles: []string{"kns." + o.Namespace}},
		nets:   parsePrefixes(o.Spec.Nets),
	}
}

func globalNetworkSetSubject(o *api.GlobalNetworkSet) *subject {
	return &subject{traits: &cache.Traits{Labels: o.Labels}, nets: parsePrefixes(o.Spec.Nets)}
}

// flushEndpoints computes the dirty endpoints. What they need now is counted before what they needed is let go, so that
// nothing is taken from a node only to be given back.
func (e *Engine) flushEndpoints() {
	// In the order of their numbers, so that groups grow at their end.
	for _, s := range slices.SortedFunc(maps.Keys(e.dirtyEndpoints), func(a, b *subject) int { return cmp.Compare(a.number, b.number) }) {
		e.flushEndpoint(s)
	}
	// New ones: a map that was once large stays large, and at the start all endpoints are in it.
	e.dirtyEndpoints, e.gone = map[*subject]struct{}{}, map[api.Key]*subject{}
}

func (e *Engine) flushEndpoint(s *subject) {
	ep := s.endpoint
	was := ep.flushed
	ep.flushed = flushed{}
	var now *views.Entry
	switch {
	case ep.gone:
	case ep.host != nil:
		ep.node = e.number(ep.host.Spec.Node)
		now = views.NewEntry(e.hostItem(s))
	case len(s.nets) > 0 || ep.pod != nil:
		ep.node = e.number(ep.where().Node)
		now = views.NewMadeEntry(e.workload(s))
	}
	if now != nil {
		for _, l := range ep.lists() {
			if l != nil {
				e.needList(l, ep.node)
			}
		}
		ep.entry = now
		if was.at(ep.node, ep.entry.Key) && was.entry.Version == ep.entry.Version {
			ep.entry = was.entry
		} else {
			e.out.put(e.viewOf(ep.node), ep.entry)
		}
	}
	for _, id := range ep.has().without {
		if !slices.Contains(was.has().without, id) {
			e.warnings = append(e.warnings, fmt.Sprintf(
				"policy %s is doNotTrack and has no effect on host endpoint %s, which is of all interfaces (*); name the interface", id, ep.host.Name))
		}
	}
	if now == nil {
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
	for _, l := range was.lists() {
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

// workload makes the item of a workload. Most of what it is made of is kept anyway.
type workload struct {
	o, pod *cache.Endpoint // as of endpoint
	list   *list
	rest   *rest // nil if there is nothing of it
}

// rest is what few workloads have.
type rest struct {
	incomplete []string
	request    *view.AddressRequest
	peering    *view.Peering
}

func (e *Engine) workload(s *subject) *workload {
	known, incomplete := profilesOf(s)
	l := e.groupOf(s, known).list
	s.endpoint.list = l
	w := &workload{o: s.endpoint.workload, pod: s.endpoint.pod, list: l}
	r := rest{incomplete: incomplete, peering: e.peeringOf(s)}
	if w.pod != nil {
		r.request = e.request(w.pod)
	}
	if r.incomplete != nil || r.request != nil || r.peering != nil {
		w.rest = &r
	}
	return w
}

// Make makes the item.
func (w *workload) Make() view.Item {
	where, is := w.o, w.pod
	if where == nil {
		where = w.pod
	}
	if is == nil {
		is = w.o
	}
	item := view.WorkloadEndpoint{
		ID:          view.EndpointID{Orchestrator: where.Orchestrator, Workload: where.Namespace + "/" + where.Workload, Endpoint: where.Inside},
		ContainerID: where.ContainerID, Interface: where.Interface, MAC: where.MAC,
		PolicyList:           w.list.id,
		AllowSpoofedPrefixes: parsePrefixes(is.Spoofed),
		NATs:                 w.nats(),
		QoS:                  qos(is.QoS),
	}
	if w.o != nil {
		for _, p := range w.o.Nets {
			item.Addresses = append(item.Addresses, p.Addr())
		}
	}
	if w.pod != nil {
		item.UID = PodUID(w.pod)
	}
	if r := w.rest; r != nil {
		item.Incomplete, item.Request, item.Peering = r.incomplete, r.request, r.peering
	}
	return item
}

// nats are the floating addresses of a workload: as its pod asks for them, or as they are stored where there is no pod.
func (w *workload) nats() (out []view.NAT) {
	if w.pod != nil {
		asked, err := annotation.Pod(w.pod.Annotations)
		if err != nil || w.o == nil {
			return nil
		}
		for _, external := range asked.Floating {
			for _, own := range w.o.Nets {
				if own.Addr().Is4() == external.Is4() {
					out = append(out, view.NAT{External: external, Internal: own.Addr()})
				}
			}
		}
		return out
	}
	for _, n := range w.o.NATs {
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
	if w := f.made(); w != nil {
		return w.nats()
	}
	return nil
}

// made is what the item of a workload is made of; nil if there is none.
func (f *flushed) made() *workload {
	if f.entry == nil {
		return nil
	}
	w, _ := f.entry.Maker().(*workload)
	return w
}

// Warnings are what came up since they were last asked for, for the log.
func (e *Engine) Warnings() []string {
	w := e.warnings
	e.warnings = nil
	return w
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
					more := s.endpoint.get()
					more.without = append(more.without, q.rules.item.ID)
				}
			}
			continue
		}
		var profiles []string
		if pass(p) == normal {
			profiles = known
		}
		if l := e.listOf(pass(p), policies, profiles); l != nil {
			s.endpoint.setList(pass(p), l)
			*id = l.id
		}
	}
	return item
}
