package compute

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
)

// labelOrchestrator tells Kubernetes pods from everything else.
const labelOrchestrator = "projectcalico.org/orchestrator"

// systemLabels are the labels that come from what a subject is.
var systemLabels = []string{selector.LabelNamespace, labelOrchestrator, selector.LabelServiceAccount}

// subjects is a set of them, as a list of their numbers in order: a map of pointers takes six times as much memory, which the collector
// of garbage has to go through, and there are several entries for each endpoint of a cluster.
type subjects []uint32

// add adds one, if it is not there.
func (l *subjects) add(s *subject) {
	if i, found := slices.BinarySearch(*l, s.number); !found {
		*l = slices.Insert(*l, i, s.number)
	}
}

// remove removes one, if it is there. Of a list that has become much shorter the memory is given back.
func (l *subjects) remove(s *subject) {
	i, found := slices.BinarySearch(*l, s.number)
	if !found {
		return
	}
	*l = slices.Delete(*l, i, i+1)
	if n := len(*l); n < cap(*l)/4 {
		*l = append(make(subjects, 0, 2*n), *l...)
	}
}

// subject is what selectors select: an endpoint or a network set.
type subject struct {
	number   uint32 // its place in the index, which gave it
	key      api.Key
	traits   *cache.Traits  // own labels, profiles in order and what labels of the system are made of
	inherits []*profile     // the profiles, filled in by the engine
	nets     []netip.Prefix // what it adds to sets
	ports    []port         // named ports of its addresses
	endpoint *endpoint      // nil for a network set

	matches []*selection // what selects it; kept by the index
	group   *group       // of a workload that a view has
}

// system returns the labels that come from what a subject is, and beat own ones; those that are empty it does not have.
func (s *subject) system(key string) (string, bool) {
	var v string
	switch key {
	case selector.LabelNamespace:
		v = s.traits.Namespace
	case labelOrchestrator:
		v = s.traits.Orchestrator
	case selector.LabelServiceAccount:
		v = s.traits.ServiceAccount
	}
	return v, v != ""
}

// port is a named port.
type port struct {
	name     string
	protocol view.Protocol
	number   uint16
}

// profile gives labels to its subjects. It exists while it is known or anyone refers to it.
type profile struct {
	name     string
	known    bool
	labels   map[string]string
	subjects subjects
}

// Get implements selector.Labels: labels of the system first, then own ones, then those of the profiles in order.
func (s *subject) Get(key string) (string, bool) {
	if v, ok := s.system(key); ok {
		return v, true
	}
	if v, ok := s.traits.Labels[key]; ok && !s.forged(key) {
		return v, true
	}
	for _, p := range s.inherits {
		if v, ok := p.labels[key]; ok {
			return v, true
		}
	}
	return "", false
}

// forged tells whether an own label pretends to be inherited from a namespace or service account: whoever may label a
// pod may not thereby move it into another namespace's policies. What has no namespace is labelled by administrators.
func (s *subject) forged(key string) bool {
	return s.traits.Namespace != "" &&
		(strings.HasPrefix(key, selector.NamespacePrefix) || strings.HasPrefix(key, selector.ServiceAccountPrefix))
}

// each calls f for every label that Get finds.
func (s *subject) each(f func(key, value string)) {
	for _, k := range systemLabels {
		if v, ok := s.system(k); ok {
			f(k, v)
		}
	}
	for k, v := range s.traits.Labels {
		if _, beaten := s.system(k); !beaten && !s.forged(k) {
			f(k, v)
		}
	}
	for i, p := range s.inherits {
		for k, v := range p.labels {
			if !s.hidden(k, i) {
				f(k, v)
			}
		}
	}
}

// hidden tells whether a label of the i-th profile is overruled.
func (s *subject) hidden(key string, i int) bool {
	if _, beaten := s.system(key); beaten {
		return true
	}
	if _, own := s.traits.Labels[key]; own && !s.forged(key) {
		return true
	}
	return slices.ContainsFunc(s.inherits[:i], func(p *profile) bool { _, ok := p.labels[key]; return ok })
}

// sameLabels tells whether two versions of a subject have the same labels whatever their profiles say.
func (s *subject) sameLabels(t *subject) bool {
	a, b := s.traits, t.traits
	return a == b || a.Namespace == b.Namespace && a.Orchestrator == b.Orchestrator && a.ServiceAccount == b.ServiceAccount &&
		slices.Equal(a.Profiles, b.Profiles) && maps.Equal(a.Labels, b.Labels)
}

// differ tells apart what differs between two lists, but for what is the same at their beginnings and at their ends: where of a long
// list one is edited, added or taken out, that is the one.
func differ(was, now []netip.Prefix) (gone, stay, fresh []netip.Prefix) {
	head := 0
	for head < min(len(was), len(now)) && was[head] == now[head] {
		head++
	}
	tail := 0
	for tail < min(len(was), len(now))-head && was[len(was)-1-tail] == now[len(now)-1-tail] {
		tail++
	}
	gone, fresh = was[head:len(was)-tail], now[head:len(now)-tail]
	if len(gone) == 0 {
		return nil, was, fresh
	}
	return gone, slices.Concat(was[:head], was[len(was)-tail:]), fresh
}

// setSubject replaces, adds or (new nil) removes a subject.
func (e *Engine) setSubject(key api.Key, now *subject) {
	was, _ := e.subjects.Get(key)
	switch {
	case now == nil && was == nil:
		return
	case now == nil:
		e.dropSubject(was)
		return
	}
	now.key = key
	if was == nil {
		e.index.enter(now)
		e.subjects.Set(key, now)
		e.resurrect(now)
		e.inherit(now)
		e.index.add(now)
		e.touch(now)
		return
	}
	// The subject keeps its identity, so that index and sets see only what differs. While its labels change it has only the members
	// that stay: what selects it no longer has given up the others, and what selects it afterwards takes the new ones.
	gone, stay, fresh := was.nets, []netip.Prefix(nil), now.nets
	if slices.Equal(was.ports, now.ports) {
		gone, stay, fresh = differ(was.nets, now.nets)
	}
	was.nets = gone
	e.contribute(was, -1)
	was.nets, was.ports = stay, now.ports
	if !was.sameLabels(now) {
		postings := e.index.postings(was)
		e.disinherit(was)
		was.traits = now.traits
		e.inherit(was)
		e.index.relabelled(was, postings)
	}
	was.traits = now.traits // which say the same, but the old ones need not be kept alive for it
	was.nets = fresh
	e.contribute(was, +1)
	was.nets = now.nets
	if was.endpoint != nil {
		was.endpoint.become(now.endpoint)
	}
	e.touch(was)
}

func (e *Engine) dropSubject(s *subject) {
	e.subjects.Delete(s.key)
	e.index.remove(s)
	e.disinherit(s)
	e.leaveGroup(s)
	e.index.leave(s)
	if s.endpoint != nil {
		s.endpoint.gone = true
		e.gone[s.key] = s
	}
	e.touch(s)
}

// resurrect has an endpoint that went and came back between two flushes take over what the views have of it.
func (e *Engine) resurrect(s *subject) {
	if was := e.gone[s.key]; was != nil {
		s.endpoint.flushed = was.endpoint.flushed
		delete(e.gone, s.key)
		delete(e.dirtyEndpoints, was)
	}
}

// touch has an endpoint computed anew.
func (e *Engine) touch(s *subject) {
	if s.endpoint != nil {
		e.dirtyEndpoints[s] = struct{}{}
	}
}

// inherit ties a subject to its profiles.
func (e *Engine) inherit(s *subject) {
	s.inherits = make([]*profile, len(s.traits.Profiles))
	for i, name := range s.traits.Profiles {
		p := e.profile(name)
		p.subjects.add(s)
		s.inherits[i] = p
	}
}

func (e *Engine) disinherit(s *subject) {
	for _, p := range s.inherits {
		p.subjects.remove(s)
		e.forgetProfile(p)
	}
	s.inherits = nil
}

func (e *Engine) profile(name string) *profile {
	p := e.profiles[name]
	if p == nil {
		p = &profile{name: name}
		e.profiles[name] = p
	}
	return p
}

func (e *Engine) forgetProfile(p *profile) {
	if !p.known && len(p.subjects) == 0 {
		delete(e.profiles, p.name)
	}
}

// setProfile takes in a profile, or with nil its end. The built-in one is what it is, whatever the datastore says.
func (e *Engine) setProfile(name string, o *api.Profile) {
	if name == api.ProfileDefaultAllow {
		o = &api.Profile{}
		o.Name = name
		o.Spec.Ingress = []api.Rule{{Action: api.Allow}}
		o.Spec.Egress = []api.Rule{{Action: api.Allow}}
	}
	p := e.profile(name)
	known, labels := o != nil, map[string]string(nil)
	if known {
		labels = o.Spec.LabelsToApply
	}
	if !maps.Equal(labels, p.labels) {
		var postings [][]posting
		for s := range e.index.of(p.subjects) {
			postings = append(postings, e.index.postings(s))
		}
		p.labels = labels
		for i, n := range p.subjects {
			e.index.relabelled(e.index.places[n], postings[i]) // which touches it, if what selects it changes
		}
	}
	if known != p.known {
		p.known = known
		for s := range e.index.of(p.subjects) {
			e.touch(s)
		}
	}
	e.forgetProfile(p)
	e.setSlot(profileID(name), parseProfile(o))
}

// profileID is the id of a profile's rules.
func profileID(name string) string { return "pro/" + name }
