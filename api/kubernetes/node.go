package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// Annotations of nodes.
const (
	ownDomain           = "projectcalico.org/"
	nodeIPv4            = ownDomain + "IPv4Address"
	nodeIPv6            = ownDomain + "IPv6Address"
	nodeIPIP            = ownDomain + "IPv4IPIPTunnelAddr"
	nodeVXLAN           = ownDomain + "IPv4VXLANTunnelAddr"
	nodeVXLANv6         = ownDomain + "IPv6VXLANTunnelAddr"
	nodeVXLANMAC        = ownDomain + "VXLANTunnelMACAddr"
	nodeVXLANMACv6      = ownDomain + "VXLANTunnelMACAddrV6"
	nodeASNumber        = ownDomain + "ASNumber"
	nodeClusterID       = ownDomain + "RouteReflectorClusterID"
	nodeWireguard       = ownDomain + "IPv4WireguardInterfaceAddr"
	nodeWireguardv6     = ownDomain + "IPv6WireguardInterfaceAddr"
	nodeWireguardKey    = ownDomain + "WireguardPublicKey"
	nodeWireguardKeyv6  = ownDomain + "WireguardPublicKeyV6"
	nodeInterfaces      = ownDomain + "Interfaces"
	nodeLabels          = ownDomain + "labels"
	nodeAnnotations     = ownDomain + "annotations"
	nodeKubeLabels      = ownDomain + "kube-labels" // on our objects alone
	nodeConditions      = "muslin.net/conditions"   // additions to Calico's
	nodeKernel          = "muslin.net/kernel"
	orchestratorOfNodes = "k8s"
)

// Node is a node of Kubernetes as one of ours (spec §1.10): what Kubernetes has no place for is in annotations. The error says
// which of them make no sense; they are ignored. With usePodCIDR addresses are given to pods from the node's range, and those
// of tunnels are the first one of it.
//
// Labels are the node's own, over those that were set through our API. The annotations are those that were set through our
// API, and one that has the node's own labels, so that they are not written back as ours.
func Node(k *corev1.Node, usePodCIDR bool) (*api.Node, error) {
	n := &api.Node{
		TypeMeta: typeMeta("Node"),
		ObjectMeta: metav1.ObjectMeta{
			Name: k.Name, UID: ReversedUID(k.UID), ResourceVersion: k.ResourceVersion, CreationTimestamp: k.CreationTimestamp,
		},
	}
	r := &annotations{of: k.Annotations}
	readBGP(r, n)
	n.Spec.IPv4VXLANTunnelAddr = r.address(nodeVXLAN, false)
	n.Spec.IPv6VXLANTunnelAddr = r.address(nodeVXLANv6, true)
	n.Spec.VXLANTunnelMACAddr = r.of[nodeVXLANMAC]
	n.Spec.VXLANTunnelMACAddrV6 = r.of[nodeVXLANMACv6]
	n.Spec.OrchRefs = []api.OrchRef{{NodeName: k.Name, Orchestrator: orchestratorOfNodes}}
	n.Status.WireguardPublicKey, n.Status.WireguardPublicKeyV6 = r.of[nodeWireguardKey], r.of[nodeWireguardKeyv6]
	if w := (api.NodeWireguardSpec{InterfaceIPv4Address: r.address(nodeWireguard, false), InterfaceIPv6Address: r.address(nodeWireguardv6, true)}); w != (api.NodeWireguardSpec{}) {
		n.Spec.Wireguard = &w
	}
	r.json(nodeInterfaces, &n.Spec.Interfaces)
	r.json(nodeConditions, &n.Status.Conditions)
	r.json(nodeKernel, &n.Status.Kernel)
	n.Status.PodCIDRs = slices.Clone(k.Spec.PodCIDRs)
	if len(n.Status.PodCIDRs) == 0 && k.Spec.PodCIDR != "" {
		n.Status.PodCIDRs = []string{k.Spec.PodCIDR}
	}
	if usePodCIDR {
		tunnelsFromPodCIDR(n)
	}
	n.Spec.Addresses = addressesOf(n, k)
	readMaps(r, n, k.Labels)
	return n, errors.Join(r.wrong...)
}

func readBGP(r *annotations, n *api.Node) {
	b := &api.NodeBGPSpec{
		IPv4Address:             r.network(nodeIPv4, false),
		IPv6Address:             r.network(nodeIPv6, true),
		IPv4IPIPTunnelAddr:      r.address(nodeIPIP, false),
		RouteReflectorClusterID: r.address(nodeClusterID, false),
	}
	if text := r.of[nodeASNumber]; text != "" {
		if as, err := api.ParseASNumber(text); err != nil {
			r.bad(nodeASNumber, "is no AS number; write 65001 or 1.1")
		} else {
			b.ASNumber = &as
		}
	}
	if *b != (api.NodeBGPSpec{}) {
		n.Spec.BGP = b
	}
}

// tunnelsFromPodCIDR makes the addresses of tunnels the first one after that of the node's range.
func tunnelsFromPodCIDR(n *api.Node) {
	for _, text := range n.Status.PodCIDRs {
		cidr, err := netip.ParsePrefix(text)
		if err != nil || !cidr.Addr().Is4() {
			continue
		}
		first := cidr.Masked().Addr().Next().String()
		if n.Spec.BGP == nil {
			n.Spec.BGP = &api.NodeBGPSpec{}
		}
		n.Spec.BGP.IPv4IPIPTunnelAddr = first
		if n.Status.WireguardPublicKey != "" {
			if n.Spec.Wireguard == nil {
				n.Spec.Wireguard = &api.NodeWireguardSpec{}
			}
			n.Spec.Wireguard.InterfaceIPv4Address = first
		}
		return
	}
}

// addressesOf are all addresses by which a node is known.
func addressesOf(n *api.Node, k *corev1.Node) (all []api.NodeAddress) {
	if b := n.Spec.BGP; b != nil {
		for _, a := range []string{b.IPv4Address, b.IPv6Address} {
			if a != "" {
				all = append(all, api.NodeAddress{Address: a, Type: api.AddressCalicoNode})
			}
		}
	}
	for _, a := range k.Status.Addresses {
		switch a.Type {
		case corev1.NodeInternalIP, corev1.NodeExternalIP:
			all = append(all, api.NodeAddress{Address: a.Address, Type: api.NodeAddressType(a.Type)})
		}
	}
	return all
}

// readMaps reads labels and annotations.
func readMaps(r *annotations, n *api.Node, own map[string]string) {
	r.json(nodeAnnotations, &n.Annotations)
	r.json(nodeLabels, &n.Labels)
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	maps.Copy(n.Labels, own)
	if len(own) > 0 {
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[nodeKubeLabels] = asJSON(own)
	}
}

// NodeAnnotations are the annotations that say what a node of ours says beyond what Kubernetes does; those that have to go are
// empty. own are the labels that the node has in Kubernetes, which are not ours to write.
func NodeAnnotations(n *api.Node, own map[string]string) map[string]string {
	b, w := n.Spec.BGP, n.Spec.Wireguard
	if b == nil {
		b = &api.NodeBGPSpec{}
	}
	if w == nil {
		w = &api.NodeWireguardSpec{}
	}
	out := map[string]string{
		nodeIPv4: b.IPv4Address, nodeIPv6: b.IPv6Address, nodeIPIP: b.IPv4IPIPTunnelAddr, nodeClusterID: b.RouteReflectorClusterID,
		nodeASNumber: "",
		nodeVXLAN:    n.Spec.IPv4VXLANTunnelAddr, nodeVXLANv6: n.Spec.IPv6VXLANTunnelAddr,
		nodeVXLANMAC: n.Spec.VXLANTunnelMACAddr, nodeVXLANMACv6: n.Spec.VXLANTunnelMACAddrV6,
		nodeWireguard: w.InterfaceIPv4Address, nodeWireguardv6: w.InterfaceIPv6Address,
		nodeWireguardKey: n.Status.WireguardPublicKey, nodeWireguardKeyv6: n.Status.WireguardPublicKeyV6,
		nodeInterfaces: "", nodeConditions: "", nodeKernel: "", nodeLabels: "", nodeAnnotations: "",
	}
	if b.ASNumber != nil {
		out[nodeASNumber] = b.ASNumber.String()
	}
	if len(n.Spec.Interfaces) > 0 {
		out[nodeInterfaces] = asJSON(n.Spec.Interfaces)
	}
	if len(n.Status.Conditions) > 0 {
		out[nodeConditions] = asJSON(n.Status.Conditions)
	}
	if n.Status.Kernel != nil {
		out[nodeKernel] = asJSON(n.Status.Kernel)
	}
	labels := maps.Clone(n.Labels)
	inherited := map[string]string{}
	_ = json.Unmarshal([]byte(n.Annotations[nodeKubeLabels]), &inherited) // without it the node's own say it
	maps.DeleteFunc(labels, func(k, v string) bool {
		was, then := inherited[k]
		is, now := own[k]
		return then && was == v || now && is == v
	})
	if len(labels) > 0 {
		out[nodeLabels] = asJSON(labels)
	}
	set := maps.Clone(n.Annotations)
	delete(set, nodeKubeLabels)
	if len(set) > 0 {
		out[nodeAnnotations] = asJSON(set)
	}
	return out
}

func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("%T is always JSON: %v", v, err))
	}
	return string(text)
}
