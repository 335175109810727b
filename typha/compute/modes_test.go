package compute

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/thorough"
)

// goals are the transports that pools of both families can ask for.
func goals() map[string][]Transport {
	of := func(ipip api.IPIPMode, vxlan api.VXLANMode) Transport {
		o := &api.IPPool{}
		o.Spec.IPIPMode, o.Spec.VXLANMode = ipip, vxlan
		return TransportOf(o)
	}
	six := []Transport{of("", ""), of("", api.VXLANAlways), of("", api.VXLANCrossSubnet)}
	return map[string][]Transport{
		"IPv4": append([]Transport{of(api.IPIPAlways, ""), of(api.IPIPCrossSubnet, "")}, six...),
		"IPv6": six,
	}
}

// fleet is a pool's nodes, the typha that tells them, and what typha has left on record.
type fleet struct {
	modes  *Modes
	goal   Transport
	record Transport
	told   Transport
	nodes  []*fleetNode
}

// fleetNode is a node as far as one pool goes: it does what it applied last, and has more to take.
type fleetNode struct {
	does    *Transport
	queue   []Transport
	present bool // its connection is up
}

func newFleet(goal Transport, nodes int) *fleet {
	f := &fleet{modes: NewModes(), goal: goal, record: goal, told: goal}
	f.modes.Set("p", goal)
	for range nodes {
		f.nodes = append(f.nodes, &fleetNode{does: &goal, present: true})
	}
	return f
}

func (f *fleet) tell(t Transport) {
	f.told = t
	for _, n := range f.nodes {
		if n.present {
			n.queue = append(n.queue, t)
		}
	}
}

func (f *fleet) set(goal Transport) {
	f.goal = goal
	if now, _, news := f.modes.Set("p", goal); news {
		f.tell(now)
	}
}

// ready tells whether all nodes are there and do what they were told.
func (f *fleet) ready() bool {
	for _, n := range f.nodes {
		if !n.present || len(n.queue) > 0 || n.does == nil {
			return false
		}
	}
	return true
}

// advance takes the next step if nothing speaks against it: first it is put on record, and perhaps typha dies after that.
func (f *fleet) advance(dies bool) {
	if !f.modes.Moving("p") || !f.ready() {
		return
	}
	now, next := f.modes.Next("p")
	if need, ok := OnRecord(f.record, now, next); !ok {
		f.record = need
	}
	if dies {
		f.restart()
		return
	}
	now, _ = f.modes.Advance("p")
	f.tell(now)
}

// restart replaces typha by one that knows only the record and the mode. All connections break.
func (f *fleet) restart() {
	f.modes = NewModes()
	f.modes.Set("p", f.record)
	f.told, _, _ = f.modes.Set("p", f.goal)
	for _, n := range f.nodes {
		n.present, n.queue = false, nil
	}
}

// TestNobodySendsWhatIsNotAccepted leads a pool through random changes of mode: changes during changes, nodes that are
// slow, lose their connection or come new, and typhas that die at any moment. At no moment does a node send in a way that
// another one does not accept.
func TestNobodySendsWhatIsNotAccepted(t *testing.T) {
	for family, goals := range goals() {
		for seed := range thorough.Rounds(40, 300) {
			r := rand.New(rand.NewPCG(uint64(seed), 7))
			f := newFleet(goals[r.IntN(len(goals))], 3)
			var course []string
			for range 400 {
				what := f.something(r, goals)
				course = append(course, fmt.Sprint(what, " -> ", f.told))
				for _, sender := range f.nodes {
					for _, receiver := range f.nodes {
						if sender.does != nil && receiver.does != nil && !receiver.does.Accepts(*sender.does) {
							t.Fatalf("%s, seed %d: %v to %v after %v", family, seed, *sender.does, *receiver.does, course)
						}
					}
				}
			}
			// Left alone it arrives, and nothing of the old way is left.
			for range 20 {
				for _, n := range f.nodes {
					if !n.present {
						n.present, n.queue = true, []Transport{f.told}
					}
					if len(n.queue) > 0 {
						n.does, n.queue = &n.queue[len(n.queue)-1], nil
					}
				}
				f.advance(false)
			}
			for _, n := range f.nodes {
				require.Equal(t, f.goal, *n.does, "%s, seed %d", family, seed)
			}
			require.True(t, f.goal.Accepts(f.record), "%s, seed %d: on record is %v", family, seed, f.record)
		}
	}
}

// something happens.
func (f *fleet) something(r *rand.Rand, goals []Transport) string {
	n := f.nodes[r.IntN(len(f.nodes))]
	switch d := r.IntN(100); {
	case d < 8:
		f.set(goals[r.IntN(len(goals))])
		return fmt.Sprint("mode ", f.goal)
	case d < 50 && len(n.queue) > 0:
		k := 1 + r.IntN(len(n.queue)) // what was replaced before it was taken nobody sees
		n.does, n.queue = &n.queue[k-1], n.queue[k:]
		return "apply"
	case d >= 50 && d < 53:
		n.present, n.queue = false, nil
		return "lost"
	case d < 70 && !n.present:
		n.present, n.queue = true, []Transport{f.told}
		return "back"
	case d == 70 && len(f.nodes) < 6:
		f.nodes = append(f.nodes, &fleetNode{present: true, queue: []Transport{f.told}})
		return "join"
	case d == 71:
		f.restart()
		return "restart"
	}
	f.advance(r.IntN(10) == 0)
	return "advance"
}

// TestEveryPairOfModes takes each way from one mode to another in three steps.
func TestEveryPairOfModes(t *testing.T) {
	for family, goals := range goals() {
		for _, from := range goals {
			for _, to := range goals {
				m := NewModes()
				m.Set("p", from)
				first, moving, news := m.Set("p", to)
				require.Equal(t, !from.Equal(to), moving, family)
				require.Equal(t, moving, news)
				require.True(t, first.SendsAs(from) && first.Accepts(from) && first.Accepts(to), "%s: %v to %v begins with %v", family, from, to, first)
				if !moving {
					continue
				}
				second, moving := m.Advance("p")
				require.True(t, second.SendsAs(to) && second.Accepts(first), "%s: %v to %v goes on with %v", family, from, to, second)
				if moving {
					second, moving = m.Advance("p")
				}
				require.False(t, moving)
				require.Equal(t, to, second)
			}
		}
	}
}

func TestTransportsOnRecord(t *testing.T) {
	for _, goals := range goals() {
		for _, g := range goals {
			o := &api.IPPool{Status: &api.IPPoolStatus{Transport: g.Record()}}
			back, ok := Recorded(o)
			require.True(t, ok)
			require.Equal(t, g, back)
		}
	}
	for _, bad := range []*api.PoolTransport{
		nil,
		{Send: "IPIP"},
		{Send: "Pigeon", Receive: []api.Encapsulation{"Pigeon", "None"}},
		{Send: "IPIP", CrossSubnet: true, Receive: []api.Encapsulation{"IPIP"}},
	} {
		_, ok := Recorded(&api.IPPool{Status: &api.IPPoolStatus{Transport: bad}})
		require.False(t, ok, "%v", bad)
	}
	_, ok := Recorded(&api.IPPool{})
	require.False(t, ok)
}
