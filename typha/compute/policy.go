package compute

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
)

// policy is a policy as far as it decides which endpoints it applies to, and where in their lists.
type policy struct {
	key     api.Key
	subject *selector.Selector
	order   float64
	tie     string // breaks ties of order
	ingress bool
	egress  bool
	hint    bool // every node has it
	rules   *rules

	selection *selection // kept by the engine
}

// rules are what a policy or profile says, with the sets it needs.
type rules struct {
	item view.Policy
	sets map[string]setSpec
}

// shortKinds begin the ids of policies.
var shortKinds = map[string]string{
	"NetworkPolicy":                 "np",
	"GlobalNetworkPolicy":           "gnp",
	"StagedNetworkPolicy":           "snp",
	"StagedGlobalNetworkPolicy":     "sgnp",
	"StagedKubernetesNetworkPolicy": "sknp",
	kubernetes.KindCluster:          "kcnp",
	kubernetes.KindAdmin:            "kanp",
	kubernetes.KindBaseline:         "kbanp",
}

// parsePolicy understands a policy of any kind. It returns nil for one that is gone, cannot be understood, or is staged
// without anything to evaluate. Cluster-wide policies of Kubernetes come as global ones of ours, under kinds of their own.
func parsePolicy(kind string, o api.Object) *policy {
	switch o := o.(type) {
	case *api.NetworkPolicy:
		return namespacedPolicy(o, &o.Spec, kind)
	case *api.GlobalNetworkPolicy:
		return globalPolicy(o, &o.Spec, kind)
	case *api.StagedNetworkPolicy:
		if !evaluated(o.Spec.StagedAction) {
			return nil
		}
		return namespacedPolicy(o, &o.Spec.NetworkPolicySpec, kind)
	case *api.StagedGlobalNetworkPolicy:
		if !evaluated(o.Spec.StagedAction) {
			return nil
		}
		return globalPolicy(o, &o.Spec.GlobalNetworkPolicySpec, kind)
	case *api.StagedKubernetesNetworkPolicy:
		if !evaluated(o.Spec.StagedAction) {
			return nil
		}
		return namespacedPolicy(o, kubernetes.Spec(&o.Spec), kind)
	}
	return nil
}

// evaluated tells whether a staged policy is one that could be enforced; to delete or ignore has nothing to evaluate.
func evaluated(a api.StagedAction) bool { return a != api.StagedDelete && a != api.StagedIgnore }

func namespacedPolicy(o api.Object, spec *api.NetworkPolicySpec, kind string) *policy {
	t := translator{namespace: o.GetNamespace(), sets: map[string]setSpec{}}
	p := t.policy(o, spec, kind)
	p.subject = selector.ForNetworkPolicy(t.selector(spec.Selector), t.namespace, t.selector(spec.ServiceAccountSelector))
	if t.err != nil {
		return nil
	}
	return p
}

func globalPolicy(o api.Object, spec *api.GlobalNetworkPolicySpec, kind string) *policy {
	t := translator{sets: map[string]setSpec{}}
	p := t.policy(o, &spec.NetworkPolicySpec, kind)
	p.subject = selector.ForGlobalNetworkPolicy(
		t.selector(spec.Selector), t.selector(spec.NamespaceSelector), t.selector(spec.ServiceAccountSelector))
	p.rules.item.DoNotTrack = spec.DoNotTrack
	p.rules.item.PreDNAT = spec.PreDNAT
	p.rules.item.ApplyOnForward = spec.ApplyOnForward
	if t.err != nil {
		return nil
	}
	return p
}

// policy understands what the kinds have in common.
func (t *translator) policy(o api.Object, spec *api.NetworkPolicySpec, kind string) *policy {
	name, short := o.GetName(), shortKinds[kind]
	if kind == "NetworkPolicy" {
		if rest, ok := strings.CutPrefix(name, kubernetes.NamePrefix); ok {
			name, short, kind = rest, "knp", "KubernetesNetworkPolicy"
		}
	}
	id := short + "/" + name
	if t.namespace != "" {
		id = short + "/" + t.namespace + "/" + name
	}
	p := &policy{
		order: math.Inf(1),
		tie:   name + "/" + t.namespace + "/" + kind,
		// No types at all, as a foreign client may store them, means both directions.
		ingress: len(spec.Types) == 0 || slices.Contains(spec.Types, api.Ingress),
		egress:  len(spec.Types) == 0 || slices.Contains(spec.Types, api.Egress),
		hint:    slices.Contains(spec.PerformanceHints, api.AssumeNeededOnEveryNode),
	}
	if spec.Order != nil {
		p.order = *spec.Order
	}
	p.rules = &rules{
		item: view.Policy{
			ID:      id,
			Tier:    cmp.Or(spec.Tier, api.TierDefault),
			Ingress: t.rules(spec.Ingress),
			Egress:  t.rules(spec.Egress),
			Staged:  strings.HasPrefix(kind, "Staged"),
		},
		sets: t.sets,
	}
	return p
}

// parseProfile understands a profile's rules; nil for one that is gone or cannot be understood.
func parseProfile(o *api.Profile) *rules {
	if o == nil {
		return nil
	}
	t := translator{sets: map[string]setSpec{}}
	r := &rules{
		item: view.Policy{ID: profileID(o.Name), Ingress: t.rules(o.Spec.Ingress), Egress: t.rules(o.Spec.Egress)},
		sets: t.sets,
	}
	if t.err != nil {
		return nil
	}
	return r
}

// setPolicy takes in a policy, or with nil its end.
func (e *Engine) setPolicy(key api.Key, now *policy) {
	was := e.policies[key]
	if was == nil && now == nil {
		return
	}
	if now != nil {
		now.key = key
		now.selection = e.index.selection(now.subject)
		e.selects(now, true)
		e.policies[key] = now
	} else {
		delete(e.policies, key)
	}
	if was != nil { // after what is now, so that a selector that both have does not cease to be asked
		e.selects(was, false)
		e.index.release(was.selection)
		e.leaveTier(was)
		if now == nil || now.rules.item.ID != was.rules.item.ID {
			e.setSlot(was.rules.item.ID, nil)
		}
	}
	if now != nil {
		e.enterTier(now)
		e.setSlot(now.rules.item.ID, now.rules)
		e.setEverywhere(now.rules.item.ID, now.hint)
	} else {
		e.setEverywhere(was.rules.item.ID, false)
	}
}

// selects has a policy apply to the endpoints of its selection, or no more.
func (e *Engine) selects(p *policy, now bool) {
	sel := p.selection
	others := len(sel.policies)
	if now {
		sel.policies[p] = struct{}{}
	} else {
		delete(sel.policies, p)
		others--
	}
	if others == 0 {
		sel.asks = asks(sel.selector)
		if sel.asks != "" {
			e.endpointsIn(sel) // into other groups
		}
	}
	e.listsIn(sel)
}

// listsIn has what applies to the endpoints of a selection computed anew.
func (e *Engine) listsIn(sel *selection) {
	for s := range e.index.of(sel.subjects) {
		e.touchList(s)
	}
}

func (e *Engine) enterTier(p *policy) {
	t := p.rules.item.Tier
	if e.members[t] == nil {
		e.members[t] = map[*policy]struct{}{}
	}
	e.members[t][p] = struct{}{}
}

func (e *Engine) leaveTier(p *policy) {
	t := p.rules.item.Tier
	delete(e.members[t], p)
	if len(e.members[t]) == 0 {
		delete(e.members, t)
	}
}

// setTier takes in a tier, or with nil its end.
func (e *Engine) setTier(name string, o *api.Tier) {
	was := e.tier(name)
	if o == nil {
		delete(e.tiers, name)
	} else {
		e.tiers[name] = o
	}
	if e.tier(name) != was {
		for p := range e.members[name] {
			e.listsIn(p.selection)
		}
	}
}

// tier is what endpoints need to know of a tier.
type tier struct {
	name   string
	known  bool
	order  float64
	action view.Action
}

// tier returns a tier by name. The built-in ones are what they are, known or not. Policies of a tier that is not known
// are enforced after those of all others, and end in deny.
func (e *Engine) tier(name string) tier {
	switch name {
	case api.TierKubeAdmin:
		return tier{name, true, api.OrderKubeAdmin, view.Pass}
	case api.TierDefault:
		return tier{name, true, api.OrderDefault, view.Deny}
	case api.TierKubeBaseline:
		return tier{name, true, api.OrderKubeBaseline, view.Pass}
	}
	o := e.tiers[name]
	if o == nil {
		return tier{name, false, math.Inf(1), view.Deny}
	}
	t := tier{name, true, api.OrderDefault, view.Deny}
	if o.Spec.Order != nil {
		t.order = *o.Spec.Order
	}
	if o.Spec.DefaultAction != nil && *o.Spec.DefaultAction == api.Pass {
		t.action = view.Pass
	}
	return t
}

func (t tier) compare(u tier) int {
	if t.known != u.known {
		if t.known {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(t.order, u.order), cmp.Compare(t.name, u.name))
}

func (p *policy) compare(q *policy) int {
	return cmp.Or(cmp.Compare(p.order, q.order), cmp.Compare(p.tie, q.tie))
}
