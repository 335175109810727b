package compute

import (
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

func (t Transport) equal(u Transport) bool {
	return t.Send == u.Send && t.CrossSubnet == u.CrossSubnet && slices.Equal(t.Receive, u.Receive)
}

// accepting is t with all that u receives, too.
func (t Transport) accepting(u Transport) Transport {
	t.Receive = slices.Clone(t.Receive)
	t.Receive = append(t.Receive, u.Receive...)
	slices.Sort(t.Receive)
	t.Receive = slices.Compact(t.Receive)
	return t
}

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
// another. A pool that was not known is there at once.
func (m *Modes) Set(pool string, goal Transport) (now Transport, moving bool) {
	p := m.pools[pool]
	switch {
	case p == nil:
		p = &passage{goal: goal, now: goal}
		m.pools[pool] = p
	case !p.goal.equal(goal):
		p.goal = goal
		p.now = p.now.accepting(goal)
		p.step = accepting
	}
	return p.now, p.step != arrived
}

// Advance says that all nodes do what was said last. It returns what to do next, and whether there is more to come.
func (m *Modes) Advance(pool string) (now Transport, moving bool) {
	p := m.pools[pool]
	if p == nil {
		return Transport{}, false
	}
	switch p.step {
	case accepting:
		received := p.now.Receive
		p.now = p.goal
		p.now = p.now.accepting(Transport{Receive: received})
		p.step = sending
	case sending:
		p.now = p.goal
		p.step = arrived
	}
	return p.now, p.step != arrived
}

// Forget says that a pool is gone.
func (m *Modes) Forget(pool string) { delete(m.pools, pool) }

// SetTransport overrules the mode of a pool while it changes; nil ends that.
func (e *Engine) SetTransport(pool string, t *Transport) { e.routes.setTransport(pool, t) }
