package compute

import (
	"net/netip"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// oracleRange is an entry of the lists of service addresses.
func oracleRange(text string) (netip.Prefix, bool) {
	if text == "" {
		return netip.Prefix{}, false
	}
	if !strings.Contains(text, "/") {
		a := netip.MustParseAddr(text)
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.MustParsePrefix(text), true
}

// oracleOriginations asks of each node and each address whether the node announces it, row by row of the rules.
func oracleOriginations(w *world, out map[views.Scope]oracleView) {
	var spec api.BGPConfigurationSpec
	if c, ok := w.objects[api.Key{Kind: "BGPConfiguration", Name: "default"}].(*api.BGPConfiguration); ok {
		spec = c.Spec
	}
	separate := spec.ServiceLoadBalancerAggregation != nil && *spec.ServiceLoadBalancerAggregation == "Disabled"
	for _, n := range of[*api.Node](w) {
		if n.Labels["node.kubernetes.io/exclude-from-external-load-balancers"] == "true" {
			continue
		}
		v := out[bgpView(n.Name)]
		for name, s := range w.services {
			for _, p := range oracleService(w, spec, separate, n, name, s) {
				v.add(view.Origination{Prefix: p, Host: true})
			}
		}
		for i, list := range [][]api.ServiceIPBlock{spec.ServiceClusterIPs, spec.ServiceExternalIPs, spec.ServiceLoadBalancerIPs} {
			for _, b := range list {
				p, ok := oracleRange(b.CIDR)
				if ok && (i == 0 || p.Bits() < p.Addr().BitLen() && (i == 1 || !separate)) {
					v.add(view.Origination{Prefix: p})
				}
			}
		}
	}
}

func oracleService(w *world, spec api.BGPConfigurationSpec, separate bool, n *api.Node, name string, s *Service) (out []netip.Prefix) {
	if s.Type == "ExternalName" || len(s.ClusterIPs) == 0 {
		return nil
	}
	kube := n.Name
	if r := n.Spec.OrchRefs; len(r) > 0 && r[0].Orchestrator == "k8s" {
		kube = r[0].NodeName
	}
	slices, local, anywhere := false, map[bool]bool{}, map[bool]bool{}
	for _, slice := range w.slices {
		if slice.Service != name {
			continue
		}
		slices = true
		for _, ep := range slice.Endpoints {
			if ep.Ready {
				anywhere[ep.Addresses[0].Is4()] = true
				if ep.Node == kube {
					local[ep.Addresses[0].Is4()] = true
				}
			}
		}
	}
	single := false
	var allowed []netip.Addr
	for i, list := range [][]api.ServiceIPBlock{spec.ServiceClusterIPs, spec.ServiceExternalIPs, spec.ServiceLoadBalancerIPs} {
		for _, a := range [][]netip.Addr{s.ClusterIPs, s.ExternalIPs, s.LoadBalancerIPs}[i] {
			for _, b := range list {
				if p, ok := oracleRange(b.CIDR); ok && p.Contains(a) {
					allowed = append(allowed, a)
					single = single || i > 0 && p.Bits() == a.BitLen()
				}
			}
		}
	}
	for _, a := range allowed {
		announce := false
		switch {
		case s.External == "Local":
			announce = local[a.Is4()]
		case s.External == "Cluster" && single && slices:
			announce = true
		case separate:
			announce = anywhere[a.Is4()]
		}
		if announce {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// oracleSecrets asks of each node and each password whether the node has a session with it.
func oracleSecrets(w *world, out map[views.Scope]oracleView) {
	var spec api.BGPConfigurationSpec
	if c, ok := w.objects[api.Key{Kind: "BGPConfiguration", Name: "default"}].(*api.BGPConfiguration); ok {
		spec = c.Spec
	}
	as := api.ASNumber(64512)
	if spec.ASNumber != nil {
		as = *spec.ASNumber
	}
	use := func(n *api.Node, p *api.BGPPassword) {
		if p == nil || p.SecretKeyRef.Name == "" || n.Spec.BGP == nil {
			return
		}
		if value, ok := w.values[SecretRef{p.SecretKeyRef.Name, p.SecretKeyRef.Key}]; ok {
			out[bgpView(n.Name)].add(view.Secret{Name: "kube-system/" + p.SecretKeyRef.Name + "/" + p.SecretKeyRef.Key, Value: value})
		}
	}
	nodes := of[*api.Node](w)
	for _, n := range nodes {
		if spec.NodeToNodeMeshEnabled != nil && !*spec.NodeToNodeMeshEnabled {
			break
		}
		auto := spec.RouteReflectors != nil && spec.RouteReflectors.Mode == "Auto"
		if n.Spec.BGP != nil && (n.Spec.BGP.RouteReflectorClusterID != "1.0.0.1" || auto) {
			use(n, spec.NodeMeshPassword)
		}
	}
	near := func(p *api.BGPPeer, n *api.Node) bool {
		if n.Spec.BGP == nil {
			return false
		}
		if p.Spec.NodeSelector != "" {
			s, err := selector.Parse(p.Spec.NodeSelector)
			return err == nil && s.Matches(n.Labels)
		}
		return p.Spec.Node == "" || p.Spec.Node == n.Name
	}
	far := func(p *api.BGPPeer, n *api.Node) bool {
		if n.Spec.BGP == nil {
			return false
		}
		if p.Spec.PeerSelector != "" {
			s, err := selector.Parse(p.Spec.PeerSelector)
			return err == nil && s.Matches(n.Labels)
		}
		mine := as
		if n.Spec.BGP.ASNumber != nil {
			mine = *n.Spec.BGP.ASNumber
		}
		wanted := as
		if p.Spec.ASNumber != 0 {
			wanted = p.Spec.ASNumber
		}
		port := "179"
		if spec.ListenPort != 0 {
			port = "1179"
		}
		if c, ok := w.objects[api.Key{Kind: "BGPConfiguration", Name: "node." + n.Name}].(*api.BGPConfiguration); ok && c.Spec.ListenPort != 0 {
			port = "1179"
		}
		ip, _, _ := strings.Cut(n.Spec.BGP.IPv4Address, "/")
		return mine == wanted && (p.Spec.PeerIP == ip || p.Spec.PeerIP == ip+":"+port)
	}
	for _, p := range of[*api.BGPPeer](w) {
		if p.Spec.LocalWorkloadSelector != "" {
			continue
		}
		for _, n := range nodes {
			if near(p, n) {
				use(n, p.Spec.Password)
			}
			for _, other := range nodes {
				if other != n && near(p, other) && far(p, n) && (p.Spec.ReversePeering == nil || *p.Spec.ReversePeering == "Auto") {
					use(n, p.Spec.Password)
				}
			}
		}
	}
}

// oraclePeerings asks of each BGPPeer whether it selects a pod.
func oraclePeerings(w *world, out map[views.Scope]oracleView, t thing, node string, item *view.WorkloadEndpoint) {
	var names []string
	for _, name := range []string{"peer", "peer2", "peer3"} {
		p, ok := w.objects[api.Key{Kind: "BGPPeer", Name: name}].(*api.BGPPeer)
		if !ok || p.Spec.LocalWorkloadSelector == "" {
			continue
		}
		if s, err := selector.Parse(p.Spec.LocalWorkloadSelector); err == nil && s.Matches(t.labels) {
			names = append(names, name)
		}
	}
	if names == nil {
		return
	}
	out[bgpView(node)].add(view.WorkloadEndpoint{ID: item.ID, Addresses: item.Addresses, Peering: &view.Peering{BGPPeers: names}})
	item.Peering = &view.Peering{BGPPeers: names, Port: 179}
	for _, name := range []string{"default", "node." + node} {
		c, ok := w.objects[api.Key{Kind: "BGPConfiguration", Name: name}].(*api.BGPConfiguration)
		if !ok {
			continue
		}
		if c.Spec.ListenPort != 0 {
			item.Peering.Port = c.Spec.ListenPort
		}
		for _, text := range []string{c.Spec.LocalWorkloadPeeringIPV4, c.Spec.LocalWorkloadPeeringIPV6} {
			if a, err := netip.ParseAddr(text); err == nil && name == "default" {
				item.Peering.Gateways = append(item.Peering.Gateways, a)
			}
		}
	}
}
