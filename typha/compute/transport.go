package compute

import (
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// Transport is how packets to a pool's addresses are carried between nodes.
type Transport struct {
	Send        view.Tunnel
	CrossSubnet bool          // the tunnel is used only towards nodes outside the sender's subnet
	Receive     []view.Tunnel // in which ways nodes accept them, in order
}

// TransportOf is the transport that a pool asks for. Nodes of one subnet send directly if the mode is CrossSubnet, so
// that both ways are received.
func TransportOf(o *api.IPPool) Transport {
	tunnel, cross := view.TunnelNone, false
	switch {
	case o.Spec.VXLANMode == api.VXLANAlways:
		tunnel = view.TunnelVXLAN
	case o.Spec.VXLANMode == api.VXLANCrossSubnet:
		tunnel, cross = view.TunnelVXLAN, true
	case o.Spec.IPIPMode == api.IPIPAlways:
		tunnel = view.TunnelIPIP
	case o.Spec.IPIPMode == api.IPIPCrossSubnet:
		tunnel, cross = view.TunnelIPIP, true
	}
	t := Transport{Send: tunnel, CrossSubnet: cross, Receive: []view.Tunnel{tunnel}}
	if cross {
		t.Receive = []view.Tunnel{view.TunnelNone, tunnel}
	}
	return t
}

// accepting is t with all that u receives, too.
func (t Transport) accepting(u Transport) Transport {
	t.Receive = slices.Clone(t.Receive)
	t.Receive = append(t.Receive, u.Receive...)
	slices.Sort(t.Receive)
	t.Receive = slices.Compact(t.Receive)
	return t
}

// encapsulations spells tunnels as resources do.
var encapsulations = map[view.Tunnel]api.Encapsulation{
	view.TunnelNone: api.EncapsulationNone, view.TunnelIPIP: api.EncapsulationIPIP, view.TunnelVXLAN: api.EncapsulationVXLAN,
}

// Record is the transport as a pool's status holds it.
func (t Transport) Record() *api.PoolTransport {
	r := &api.PoolTransport{Send: encapsulations[t.Send], CrossSubnet: t.CrossSubnet}
	for _, way := range t.Receive {
		r.Receive = append(r.Receive, encapsulations[way])
	}
	return r
}

// Recorded is the transport that a pool's status holds, and false if it holds none, or none that this version knows.
func Recorded(o *api.IPPool) (Transport, bool) {
	if o.Status == nil || o.Status.Transport == nil {
		return Transport{}, false
	}
	r, known := o.Status.Transport, true
	tunnel := func(e api.Encapsulation) view.Tunnel {
		for t, name := range encapsulations {
			if name == e {
				return t
			}
		}
		known = false
		return view.TunnelNone
	}
	t := Transport{Send: tunnel(r.Send), CrossSubnet: r.CrossSubnet}
	for _, e := range r.Receive {
		t.Receive = append(t.Receive, tunnel(e))
	}
	slices.Sort(t.Receive)
	t.Receive = slices.Compact(t.Receive)
	return t, known && t.Accepts(t)
}

// OnRecord is what must be on record (api.PoolTransport) before a pool takes a step: a way to send that all nodes accept,
// and all ways in which some node may send from then on. Whoever goes on from there sets first the record, then the mode.
//
//	accept old and new    {send old, receive old}   as it was
//	send the new          {send old, receive both}
//	retire the old        {send new, receive new}
//
// ok tells whether what is on record will do: another writer may be ahead.
func OnRecord(has, now, next Transport) (need Transport, ok bool) {
	if now.SendsAs(next) { // a way is retired: nobody must come back to it
		return next, has.Equal(next)
	}
	need = Transport{Send: now.Send, CrossSubnet: now.CrossSubnet, Receive: next.Receive}
	ok = next.Accepts(has)
	for _, way := range need.Receive {
		ok = ok && slices.Contains(has.Receive, way)
	}
	return need, ok
}

// Accepts tells whether nodes that receive as t says take all that is sent as u says.
func (t Transport) Accepts(u Transport) bool {
	return slices.Contains(t.Receive, u.Send) && (!u.CrossSubnet || slices.Contains(t.Receive, view.TunnelNone))
}

// SendsAs tells whether t and u send in the same way.
func (t Transport) SendsAs(u Transport) bool {
	return t.Send == u.Send && t.CrossSubnet == u.CrossSubnet
}

// Equal tells whether t and u are the same.
func (t Transport) Equal(u Transport) bool { return t.SendsAs(u) && slices.Equal(t.Receive, u.Receive) }

// Modes leads pools from one mode to another without a moment in which a packet is sent in a way that its receiver does
// not accept (design §5.7): first the receivers accept old and new, then the senders change, then the old is retired. It
// knows no clock and no node: the caller advances a pool when the connected nodes have applied what it said, or after a
// time.
type Modes struct {
	pools map[string]*passage
}

// passage is a pool's way from one mode to another.
type passage struct {
	goal Transport
	now  Transport
	step step
}

type step uint8

const (
	arrived   step = iota // now is the goal
	accepting             // the old way is sent, old and new are accepted
	sending               // the new way is sent, old and new are accepted
)

// NewModes returns a Modes that knows no pool.
func NewModes() *Modes { return &Modes{pools: map[string]*passage{}} }

// Set says what mode a pool asks for. It returns the transport to use now, and whether the pool is on its way to
// another; news is false if that is what was said before. A pool that was not known is there at once; one that others
// have led before is first set to what they left.
func (m *Modes) Set(pool string, goal Transport) (now Transport, moving, news bool) {
	p := m.pools[pool]
	switch {
	case p == nil:
		p = &passage{goal: goal, now: goal}
		m.pools[pool] = p
	case !p.goal.Equal(goal):
		p.goal = goal
		p.now = p.now.accepting(goal)
		p.step = accepting
	default:
		return p.now, p.step != arrived, false
	}
	return p.now, p.step != arrived, true
}

// Next returns the transport of a pool, and the one after the next step; without a step to come both are the same.
func (m *Modes) Next(pool string) (now, next Transport) {
	p := m.pools[pool]
	switch {
	case p == nil:
		return Transport{}, Transport{}
	case p.step == accepting:
		return p.now, p.goal.accepting(Transport{Receive: p.now.Receive})
	}
	return p.now, p.goal
}

// Advance says that all nodes do what was said last. It returns what to do next, and whether there is more to come.
func (m *Modes) Advance(pool string) (now Transport, moving bool) {
	p := m.pools[pool]
	if p == nil {
		return Transport{}, false
	}
	if _, next := m.Next(pool); p.step == accepting && !next.Equal(p.goal) {
		p.now, p.step = next, sending
	} else {
		p.now, p.step = p.goal, arrived
	}
	return p.now, p.step != arrived
}

// Pools lists the pools that are known, in order.
func (m *Modes) Pools() []string { return slices.Sorted(maps.Keys(m.pools)) }

// Moving tells whether a pool is on its way to another transport.
func (m *Modes) Moving(pool string) bool {
	return m.pools[pool] != nil && m.pools[pool].step != arrived
}

// Forget says that a pool is gone.
func (m *Modes) Forget(pool string) { delete(m.pools, pool) }

// SetTransport overrules the mode of a pool while it changes; nil ends that.
func (e *Engine) SetTransport(pool string, t *Transport) { e.routes.setTransport(pool, t) }
