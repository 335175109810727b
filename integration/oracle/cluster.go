package oracle

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// Cluster is a world understood.
type Cluster struct {
	things   []*thing
	services []Service
	tiers    []*tier // those that have policies, in order
	profiles map[string][2][]rule
}

// tier is a tier with its policies in order.
type tier struct {
	name     string
	known    bool
	order    float64
	action   api.Action // at its end
	policies []*policy
}

// policy is a policy that is enforced.
type policy struct {
	id, tier, tie string
	order         float64
	applies       func(*thing) bool
	passes        []pass    // that it takes part in
	covers        [2]bool   // by direction
	rules         [2][]rule // by direction
}

// New understands a world. It fails if a policy or profile of it makes no sense; what happens then is not a matter of
// meaning.
func New(w World) (*Cluster, error) {
	c := &Cluster{things: things(w.Objects), services: w.Services, profiles: map[string][2][]rule{}}
	var policies []*policy
	for _, o := range w.Objects {
		p, err := c.policy(o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", api.KeyOf(o), err)
		}
		if p != nil {
			policies = append(policies, p)
		}
		if o, ok := o.(*api.Profile); ok {
			p := &policy{}
			if err := c.fill(p, o.Spec.Ingress, o.Spec.Egress, ""); err != nil {
				return nil, fmt.Errorf("%s: %w", api.KeyOf(o), err)
			}
			c.profiles[o.Name] = p.rules
		}
	}
	allow := []rule{{api.Allow, func(Packet) bool { return true }}}
	c.profiles[api.ProfileDefaultAllow] = [2][]rule{allow, allow}
	for i := range w.Kubernetes {
		policies = append(policies, c.kubernetes(&w.Kubernetes[i]))
	}
	var wide []clusterWide
	for i := range w.Cluster {
		wide = append(wide, fromCluster(&w.Cluster[i]))
	}
	for i := range w.Admin {
		wide = append(wide, fromAdmin(&w.Admin[i]))
	}
	for i := range w.Baseline {
		wide = append(wide, fromBaseline(&w.Baseline[i]))
	}
	for _, k := range wide {
		if p := c.clusterWide(k); p != nil {
			policies = append(policies, p)
		}
	}
	c.tiers = inTiers(policies, w.Objects)
	return c, nil
}

// policy understands a policy of ours. Staged ones are not enforced: nil.
func (c *Cluster) policy(o api.Object) (*policy, error) {
	switch o := o.(type) {
	case *api.NetworkPolicy:
		selector, err1 := parseSelector(o.Spec.Selector)
		accounts, err2 := parseSelector(o.Spec.ServiceAccountSelector)
		p := &policy{passes: []pass{normal}, applies: func(t *thing) bool {
			return selector(t.labels, field{}) && t.labels[labelNamespace] == o.Namespace &&
				(o.Spec.ServiceAccountSelector == "" || accounts(t.labels, field{prefix: ofServiceAccount}))
		}}
		p.name("np", "NetworkPolicy", o.Namespace, o.Name)
		return p, cmp.Or(err1, err2, c.common(p, &o.Spec, o.Namespace))
	case *api.GlobalNetworkPolicy:
		p := &policy{}
		var err error
		p.applies, err = globalSubject(&o.Spec)
		p.passes = passesOf(&o.Spec)
		p.name("gnp", "GlobalNetworkPolicy", "", o.Name)
		return p, cmp.Or(err, c.common(p, &o.Spec.NetworkPolicySpec, ""))
	}
	return nil, nil
}

// globalSubject says whom a global policy is for. all() means all() only while the policy has neither of the other two
// selectors; with one it means having a namespace, or else having a service account (spec §2).
func globalSubject(s *api.GlobalNetworkPolicySpec) (func(*thing) bool, error) {
	selector, err1 := parseSelector(s.Selector)
	namespaces, err2 := parseSelector(s.NamespaceSelector)
	accounts, err3 := parseSelector(s.ServiceAccountSelector)
	plain := field{}
	switch {
	case s.NamespaceSelector != "":
		plain.all = labelNamespace
	case s.ServiceAccountSelector != "":
		plain.all = labelServiceAccount
	}
	return func(t *thing) bool {
		return (s.Selector == "" || selector(t.labels, plain)) &&
			(s.NamespaceSelector == "" || namespaces(t.labels, field{prefix: ofNamespace, all: labelNamespace})) &&
			(s.ServiceAccountSelector == "" || accounts(t.labels, field{prefix: ofServiceAccount, all: labelServiceAccount}))
	}, cmp.Or(err1, err2, err3)
}

// name names a policy. Those that were made from policies of Kubernetes keep the names that they have there.
func (p *policy) name(short, kind, namespace, name string) {
	if rest, ok := strings.CutPrefix(name, "knp.default."); ok && kind == "NetworkPolicy" {
		short, kind, name = "knp", "KubernetesNetworkPolicy", rest
	}
	p.tie = name + "/" + namespace + "/" + kind
	p.id = short + "/" + name
	if namespace != "" {
		p.id = short + "/" + namespace + "/" + name
	}
}

func (c *Cluster) common(p *policy, s *api.NetworkPolicySpec, namespace string) error {
	p.tier, p.order = cmp.Or(s.Tier, api.TierDefault), math.Inf(1)
	if s.Order != nil {
		p.order = *s.Order
	}
	// Types that nobody inferred from the rules mean both (spec §1.6).
	p.covers[Ingress] = len(s.Types) == 0 || slices.Contains(s.Types, api.Ingress)
	p.covers[Egress] = len(s.Types) == 0 || slices.Contains(s.Types, api.Egress)
	return c.fill(p, s.Ingress, s.Egress, namespace)
}

func (c *Cluster) fill(p *policy, ingress, egress []api.Rule, namespace string) error {
	for d, rules := range [2][]api.Rule{Ingress: ingress, Egress: egress} {
		for i := range rules {
			r, err := c.understand(&rules[i], namespace)
			if err != nil {
				return fmt.Errorf("%s rule %d: %w", Direction(d), i, err)
			}
			p.rules[d] = append(p.rules[d], r)
		}
	}
	return nil
}

// inTiers sorts policies into their tiers.
func inTiers(policies []*policy, objects []api.Object) []*tier {
	byName := map[string]*tier{}
	for _, p := range policies {
		if byName[p.tier] == nil {
			byName[p.tier] = understandTier(p.tier, objects)
		}
		byName[p.tier].policies = append(byName[p.tier].policies, p)
	}
	var all []*tier
	for _, t := range byName {
		slices.SortFunc(t.policies, func(a, b *policy) int { return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.tie, b.tie)) })
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *tier) int {
		if a.known != b.known { // unknown tiers come after all others
			return map[bool]int{true: -1, false: 1}[a.known]
		}
		return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.name, b.name))
	})
	return all
}

func understandTier(name string, objects []api.Object) *tier {
	switch name { // these are what they are
	case "kube-admin":
		return &tier{name: name, known: true, order: 1_000, action: api.Pass}
	case "default":
		return &tier{name: name, known: true, order: 1_000_000, action: api.Deny}
	case "kube-baseline":
		return &tier{name: name, known: true, order: 10_000_000, action: api.Pass}
	}
	for _, o := range objects {
		if o, ok := o.(*api.Tier); ok && o.Name == name {
			t := &tier{name: name, known: true, order: 1_000_000, action: api.Deny}
			if o.Spec.Order != nil {
				t.order = *o.Spec.Order
			}
			if o.Spec.DefaultAction != nil {
				t.action = *o.Spec.DefaultAction
			}
			return t
		}
	}
	return &tier{name: name, action: api.Deny}
}
