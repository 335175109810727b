package scale

import (
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// markerSet is the network set that all nodes look up.
const markerSet = "scale-marker"

func (w *World) setObjects(yield func(api.Object) bool) {
	if !yield(markerObject(0)) {
		return
	}
	for i := range w.shape.Sets {
		labels := map[string]string{"feed": feed(i)}
		var nets []string
		for j := range 5 + i*7%45 {
			nets = append(nets, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), byte(j)}), 32).String())
		}
		if i%2 == 0 {
			o := &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("feed-%04d", i), Labels: labels}}
			o.Spec.Nets = nets
			if !yield(o) {
				return
			}
			continue
		}
		o := &api.NetworkSet{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("feed-%04d", i), Namespace: w.namespaces[i%len(w.namespaces)].name, Labels: labels,
		}}
		o.Spec.Nets = nets
		if !yield(o) {
			return
		}
	}
}

func feed(i int) string { return fmt.Sprintf("feed-%d", i) }

// markerObject is the network set that tells a point of time to every node, see World.Marker.
func markerObject(n int) *api.GlobalNetworkSet {
	o := &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: markerSet, Labels: map[string]string{markerSet: "true"}}}
	o.Spec.Nets = []string{markerNet(n).String()}
	return o
}

// markerNet is in a range for benchmarks, RFC 2544.
func markerNet(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + n>>16&1), byte(n >> 8), byte(n)}), 32)
}

func (w *World) policyObjects(yield func(api.Object) bool) {
	for i := range w.shape.Policies {
		if !yield(w.policyObject(i)) {
			return
		}
	}
}

// policyObject is the i-th policy: cluster-wide ones first, then namespace by namespace.
func (w *World) policyObject(i int) api.Object {
	if i < w.global {
		o := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cluster-%03d", i)}}
		o.Spec.NetworkPolicySpec = w.clusterWide(i)
		o.Default()
		return o
	}
	at := 0
	for at+1 < len(w.namespaces) && w.namespaces[at+1].first <= i {
		at++
	}
	ns := w.namespaces[at]
	o := &api.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns.name, Name: fmt.Sprintf("policy-%d", i-ns.first)}}
	o.Spec = w.namespaced(at, i-ns.first, i)
	o.Default()
	return o
}

// port is the port of a policy's first rule: it changes whenever the policy does.
func (w *World) port(i int) []api.Port {
	return []api.Port{api.SinglePort(uint16(8000 + i%1000 + w.edits[i]%2*1000))}
}

func (w *World) clusterWide(i int) api.NetworkPolicySpec {
	tcp, udp, order := api.ProtocolTCP, api.ProtocolUDP, float64(i)
	spec := api.NetworkPolicySpec{Order: &order, Selector: "all()"}
	switch i {
	case 0:
		spec.Ingress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: "role == 'gateway'"}, Destination: api.EntityRule{Ports: w.port(i)}}}
	case 1:
		spec.Egress = []api.Rule{{Action: api.Allow, Protocol: &udp, Destination: api.EntityRule{Selector: "k8s-app == 'dns'", Ports: append(w.port(i), api.SinglePort(53))}}}
	case 2:
		spec.Ingress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: markerSet + " == 'true'"}, Destination: api.EntityRule{Ports: w.port(i)}}}
	default: // a team may reach what is in a feed
		spec.Selector = fmt.Sprintf("pcns.team == 'team-%d' && app == 'app-%d'", i%40, i%3)
		spec.Egress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Destination: api.EntityRule{Selector: fmt.Sprintf("feed == '%s'", feed(i*2%w.shape.Sets)), Ports: w.port(i)}}}
	}
	return spec
}

// namespaced is the k-th policy of a namespace, the i-th of all.
func (w *World) namespaced(at, k, i int) api.NetworkPolicySpec {
	tcp, order, ns := api.ProtocolTCP, float64(100+k), w.namespaces[at]
	ports := api.EntityRule{Ports: w.port(i)}
	spec := api.NetworkPolicySpec{Order: &order, Types: []api.PolicyType{api.Ingress}}
	app := func(j int) string { return fmt.Sprintf("app == 'app-%d'", j%ns.apps) }
	switch k {
	case 0: // one application is for another
		spec.Selector = app(0)
		spec.Ingress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: app(1)}, Destination: ports}}
	case 1: // within the namespace
		spec.Selector = "all()"
		spec.Ingress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: "all()"}, Destination: ports}}
	case 2: // the outside, by gateways only
		spec.Selector = app(1)
		spec.Ingress = []api.Rule{
			{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: "role == 'gateway'", NamespaceSelector: "all()"}, Destination: ports},
			{Action: api.Deny, Source: api.EntityRule{Nets: []string{"0.0.0.0/0"}, NotNets: []string{podRange.String()}}},
		}
	case 3: // a version is tried out
		spec.Selector = app(2) + " && version == 'v1'"
		spec.Ingress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: app(0) + " && version != 'v0'"}, Destination: ports}}
	default: // another namespace, and a feed
		peer := w.namespaces[w.peer(at)].name
		spec.Selector, spec.Types = app(0), []api.PolicyType{api.Ingress, api.Egress}
		spec.Ingress = []api.Rule{{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{
			Selector: "app == 'app-1'", NamespaceSelector: fmt.Sprintf("projectcalico.org/name == '%s'", peer),
		}, Destination: ports}}
		spec.Egress = []api.Rule{{Action: api.Allow, Destination: api.EntityRule{Selector: fmt.Sprintf("feed == '%s'", feed(i%w.shape.Sets)), NamespaceSelector: "all()"}}}
	}
	return spec
}

// peer is the namespace that a namespace lets in.
func (w *World) peer(at int) int { return (at*13 + 1) % len(w.namespaces) }
