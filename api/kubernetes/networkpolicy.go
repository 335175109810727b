// Package kubernetes says in our terms what policies of Kubernetes say: NetworkPolicies, and the cluster-wide ones of
// policy.networking.k8s.io. It is pure. Whoever takes policies from
// Kubernetes, wherever they are kept, translates them here.
package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/muslin-net/muslin/api"
)

// NamePrefix begins the names under which policies of Kubernetes are kept among ours: the policy "web" is the NetworkPolicy
// "knp.default.web".
const NamePrefix = "knp.default."

// Order is the order of policies of Kubernetes within tier default.
const Order = 1000.0

// isPod is what all selectors of pods have in common: host endpoints are never meant.
const isPod = "projectcalico.org/orchestrator == 'k8s'"

// NetworkPolicy is a NetworkPolicy of Kubernetes as one of ours.
func NetworkPolicy(meta metav1.ObjectMeta, spec *api.StagedKubernetesNetworkPolicySpec) *api.NetworkPolicy {
	p := &api.NetworkPolicy{ObjectMeta: *meta.DeepCopy(), Spec: *Spec(spec)}
	p.Name = NamePrefix + meta.Name
	return p
}

// Spec says what the spec of a NetworkPolicy says (spec §3.7). A rule that cannot be said is left out whole; the policy
// still selects its pods, so nothing is opened by it.
func Spec(k *api.StagedKubernetesNetworkPolicySpec) *api.NetworkPolicySpec {
	p := &api.NetworkPolicySpec{Tier: api.TierDefault, Order: new(Order), Types: k.PolicyTypes}
	var err error
	if p.Selector, err = podSelector(&k.PodSelector); err != nil {
		p.Selector = isPod // whom it is for is not known: all pods of the namespace, so that it opens nothing
	}
	if len(p.Types) == 0 {
		p.Types = []api.PolicyType{api.Ingress}
	}
	for _, r := range k.Ingress {
		allowed, err := rules(r.Ports, r.From, func(r *api.Rule) *api.EntityRule { return &r.Source })
		if err == nil {
			p.Ingress = append(p.Ingress, allowed...)
		}
	}
	for _, r := range k.Egress {
		allowed, err := rules(r.Ports, r.To, func(r *api.Rule) *api.EntityRule { return &r.Destination })
		if err == nil {
			p.Egress = append(p.Egress, allowed...)
		}
	}
	return p
}

// rules makes one rule for each protocol and peer. Ports are always those of the destination.
func rules(ports []api.KubernetesPort, peers []api.KubernetesPeer, end func(*api.Rule) *api.EntityRule) ([]api.Rule, error) {
	matches, err := protocolPorts(ports)
	if err != nil {
		return nil, err
	}
	if len(peers) == 0 {
		peers = []api.KubernetesPeer{{}}
		end = nil // anyone, pod or not
	}
	var out []api.Rule
	for _, m := range matches {
		for i := range peers {
			r := api.Rule{Action: api.Allow, Protocol: m.protocol}
			if end != nil {
				if err := peer(&peers[i], end(&r)); err != nil {
					return nil, err
				}
			}
			r.Destination.Ports = m.ports
			out = append(out, r)
		}
	}
	return out, nil
}

func peer(p *api.KubernetesPeer, e *api.EntityRule) error {
	if p.IPBlock != nil {
		e.Nets, e.NotNets = []string{p.IPBlock.CIDR}, p.IPBlock.Except
		for _, cidr := range append([]string{p.IPBlock.CIDR}, p.IPBlock.Except...) {
			if _, err := netip.ParsePrefix(cidr); err != nil {
				return err // not a rule that is open to all, which is what no criterion would mean
			}
		}
		return nil
	}
	var err error
	if e.Selector, err = podSelector(p.PodSelector); err != nil || p.NamespaceSelector == nil {
		return err
	}
	e.NamespaceSelector, err = namespaceSelector(p.NamespaceSelector)
	return err
}

// protocolMatch is a protocol with its ports, none of them for all.
type protocolMatch struct {
	protocol *api.Protocol // nil for every protocol
	ports    []api.Port
}

// protocolPorts gathers the ports of each protocol: names first, then the fewest ranges, in order.
func protocolPorts(ports []api.KubernetesPort) ([]protocolMatch, error) {
	if len(ports) == 0 {
		return []protocolMatch{{}}, nil
	}
	byProtocol := map[api.Protocol][]api.Port{}
	all := map[api.Protocol]bool{}
	for _, p := range ports {
		protocol := api.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		converted, err := portOf(p)
		if err != nil {
			return nil, err
		}
		if converted == nil {
			all[protocol] = true
			byProtocol[protocol] = nil
		} else if !all[protocol] {
			byProtocol[protocol] = append(byProtocol[protocol], *converted)
		}
	}
	var out []protocolMatch
	for _, protocol := range slices.Sorted(maps.Keys(byProtocol)) {
		out = append(out, protocolMatch{protocol: &protocol, ports: fewest(byProtocol[protocol])})
	}
	return out, nil
}

// portOf converts a port; nil means all ports.
func portOf(p api.KubernetesPort) (*api.Port, error) {
	if p.Port == nil {
		if p.EndPort != nil {
			return nil, errors.New("endPort needs port")
		}
		return nil, nil
	}
	if p.Port.Type == intstr.String {
		if p.EndPort != nil {
			return nil, errors.New("endPort needs a numeric port")
		}
		port, err := api.ParsePort(p.Port.StrVal)
		return &port, err
	}
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 1 || last < first || last > 65535 {
		return nil, fmt.Errorf("%d to %d is no range of ports", first, last)
	}
	return &api.Port{First: uint16(first), Last: uint16(last)}, nil
}

func fewest(ports []api.Port) []api.Port {
	slices.SortFunc(ports, func(a, b api.Port) int {
		if a.IsNamed() != b.IsNamed() {
			if a.IsNamed() {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.First, b.First))
	})
	var out []api.Port
	for _, p := range ports {
		n := len(out)
		switch {
		case n > 0 && p.IsNamed() && out[n-1] == p:
		case n > 0 && !p.IsNamed() && !out[n-1].IsNamed() && int(p.First) <= int(out[n-1].Last)+1:
			out[n-1].Last = max(out[n-1].Last, p.Last)
		default:
			out = append(out, p)
		}
	}
	return out
}

// podSelector selects pods; nil or empty means all of them.
func podSelector(s *metav1.LabelSelector) (string, error) {
	if s == nil {
		return isPod, nil
	}
	rest, err := labelSelector(s)
	if rest == "" || err != nil {
		return isPod, err
	}
	return isPod + " && " + rest, nil
}

// everything selects all namespaces, and nothing that has none.
const everything = "all()"

// namespaceSelector selects namespaces; an empty one means all of them.
func namespaceSelector(s *metav1.LabelSelector) (string, error) {
	text, err := labelSelector(s)
	if err != nil {
		return "", err
	}
	return cmp.Or(text, everything), nil
}

// labelSelector is a Kubernetes label selector in our language, empty if it selects everything.
func labelSelector(s *metav1.LabelSelector) (string, error) {
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		return "", err // its keys and values need not be words of ours
	}
	var terms []string
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		terms = append(terms, fmt.Sprintf("%s == '%s'", k, s.MatchLabels[k]))
	}
	for _, x := range s.MatchExpressions {
		set := "{ '" + strings.Join(x.Values, "', '") + "' }"
		switch x.Operator {
		case metav1.LabelSelectorOpIn:
			terms = append(terms, x.Key+" in "+set)
		case metav1.LabelSelectorOpNotIn:
			terms = append(terms, x.Key+" not in "+set)
		case metav1.LabelSelectorOpExists:
			terms = append(terms, "has("+x.Key+")")
		case metav1.LabelSelectorOpDoesNotExist:
			terms = append(terms, "! has("+x.Key+")")
		}
	}
	return strings.Join(terms, " && "), nil
}
