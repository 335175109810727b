package render

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Firewall holds what is wanted of the firewall, and computes what changes of it at the cost of what changed: a policy that
// is edited costs its chains, however many policies and endpoints there are. An endpoint without known policy is closed. The
// sum of its changes is a function of the state alone. The zero value is ready, and holds nothing.
type Firewall struct {
	settings *desired.Settings
	own      map[string]desired.Set // sets that felix itself needs
	lists    map[string]*list       // that are known, or named by one who is
	policies map[string]struct{}    // that are known
	namedBy  index                  // lists by the policies they name
	under    index                  // interfaces of local endpoints by their list
	ids      index                  // the same by the endpoint's id
	local    map[string]local       // by interface
	with6    map[string]struct{}    // interfaces whose packets may be of IPv6
	hosts    map[string]desired.Host
	uses     map[string]passes   // lists of host endpoints
	leaving  map[string]struct{} // policies whose egress chains judge what leaves by the host's interfaces
	failsafe []desired.Chain
}

// list is a policy list as far as its chains and endpoints depend on it.
type list struct {
	policies []string // those that must be known for it to be evaluated
	missing  int      // how many of them are not
	chains   []string // what it has in the firewall
}

// local is a local endpoint in the firewall.
type local struct {
	id, list string
	workload desired.Workload
}

// passes is a set of passes.
type passes uint8

func (p passes) has(pass desired.HostPass) bool { return p&(1<<pass) != 0 }

// index tells which names belong to a key.
type index map[string]map[string]struct{}

func (x index) put(key, name string) {
	if x[key] == nil {
		x[key] = map[string]struct{}{}
	}
	x[key][name] = struct{}{}
}

func (x index) remove(key, name string) {
	delete(x[key], name)
	if len(x[key]) == 0 {
		delete(x, key)
	}
}

// due is what one Update has to compute anew.
type due struct {
	s                      *state.State
	policies, lists, local map[string]struct{}
	hosts                  bool
	out                    desired.FirewallDelta
}

// Update follows the state.
func (f *Firewall) Update(s *state.State) desired.FirewallDelta {
	c := s.ChangedFirewall()
	d := due{s: s, policies: map[string]struct{}{}, lists: map[string]struct{}{}, local: map[string]struct{}{}, hosts: c.Hosts || c.Config}
	if first := f.settings == nil; first {
		*f = Firewall{
			own: map[string]desired.Set{}, lists: map[string]*list{}, policies: map[string]struct{}{},
			namedBy: index{}, under: index{}, ids: index{}, local: map[string]local{}, with6: map[string]struct{}{},
		}
		c, d.hosts = everything(s), true
	}
	for id, change := range c.Sets {
		d.set(id, change)
	}
	for id := range c.Lists {
		f.setList(&d, id)
	}
	for id := range c.Policies {
		f.setPolicy(&d, id)
	}
	for id := range c.Workloads {
		addAll(d.local, f.ids[id])
	}
	addAll(d.local, c.Local)
	if c.Config { // the prefix of log lines is in each policy, whether endpoints may spoof is everybody's
		addAll(d.policies, f.policies)
		for iface := range f.local {
			d.local[iface] = struct{}{}
		}
	}
	for iface := range d.local {
		f.setLocal(&d, iface)
	}
	if d.hosts {
		f.setHosts(&d)
	}
	if c.Settings || c.Config || floats(s) && len(c.Workloads)+len(c.Local) > 0 || f.settings.NoIPv6 != f.noIPv6(s) {
		f.setSettings(&d)
	}
	for id := range d.policies {
		f.policyChains(&d, id)
	}
	for id := range d.lists {
		f.listChains(&d, id)
	}
	return d.out
}

// everything is a change of all there is.
func everything(s *state.State) state.FirewallChanges {
	c := state.FirewallChanges{
		Settings: true, Sets: make(map[string]state.SetChange, len(s.Sets)),
		Policies: keys(s.Policies), Lists: keys(s.Lists), Local: keys(s.Local),
	}
	for id := range s.Sets {
		c.Sets[id] = state.SetChange{Whole: true}
	}
	return c
}

func keys[V any](m map[string]V) map[string]struct{} {
	out := make(map[string]struct{}, len(m))
	addAll(out, m)
	return out
}

func addAll[V any](to map[string]struct{}, from map[string]V) {
	for k := range from {
		to[k] = struct{}{}
	}
}

func (f *Firewall) setSettings(d *due) {
	now := settings(d.s)
	now.NoIPv6 = f.noIPv6(d.s)
	if f.settings == nil || !f.settings.Equal(now) {
		f.settings, d.out.Settings = &now, &now
	}
	own := ownSets(d.s)
	for id, set := range own {
		if old, there := f.own[id]; !there || !slices.Equal(old.Members, set.Members) {
			d.out.Sets.Put(id, set)
		}
	}
	for id := range f.own {
		if _, still := own[id]; !still {
			d.out.Sets.Remove(id)
		}
	}
	f.own = own
}

// noIPv6 tells whether nobody needs policy of IPv6.
func (f *Firewall) noIPv6(s *state.State) bool {
	return len(f.with6) == 0 && len(f.hosts) == 0 && !poolOf6(s)
}

// poolOf6 tells whether there is a pool of IPv6. Policy is needed before it has a pod, which would have to wait until all is written.
func poolOf6(s *state.State) bool {
	for _, p := range s.Pools {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil && cidr.Addr().Is6() {
			return true
		}
	}
	return false
}

// maySend6 tells whether packets of IPv6 may come from or go to a workload, other than between neighbours. One that speaks BGP may do so
// by an address of its link.
func maySend6(w desired.Workload) bool {
	return w.SpeakerPort != 0 || slices.ContainsFunc(w.Addresses, netip.Addr.Is6) ||
		slices.ContainsFunc(w.AllowedSources, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// set is about a set that policies name.
func (d *due) set(id string, c state.SetChange) {
	if c.Whole {
		if set, there := d.s.WholeSet(id); there {
			d.out.Sets.Put(id, desired.Set{Type: set.Type, Members: set.Members})
		} else {
			d.out.Sets.Remove(id)
		}
		return
	}
	var change desired.SetDelta
	for m, in := range c.Members {
		if in {
			change.Added = append(change.Added, m)
		} else {
			change.Removed = append(change.Removed, m)
		}
	}
	if d.out.Members == nil {
		d.out.Members = map[string]desired.SetDelta{}
	}
	slices.SortFunc(change.Added, view.Member.Compare)
	slices.SortFunc(change.Removed, view.Member.Compare)
	d.out.Members[id] = change
}

// setList takes up a list, or its end.
func (f *Firewall) setList(d *due, id string) {
	l := f.lists[id]
	if l == nil {
		l = &list{}
		f.lists[id] = l
	}
	for _, p := range l.policies {
		f.namedBy.remove(p, id)
	}
	l.policies, l.missing = nil, 0
	if now, there := d.s.Lists[id]; there {
		l.policies = named(now)
	}
	for _, p := range l.policies {
		f.namedBy.put(p, id)
		if _, known := f.policies[p]; !known {
			l.missing++
		}
	}
	d.lists[id] = struct{}{}
	f.listChanged(d, id)
}

// listChanged is for a list that came, went, or became complete or incomplete: so do its endpoints.
func (f *Firewall) listChanged(d *due, id string) {
	addAll(d.local, f.under[id])
	d.hosts = d.hosts || f.uses[id] != 0
}

// named are the policies and profiles that a list needs, each once. Nothing hangs on staged ones.
func named(l view.PolicyList) []string {
	out := slices.Clone(l.Profiles)
	for _, t := range l.Tiers {
		out = append(append(out, t.Ingress...), t.Egress...)
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), desired.Staged)
}

// setPolicy takes up a policy or profile, or its end.
func (f *Firewall) setPolicy(d *due, id string) {
	d.policies[id] = struct{}{}
	_, was := f.policies[id]
	_, is := d.s.Policies[id]
	if was == is {
		return
	}
	step := 1
	delete(f.policies, id)
	if is {
		step = -1
		f.policies[id] = struct{}{}
	}
	for name := range f.namedBy[id] {
		f.lists[name].missing += step
		f.listChanged(d, name)
	}
}

// complete tells whether a list is known with all that it names.
func (f *Firewall) complete(s *state.State, id string) bool {
	l := f.lists[id]
	_, known := s.Lists[id]
	return known && l != nil && l.missing == 0
}

// setLocal takes up a local endpoint, or its end.
func (f *Firewall) setLocal(d *due, iface string) {
	old, was := f.local[iface]
	if was {
		f.ids.remove(old.id, iface)
		f.under.remove(old.list, iface)
		delete(f.with6, iface)
	}
	e, is := d.s.Local[iface]
	if !is {
		delete(f.local, iface)
		if was {
			d.out.Workloads.Remove(iface)
		}
		return
	}
	now := local{id: e.ID.String(), workload: f.workload(d.s, e)}
	if v, known := d.s.View(e); known {
		now.list = v.PolicyList
	}
	f.ids.put(now.id, iface)
	f.under.put(now.list, iface)
	f.local[iface] = now
	if maySend6(now.workload) {
		f.with6[iface] = struct{}{}
	}
	if !was || !old.workload.Equal(now.workload) || old.workload.ClosedBecause != now.workload.ClosedBecause {
		d.out.Workloads.Put(iface, now.workload)
	}
}

func (f *Firewall) workload(s *state.State, e state.Endpoint) desired.Workload {
	w := desired.Workload{Endpoint: e.ID.String()}
	if !e.Leaving { // those of one that leaves are about to be another's
		w.Addresses = e.Addresses
	}
	if why := s.ClosedUnless(e, func(list string) bool { return f.complete(s, list) }); len(why) > 0 {
		w.ClosedBecause = why[0]
		return w
	}
	v, _ := s.View(e)
	w.Ingress = desired.ListChain(v.PolicyList, desired.Ingress)
	w.Egress = desired.ListChain(v.PolicyList, desired.Egress)
	if maySpoof(s) {
		w.AllowedSources = v.AllowSpoofedPrefixes
	}
	if v.Peering != nil {
		w.SpeakerPort = v.Peering.Port
	}
	return w
}

// policyChains puts the chains of a policy or profile, or takes them away.
func (f *Firewall) policyChains(d *due, id string) {
	p, there := d.s.Policies[id]
	if !there {
		d.out.Chains.Remove(desired.PolicyChain(id, desired.Ingress))
		d.out.Chains.Remove(desired.PolicyChain(id, desired.Egress))
		return
	}
	pair := desired.PolicyChains(p, d.s.Config.Spec.LogPrefix)
	if _, leaving := f.leaving[id]; leaving {
		pair[desired.Egress].In |= desired.Mangle
	}
	for _, c := range pair {
		d.out.Chains.Put(c.Name, c)
	}
}

// listChains puts the chains of a list for whom it applies to, or takes them away.
func (f *Firewall) listChains(d *due, id string) {
	l := f.lists[id]
	if l == nil { // a host endpoint names it, and it is not known
		return
	}
	old := l.chains
	l.chains = nil
	content, there := d.s.Lists[id]
	if there {
		for _, c := range chainsOf(content, f.uses[id]) {
			d.out.Chains.Put(c.Name, c)
			l.chains = append(l.chains, c.Name)
		}
	} else {
		delete(f.lists, id)
	}
	for _, name := range old {
		if !slices.Contains(l.chains, name) {
			d.out.Chains.Remove(name)
		}
	}
}

// chainsOf are the chains of a list: for workloads, unless its policies are of passes that workloads do not have, and for
// the passes in which host endpoints use it.
func chainsOf(l view.PolicyList, uses passes) []desired.Chain {
	var out []desired.Chain
	if !uses.has(desired.Untracked) && !uses.has(desired.PreDNAT) {
		pair := desired.ListChains(l)
		out = append(out, pair[:]...)
	}
	for pass := desired.Untracked; pass <= desired.Normal; pass++ {
		if !uses.has(pass) {
			continue
		}
		for _, c := range desired.PassChains(l, pass) {
			if len(c.Rules) > 0 {
				out = append(out, c)
			}
		}
	}
	return out
}

// setHosts computes what is about host endpoints. They are few; what their lists say is not.
func (f *Firewall) setHosts(d *due) {
	uses := hostLists(d.s)
	for id := range f.uses {
		if uses[id] != f.uses[id] {
			d.lists[id] = struct{}{}
		}
	}
	for id := range uses {
		if uses[id] != f.uses[id] {
			d.lists[id] = struct{}{}
		}
	}
	f.uses = uses
	leaving := leavingHosts(d.s, uses)
	for id := range leaving {
		if _, was := f.leaving[id]; !was {
			d.policies[id] = struct{}{}
		}
	}
	for id := range f.leaving {
		if _, is := leaving[id]; !is {
			d.policies[id] = struct{}{}
		}
	}
	f.leaving = leaving
	hosts := hosts(d.s, func(list string) []string {
		if f.complete(d.s, list) {
			return nil
		}
		return d.s.ListLacks(list)
	})
	d.out.Hosts = desired.Diff(f.hosts, hosts, func(a, b desired.Host) bool { return a == b })
	f.hosts = hosts
	failsafe := failsafes(d.s, len(hosts) > 0)
	for _, c := range f.failsafe {
		if len(failsafe) == 0 {
			d.out.Chains.Remove(c.Name)
		}
	}
	if !slices.EqualFunc(failsafe, f.failsafe, desired.Chain.Equal) {
		for _, c := range failsafe {
			d.out.Chains.Put(c.Name, c)
		}
	}
	f.failsafe = failsafe
}

// hostLists are the lists that host endpoints name, and in which passes.
func hostLists(s *state.State) map[string]passes {
	uses := map[string]passes{}
	for _, e := range s.HostEPs {
		for pass, id := range listsOf(e) {
			if id != "" {
				uses[id] |= 1 << pass
			}
		}
	}
	return uses
}

// leavingHosts are the policies of what leaves by the host's own interfaces.
func leavingHosts(s *state.State, uses map[string]passes) map[string]struct{} {
	out := map[string]struct{}{}
	for id, in := range uses {
		if !in.has(desired.Normal) {
			continue
		}
		l := s.Lists[id]
		for _, t := range l.Tiers {
			for _, id := range t.Egress {
				out[id] = struct{}{}
			}
		}
		for _, id := range l.Profiles {
			out[id] = struct{}{}
		}
	}
	return out
}

// byName are the host endpoints in the order of precedence.
func byName(s *state.State) []view.HostEndpoint {
	return slices.SortedFunc(maps.Values(s.HostEPs), func(a, b view.HostEndpoint) int { return cmp.Compare(a.Name, b.Name) })
}
