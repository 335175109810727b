package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
)

// The kinds under which cluster-wide policies of Kubernetes (policy.networking.k8s.io) are kept beside ours.
const (
	KindCluster  = "KubernetesClusterNetworkPolicy"
	KindAdmin    = "KubernetesAdminNetworkPolicy"
	KindBaseline = "KubernetesBaselineAdminNetworkPolicy"
)

// ClusterKinds are all of them.
func ClusterKinds() []string { return []string{KindCluster, KindAdmin, KindBaseline} }

// RuleName is the annotation of a rule that has the name which the rule has in Kubernetes.
const RuleName = "name"

// ClusterNetworkPolicy is a ClusterNetworkPolicy as a global one of ours, of tier kube-admin or kube-baseline (spec §1.10).
// The policy is nil if there is nobody whom it could be for.
//
// A rule that cannot be said fails closed, as the documents of that API demand: one that accepts matches nothing, any other
// denies everything. If only the pods of its subject cannot be said, the policy denies everything to their namespaces. The
// error has all that could not be said, and where.
func ClusterNetworkPolicy(k *v1alpha2.ClusterNetworkPolicy) (*api.GlobalNetworkPolicy, error) {
	tier, known := map[v1alpha2.Tier]string{
		v1alpha2.AdminTier: api.TierKubeAdmin, v1alpha2.BaselineTier: api.TierKubeBaseline,
	}[k.Spec.Tier]
	if !known {
		return nil, fmt.Errorf("spec.tier: %q is not known, hence the policy does nothing; write Admin or Baseline", k.Spec.Tier)
	}
	p := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: k.Name, ResourceVersion: k.ResourceVersion}}
	p.Spec.Tier, p.Spec.Order = tier, new(float64(k.Spec.Priority))
	var closed error
	if p.Spec.Selector, p.Spec.NamespaceSelector, closed = subject(&k.Spec.Subject); closed != nil {
		closed = fmt.Errorf("spec.subject: %w", closed)
		if p.Spec.NamespaceSelector == "" || p.Spec.NamespaceSelector == everything {
			return nil, fmt.Errorf("%w; the policy does nothing", closed)
		}
		closed = fmt.Errorf("%w; the policy denies everything to the namespaces", closed)
	}
	wrong := []error{closed}
	for _, d := range []struct {
		direction api.PolicyType
		field     string
		rules     []v1alpha2.ClusterNetworkPolicyEgressRule
		out       *[]api.Rule
		peer      func(*api.Rule) *api.EntityRule
	}{
		{api.Ingress, "ingress", outward(k.Spec.Ingress), &p.Spec.Ingress, func(r *api.Rule) *api.EntityRule { return &r.Source }},
		{api.Egress, "egress", k.Spec.Egress, &p.Spec.Egress, func(r *api.Rule) *api.EntityRule { return &r.Destination }},
	} {
		for i := range d.rules {
			said, err := clusterRule(&d.rules[i], d.peer)
			if err != nil {
				wrong = append(wrong, fmt.Errorf("spec.%s[%d]: %w", d.field, i, err))
			}
			*d.out = append(*d.out, said...)
		}
		if closed != nil && len(d.rules) > 0 {
			*d.out = []api.Rule{{Action: api.Deny}}
		}
		// The tiers pass on what nobody decides, so a policy is about the directions of its rules only.
		if len(*d.out) > 0 {
			p.Spec.Types = append(p.Spec.Types, d.direction)
		}
	}
	return p, errors.Join(wrong...)
}

// outward has ingress rules in the form of those of egress, which says more.
func outward(rules []v1alpha2.ClusterNetworkPolicyIngressRule) (out []v1alpha2.ClusterNetworkPolicyEgressRule) {
	for _, r := range rules {
		o := v1alpha2.ClusterNetworkPolicyEgressRule{Name: r.Name, Action: r.Action, Protocols: r.Protocols}
		for _, p := range r.From {
			o.To = append(o.To, v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		out = append(out, o)
	}
	return out
}

// subject says for which pods a policy is, by their labels and those of their namespaces. Next to an error it says what is
// sure to have them all; the selector of namespaces is empty if there is no telling.
func subject(s *v1alpha2.ClusterNetworkPolicySubject) (pods, namespaces string, err error) {
	switch {
	case (s.Namespaces == nil) == (s.Pods == nil):
		return "", "", errors.New("is neither namespaces nor pods alone; write one of the two")
	case s.Pods != nil:
		return namespacedPods(&s.Pods.NamespaceSelector, &s.Pods.PodSelector)
	}
	return namespacedPods(s.Namespaces, nil)
}

func namespacedPods(namespaces, pods *metav1.LabelSelector) (string, string, error) {
	p, err1 := podSelector(pods)
	n, err2 := namespaceSelector(namespaces)
	return p, n, cmp.Or(err2, err1)
}

// clusterRule makes one rule for each protocol and peer. With an error they are what is safe instead.
func clusterRule(r *v1alpha2.ClusterNetworkPolicyEgressRule, peer func(*api.Rule) *api.EntityRule) ([]api.Rule, error) {
	var meta *api.RuleMetadata
	if r.Name != "" {
		meta = &api.RuleMetadata{Annotations: map[string]string{RuleName: r.Name}}
	}
	action, ok := map[v1alpha2.ClusterNetworkPolicyRuleAction]api.Action{
		v1alpha2.ClusterNetworkPolicyRuleActionAccept: api.Allow,
		v1alpha2.ClusterNetworkPolicyRuleActionDeny:   api.Deny,
		v1alpha2.ClusterNetworkPolicyRuleActionPass:   api.Pass,
	}[r.Action]
	matches, peers, err := criteria(r)
	if !ok {
		err = fmt.Errorf("action %q is not known; write Accept, Deny or Pass", r.Action)
	}
	switch {
	case err != nil && action == api.Allow:
		return nil, fmt.Errorf("%w; the rule accepts nothing", err)
	case err != nil:
		return []api.Rule{{Action: api.Deny, Metadata: meta}}, fmt.Errorf("%w; the rule denies everything", err)
	}
	var out []api.Rule
	for _, m := range matches {
		for _, e := range peers {
			rule := api.Rule{Action: action, Protocol: m.protocol, Metadata: meta}
			*peer(&rule) = e
			rule.Destination.Ports = m.ports
			out = append(out, rule)
		}
	}
	return out, nil
}

// criteria are the protocols and peers of a rule. Only pods have names for ports.
func criteria(r *v1alpha2.ClusterNetworkPolicyEgressRule) ([]protocolMatch, []api.EntityRule, error) {
	if len(r.To) == 0 {
		return nil, nil, errors.New("names no peer; write one")
	}
	var peers []api.EntityRule
	for i := range r.To {
		e, err := clusterPeer(&r.To[i])
		if err != nil {
			return nil, nil, fmt.Errorf("peer %d: %w", i, err)
		}
		peers = append(peers, e...)
	}
	matches, err := clusterProtocols(r.Protocols)
	if err != nil {
		return nil, nil, err
	}
	named := slices.ContainsFunc(matches, func(m protocolMatch) bool { return len(m.ports) > 0 && m.ports[0].IsNamed() })
	if named && slices.ContainsFunc(peers, func(e api.EntityRule) bool { return len(e.Nets) > 0 }) {
		return nil, nil, errors.New("names a port beside networks, whose ports have no names; write two rules")
	}
	return matches, peers, nil
}

// clusterPeer is a peer as one end of rules: of one for each address family, if it is networks of both.
func clusterPeer(p *v1alpha2.ClusterNetworkPolicyEgressPeer) ([]api.EntityRule, error) {
	given := 0
	for _, is := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, len(p.Networks) > 0, len(p.DomainNames) > 0} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, errors.New("says nothing that is known here; write namespaces, pods or networks")
	case given > 1:
		return nil, errors.New("says several things at once; write a peer for each")
	case p.Nodes != nil:
		return nil, errors.New("nodes are not supported; write their addresses as networks")
	case len(p.DomainNames) > 0:
		return nil, errors.New("domainNames are not supported; write networks")
	case len(p.Networks) > 0:
		return networks(p.Networks)
	}
	namespaces, pods := p.Namespaces, (*metav1.LabelSelector)(nil)
	if p.Pods != nil {
		namespaces, pods = &p.Pods.NamespaceSelector, &p.Pods.PodSelector
	}
	var e api.EntityRule
	var err error
	e.Selector, e.NamespaceSelector, err = namespacedPods(namespaces, pods)
	return []api.EntityRule{e}, err
}

func networks(list []v1alpha2.CIDR) ([]api.EntityRule, error) {
	var families [2]api.EntityRule
	for _, text := range list {
		n, err := netip.ParsePrefix(string(text))
		if err != nil || n.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is not a CIDR; write one such as 10.0.0.0/8 or fd00::/8", text)
		}
		f := &families[0]
		if n.Addr().Is6() {
			f = &families[1]
		}
		if c := n.Masked().String(); !slices.Contains(f.Nets, c) {
			f.Nets = append(f.Nets, c)
		}
	}
	return slices.DeleteFunc(families[:], func(e api.EntityRule) bool { return len(e.Nets) == 0 }), nil
}
