package judge

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// Impact is which connections a change may have come to forbid; the zero value is none. It may name too many, never too few.
type Impact struct {
	All       bool
	Addresses map[netip.Addr]struct{} // those that one of these has part in, as policy sees them
}

// Empty tells whether there is nothing to do.
func (i Impact) Empty() bool { return !i.All && len(i.Addresses) == 0 }

// Add joins a later impact to an earlier one.
func (i *Impact) Add(later Impact) {
	i.All = i.All || later.All
	for a := range later.Addresses {
		i.touch(a)
	}
}

func (i *Impact) touch(a netip.Addr) {
	if i.Addresses == nil {
		i.Addresses = map[netip.Addr]struct{}{}
	}
	i.Addresses[a] = struct{}{}
}

// Update takes a change of the desired firewall. What can only allow more has no impact.
func (m *Model) Update(d desired.FirewallDelta) Impact {
	u := update{Model: m, lists: map[string]struct{}{}}
	if d.Settings != nil {
		u.setSettings(*d.Settings)
	}
	u.updateSets(d)
	for name := range d.Chains.Removed {
		u.suspect(name)
		m.unlink(name)
	}
	for name, c := range d.Chains.Set {
		old, known := m.chains[name]
		if !known || !opens(old, c) {
			u.suspect(name)
		}
		m.setChain(name, c)
	}
	for name := range d.Chains.Set { // after all, as one may have come to call another
		if _, suspected := u.lists[name]; suspected {
			u.suspect(name)
		}
	}
	u.updateWorkloads(d.Workloads)
	u.updateHosts(d.Hosts)
	for chain := range u.lists {
		for name := range m.workloadsOf[chain] {
			u.touchWorkload(m.workloads[name])
		}
	}
	return u.impact
}

// update is one change under way.
type update struct {
	*Model
	impact Impact
	lists  map[string]struct{} // chains that may have come to forbid something, with their callers
}

func (u *update) setSettings(next desired.Settings) {
	old := u.settings
	u.settings = &next
	ports := func(s *desired.Settings) (out [2]uint16) {
		for i, v := range []*desired.VXLANAdmission{s.VXLAN4, s.VXLAN6} {
			if v != nil {
				out[i] = v.Port
			}
		}
		return out
	}
	u.impact.All = u.impact.All || old == nil ||
		next.EndpointToHost == desired.HostDrop && old.EndpointToHost != desired.HostDrop ||
		old.AllowVXLANFromWorkloads && !next.AllowVXLANFromWorkloads || old.AllowIPIPFromWorkloads && !next.AllowIPIPFromWorkloads ||
		ports(old) != ports(&next) || old.VXLANPort != next.VXLANPort
}

func (u *update) updateSets(d desired.FirewallDelta) {
	for id := range d.Sets.Removed {
		u.suspectUsers(id)
		delete(u.sets, id)
	}
	for id, s := range d.Sets.Set {
		u.suspectUsers(id)
		u.sets[id] = &set{whole: s.Members}
	}
	for id, c := range d.Members {
		s := u.sets[id]
		if s == nil {
			continue
		}
		s.change(c)
		more, fewer := u.effects(id)
		if more {
			u.touchMembers(id, c.Added)
		}
		if fewer {
			u.touchMembers(id, c.Removed)
		}
	}
}

// effects tells whether a set's having more members, or fewer, may forbid something.
func (u *update) effects(id string) (more, fewer bool) {
	for name := range u.usersOfSet[id] {
		for i := range u.chains[name].Rules {
			r := &u.chains[name].Rules[i]
			if r.Match == nil {
				continue
			}
			for _, side := range []*view.Match{&r.Match.Source, &r.Match.Destination} {
				if slices.Contains(side.Sets, id) || slices.Contains(side.IPPortSets, id) || slices.Contains(side.NamedPorts, id) {
					more, fewer = more || r.Do != desired.Allow, fewer || r.Do != desired.Deny
				}
				if slices.Contains(side.NotSets, id) || slices.Contains(side.NotNamedPorts, id) {
					more, fewer = more || r.Do != desired.Deny, fewer || r.Do != desired.Allow
				}
			}
		}
	}
	return more, fewer
}

// touchMembers touches members that came or went: only connections with them can be concerned. Whole networks are too many
// addresses; then it is all workloads that use the set.
func (u *update) touchMembers(id string, members []view.Member) {
	if slices.ContainsFunc(members, func(m view.Member) bool { return !m.Prefix.IsSingleIP() }) {
		u.suspectUsers(id)
		return
	}
	for _, m := range members {
		u.impact.touch(m.Prefix.Addr())
	}
}

func (u *update) suspectUsers(id string) {
	for name := range u.usersOfSet[id] {
		u.suspect(name)
	}
}

// suspect notes a chain, and those that call it.
func (u *update) suspect(chain string) {
	u.lists[chain] = struct{}{}
	for caller := range u.callers[chain] {
		u.lists[caller] = struct{}{}
	}
}

// updateWorkloads takes up workloads. One that nobody knew has no connections yet; those of its addresses' former owner went
// with that.
func (u *update) updateWorkloads(d desired.Delta[string, desired.Workload]) {
	for name := range d.Removed {
		u.forget(name)
	}
	for name, w := range d.Set {
		old, known := u.workloads[name]
		u.setWorkload(name, w)
		if known && !w.Equal(old) {
			u.touchWorkload(w)
		}
	}
}

// updateHosts takes up host endpoints. What concerns them may concern whoever talks with the node.
func (u *update) updateHosts(d desired.Delta[string, desired.Host]) {
	for name := range d.Removed {
		delete(u.hosts, name)
	}
	maps.Copy(u.hosts, d.Set)
	u.impact.All = u.impact.All || !d.Empty()
	for _, h := range u.hosts {
		for _, chain := range []string{desired.FailsafeIn, desired.FailsafeOut, h.PreDNAT.Ingress, h.Normal.Ingress, h.Normal.Egress} {
			_, suspected := u.lists[chain]
			u.impact.All = u.impact.All || suspected
		}
	}
}

func (u *update) touchWorkload(w desired.Workload) {
	for _, a := range w.Addresses {
		u.impact.touch(a)
	}
	// What it sends under other sources is found by no address.
	u.impact.All = u.impact.All || len(w.AllowedSources) > 0
}

// opens tells whether a chain that becomes another can only allow more: rules that allow came, rules that deny went. It
// answers no where it is not sure.
func opens(old, next desired.Chain) bool {
	i, j := 0, 0
	for i < len(old.Rules) || j < len(next.Rules) {
		switch {
		case i < len(old.Rules) && j < len(next.Rules) && same(&old.Rules[i], &next.Rules[j]):
			i++
			j++
		case j < len(next.Rules) && (next.Rules[j].Do == desired.Allow || next.Rules[j].Do == desired.Log):
			j++
		case i < len(old.Rules) && (old.Rules[i].Do == desired.Deny || old.Rules[i].Do == desired.Log) && old.Rules[i].If == desired.Always:
			i++
		default:
			return false
		}
	}
	return true
}

// same tells whether two rules do the same, wherever they come from.
func same(a, b *desired.Rule) bool {
	x, y := *a, *b
	x.Comment, y.Comment, x.LogPrefix, y.LogPrefix = "", "", "", ""
	return x.Equal(y)
}
