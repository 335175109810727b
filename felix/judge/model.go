package judge

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/desired"
)

// Model is the desired firewall of a node. It is not safe for concurrent use.
type Model struct {
	// Host are the node's own addresses: what comes from them is not policy's business at the workloads.
	Host map[netip.Addr]struct{}

	settings  *desired.Settings // nil until they are told
	sets      map[string]*set
	chains    map[string]desired.Chain
	workloads map[string]desired.Workload
	hosts     map[string]desired.Host
	owners    map[netip.Addr]string // workloads by address
	spoofers  []string              // workloads that may use other sources than their own

	usersOfSet  index // chains by set
	callers     index // chains by the chain that they jump to
	workloadsOf index // workloads by chain
}

// New returns the model of a node that was told nothing.
func New() *Model {
	return &Model{
		sets: map[string]*set{}, chains: map[string]desired.Chain{}, workloads: map[string]desired.Workload{}, hosts: map[string]desired.Host{},
		owners: map[netip.Addr]string{}, usersOfSet: index{}, callers: index{}, workloadsOf: index{},
	}
}

// index is what uses a thing, by the thing.
type index map[string]map[string]struct{}

func (x index) add(thing, user string) {
	if x[thing] == nil {
		x[thing] = map[string]struct{}{}
	}
	x[thing][user] = struct{}{}
}

func (x index) remove(thing, user string) {
	delete(x[thing], user)
	if len(x[thing]) == 0 {
		delete(x, thing)
	}
}

// set is a set whose members are put in order when somebody asks: many change that nobody ever asks for.
type set struct {
	members *packet.Members // what was told at first, and was put in order since
	whole   []view.Member   // told, not in order yet; used if members is nil
	changes []desired.SetDelta
}

// mostChanges is how many changes of a set wait for somebody to ask.
const mostChanges = 256

func (s *set) change(d desired.SetDelta) {
	s.changes = append(s.changes, d)
	if len(s.changes) >= mostChanges {
		s.look()
	}
}

func (s *set) look() *packet.Members {
	if s.members == nil {
		s.members, s.whole = packet.NewMembers(s.whole), nil
	}
	if len(s.changes) == 0 {
		return s.members
	}
	in := map[view.Member]bool{}
	for _, d := range s.changes {
		for _, m := range d.Removed {
			in[m] = false
		}
		for _, m := range d.Added {
			in[m] = true
		}
	}
	s.changes = nil
	all := make([]view.Member, 0, len(s.members.All())+len(in))
	fresh := slices.SortedFunc(maps.Keys(in), view.Member.Compare)
	next := 0
	for _, m := range s.members.All() {
		for ; next < len(fresh) && fresh[next].Compare(m) < 0; next++ {
			if in[fresh[next]] {
				all = append(all, fresh[next])
			}
		}
		if keep, changed := in[m]; !changed || keep {
			all = append(all, m)
		}
		if next < len(fresh) && fresh[next] == m {
			next++
		}
	}
	for ; next < len(fresh); next++ {
		if in[fresh[next]] {
			all = append(all, fresh[next])
		}
	}
	s.members = packet.NewMembers(all)
	return s.members
}

// Contains tells whether an address is in a set.
func (m *Model) Contains(id string, a netip.Addr) bool {
	s := m.sets[id]
	return s != nil && s.look().Contains(a)
}

// ContainsPort tells whether an address with protocol and port is in a set.
func (m *Model) ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	s := m.sets[id]
	return s != nil && s.look().ContainsPort(a, protocol, port)
}

func (m *Model) setChain(name string, c desired.Chain) {
	m.unlink(name)
	m.chains[name] = c
	for _, r := range c.Rules {
		for _, id := range r.Match.Sets() {
			m.usersOfSet.add(id, name)
		}
		if r.Do == desired.Jump {
			m.callers.add(r.Target, name)
		}
	}
}

// unlink forgets a chain.
func (m *Model) unlink(name string) {
	for _, r := range m.chains[name].Rules {
		for _, id := range r.Match.Sets() {
			m.usersOfSet.remove(id, name)
		}
		if r.Do == desired.Jump {
			m.callers.remove(r.Target, name)
		}
	}
	delete(m.chains, name)
}

func (m *Model) setWorkload(name string, w desired.Workload) {
	m.forget(name)
	m.workloads[name] = w
	m.workloadsOf.add(w.Ingress, name)
	m.workloadsOf.add(w.Egress, name)
	for _, a := range w.Addresses {
		m.owners[a] = name
	}
	if len(w.AllowedSources) > 0 {
		m.spoofers = append(m.spoofers, name)
	}
}

// forget forgets a workload.
func (m *Model) forget(name string) {
	old, known := m.workloads[name]
	if !known {
		return
	}
	delete(m.workloads, name)
	m.workloadsOf.remove(old.Ingress, name)
	m.workloadsOf.remove(old.Egress, name)
	for _, a := range old.Addresses {
		if m.owners[a] == name {
			delete(m.owners, a)
		}
	}
	m.spoofers = slices.DeleteFunc(m.spoofers, func(s string) bool { return s == name })
}
