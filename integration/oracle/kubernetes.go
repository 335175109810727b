package oracle

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/muslin-net/muslin/api"
)

// kubernetes understands a policy of Kubernetes by Kubernetes' own words: what is selected is closed in the directions of
// the policy, and each rule opens it to its peers on its ports.
func (c *Cluster) kubernetes(k *KubernetesPolicy) *policy {
	p := &policy{
		id: "knp/" + k.Namespace + "/" + k.Name, tier: api.TierDefault, order: 1000, passes: []pass{normal},
		tie: k.Name + "/" + k.Namespace + "/KubernetesNetworkPolicy",
		applies: func(t *thing) bool {
			return t.key.Kind == "WorkloadEndpoint" && pod(t, k.Namespace) && labelled(&k.Spec.PodSelector, t, "")
		},
	}
	types := k.Spec.PolicyTypes
	p.covers[Ingress] = len(types) == 0 || slices.Contains(types, api.Ingress)
	p.covers[Egress] = slices.Contains(types, api.Egress)
	for _, r := range k.Spec.Ingress {
		p.rules[Ingress] = append(p.rules[Ingress], c.kubernetesRule(k.Namespace, r.Ports, r.From, false)...)
	}
	for _, r := range k.Spec.Egress {
		p.rules[Egress] = append(p.rules[Egress], c.kubernetesRule(k.Namespace, r.Ports, r.To, true)...)
	}
	return p
}

// pod tells whether something is a pod, of a namespace unless that is "".
func pod(t *thing, namespace string) bool {
	return t.labels[labelOrchestrator] == "k8s" && (namespace == "" || t.labels[labelNamespace] == namespace)
}

// labelled tells whether a label selector selects something; prefix is before the labels that it means.
func labelled(s *metav1.LabelSelector, t *thing, prefix string) bool {
	if s == nil {
		return true
	}
	for k, want := range s.MatchLabels {
		if v, ok := t.labels[prefix+k]; !ok || v != want {
			return false
		}
	}
	for _, x := range s.MatchExpressions {
		v, ok := t.labels[prefix+x.Key]
		holds := map[metav1.LabelSelectorOperator]bool{
			metav1.LabelSelectorOpIn:           ok && slices.Contains(x.Values, v),
			metav1.LabelSelectorOpNotIn:        !ok || !slices.Contains(x.Values, v),
			metav1.LabelSelectorOpExists:       ok,
			metav1.LabelSelectorOpDoesNotExist: !ok,
		}[x.Operator]
		if !holds {
			return false
		}
	}
	return true
}

// kubernetesRule is one rule; one that makes no sense opens nothing.
func (c *Cluster) kubernetesRule(namespace string, ports []api.KubernetesPort, peers []api.KubernetesPeer, egress bool) []rule {
	for _, p := range ports {
		if checkPort(p) != nil {
			return nil
		}
	}
	for _, p := range peers {
		if p.IPBlock == nil {
			continue
		}
		for _, cidr := range append([]string{p.IPBlock.CIDR}, p.IPBlock.Except...) {
			if _, err := netip.ParsePrefix(cidr); err != nil {
				return nil
			}
		}
	}
	if len(peers) == 0 { // anyone, pod or not
		return []rule{{api.Allow, func(p Packet) bool {
			return c.kubernetesPorts(ports, p, func(*thing) bool { return true })
		}}}
	}
	var all []rule
	for _, peer := range peers {
		all = append(all, rule{api.Allow, func(p Packet) bool {
			address := p.Source
			if egress {
				address = p.Destination
			}
			is := func(t *thing) bool { return peerPod(&peer, namespace, t) }
			if peer.IPBlock != nil {
				in := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(address) }
				// Exceptions of another family than the block make the rule one of no family.
				sane := !slices.ContainsFunc(peer.IPBlock.Except, func(cidr string) bool {
					return netip.MustParsePrefix(cidr).Addr().Is6() != address.Is6()
				})
				if !in(peer.IPBlock.CIDR) || slices.ContainsFunc(peer.IPBlock.Except, in) || !sane {
					return false
				}
				is = func(*thing) bool { return true }
			} else if !c.any(address, is) {
				return false
			}
			if !egress { // ports are those of the selected pod
				is = func(*thing) bool { return true }
			}
			return c.kubernetesPorts(ports, p, is)
		}})
	}
	return all
}

// peerPod tells whether something is a pod that a peer means.
func peerPod(peer *api.KubernetesPeer, namespace string, t *thing) bool {
	if peer.NamespaceSelector != nil {
		return pod(t, "") && has(t.labels, labelNamespace) && labelled(peer.NamespaceSelector, t, ofNamespace) && labelled(peer.PodSelector, t, "")
	}
	return pod(t, namespace) && labelled(peer.PodSelector, t, "")
}

// kubernetesPorts tells whether the destination's port is in the list; whose names count is said by of.
func (c *Cluster) kubernetesPorts(ports []api.KubernetesPort, p Packet, of func(*thing) bool) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(want api.KubernetesPort) bool {
		protocol := uint8(TCP)
		if want.Protocol != nil {
			protocol = protocolNumber(*want.Protocol)
		}
		switch {
		case p.Protocol != protocol:
			return false
		case want.Port == nil:
			return true
		case want.Port.Type == intstr.String && !numeric(want.Port.StrVal):
			return c.any(p.Destination, func(t *thing) bool {
				return of(t) && t.port(want.Port.StrVal, Port{protocol, p.DestinationPort})
			})
		}
		first, last := int(want.Port.IntValue()), int(want.Port.IntValue())
		if want.EndPort != nil {
			last = int(*want.EndPort)
		}
		return first <= int(p.DestinationPort) && int(p.DestinationPort) <= last
	})
}

func numeric(s string) bool { _, err := strconv.Atoi(s); return err == nil }

func checkPort(p api.KubernetesPort) error {
	switch {
	case p.EndPort == nil && (p.Port == nil || p.Port.Type == intstr.String):
		return nil
	case p.Port == nil || p.Port.Type == intstr.String:
		return errors.New("endPort needs a number")
	}
	last := p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if p.Port.IntVal < 1 || last < p.Port.IntVal || last > 65535 {
		return errors.New("no range")
	}
	return nil
}
