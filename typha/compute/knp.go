package compute

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

// kubernetesOrder is the order of policies that come from Kubernetes within tier default.
const kubernetesOrder = 1000.0

// isPod is what all selectors of pods have in common: host endpoints are never meant.
const isPod = labelOrchestrator + " == 'k8s'"

// kubernetesPolicy says in our terms what a Kubernetes NetworkPolicy says (spec §3.7). A rule that cannot be said is
// left out whole; the policy still selects its pods, so nothing is opened by it.
func kubernetesPolicy(k *api.StagedKubernetesNetworkPolicySpec) *api.NetworkPolicySpec {
	order := kubernetesOrder
	p := &api.NetworkPolicySpec{
		Tier:     api.TierDefault,
		Order:    &order,
		Selector: podSelector(&k.PodSelector),
		Types:    k.PolicyTypes,
	}
	if len(p.Types) == 0 {
		p.Types = []api.PolicyType{api.Ingress}
	}
	for _, r := range k.Ingress {
		rules, err := kubernetesRules(r.Ports, r.From, func(r *api.Rule) *api.EntityRule { return &r.Source })
		if err == nil {
			p.Ingress = append(p.Ingress, rules...)
		}
	}
	for _, r := range k.Egress {
		rules, err := kubernetesRules(r.Ports, r.To, func(r *api.Rule) *api.EntityRule { return &r.Destination })
		if err == nil {
			p.Egress = append(p.Egress, rules...)
		}
	}
	return p
}

// kubernetesRules makes one rule for each protocol and peer. Ports are always those of the destination.
func kubernetesRules(ports []api.KubernetesPort, peers []api.KubernetesPeer, end func(*api.Rule) *api.EntityRule) ([]api.Rule, error) {
	matches, err := protocolPorts(ports)
	if err != nil {
		return nil, err
	}
	if len(peers) == 0 {
		peers = []api.KubernetesPeer{{}}
		end = nil // anyone, pod or not
	}
	var rules []api.Rule
	for _, m := range matches {
		for i := range peers {
			r := api.Rule{Action: api.Allow, Protocol: m.protocol}
			if end != nil {
				if err := peer(&peers[i], end(&r)); err != nil {
					return nil, err
				}
			}
			r.Destination.Ports = m.ports
			rules = append(rules, r)
		}
	}
	return rules, nil
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
	e.Selector = podSelector(p.PodSelector)
	if p.NamespaceSelector != nil {
		e.NamespaceSelector = cmp.Or(labelSelector(p.NamespaceSelector), "all()")
	}
	return nil
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
		converted, err := kubernetesPort(p)
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

// kubernetesPort converts a port; nil means all ports.
func kubernetesPort(p api.KubernetesPort) (*api.Port, error) {
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
func podSelector(s *metav1.LabelSelector) string {
	if s == nil {
		return isPod
	}
	if rest := labelSelector(s); rest != "" {
		return isPod + " && " + rest
	}
	return isPod
}

// labelSelector is a Kubernetes label selector in our language, empty if it selects everything.
func labelSelector(s *metav1.LabelSelector) string {
	var terms []string
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		terms = append(terms, fmt.Sprintf("%s == '%s'", k, s.MatchLabels[k]))
	}
	for _, x := range s.MatchExpressions {
		set := "{ '" + strings.Join(x.Values, "', '") + "' }"
		if len(x.Values) == 0 {
			set = "{ }"
		}
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
	return strings.Join(terms, " && ")
}
