// Package auto decides which host endpoints nodes get by themselves. It is pure.
package auto

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
)

// Host endpoints that are made here have the label LabelCreatedBy with the value CreatedBy; no others are ever touched.
const (
	LabelCreatedBy = "projectcalico.org/created-by"
	CreatedBy      = "calico-kube-controllers"
)

// Owned tells whether a host endpoint was made here.
func Owned(e *api.HostEndpoint) bool { return e.Labels[LabelCreatedBy] == CreatedBy }

// Endpoints are the host endpoints of all nodes. The error says which templates make no sense; they make nothing.
func Endpoints(nodes []*api.Node, config *api.AutoHostEndpointConfig) (list []*api.HostEndpoint, wrong []error) {
	if config == nil || config.AutoCreate != api.Enabled {
		return nil, nil
	}
	if config.CreateDefaultHostEndpoint != api.Disabled {
		for _, n := range nodes {
			list = append(list, endpoint(n, "", "", api.HostEndpointTemplate{}, "*", addresses(n)))
		}
	}
	for i, template := range config.Templates {
		t, err := read(template)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("controllers.node.hostEndpoint.templates[%d]: %w", i, err))
			continue
		}
		for _, n := range nodes {
			if t.nodes == nil || t.nodes.Matches(n.Labels) {
				list = append(list, t.endpoints(n)...)
			}
		}
	}
	slices.SortFunc(list, func(a, b *api.HostEndpoint) int { return strings.Compare(a.Name, b.Name) })
	return list, wrong
}

// template is a HostEndpointTemplate, read.
type template struct {
	api.HostEndpointTemplate
	nodes  *selector.Selector // nil: all
	ifaces *regexp.Regexp     // nil: no endpoint of an interface
	cidrs  []netip.Prefix     // none: all addresses
}

func read(from api.HostEndpointTemplate) (template, error) {
	t := template{HostEndpointTemplate: from}
	var err error
	if from.NodeSelector != "" {
		if t.nodes, err = selector.Parse(from.NodeSelector); err != nil {
			return t, fmt.Errorf("nodeSelector: %w", err)
		}
	}
	if from.InterfacePattern != "" {
		if t.ifaces, err = regexp.Compile(from.InterfacePattern); err != nil {
			return t, fmt.Errorf("interfacePattern: %w", err)
		}
	}
	for _, text := range from.InterfaceCIDRs {
		p, err := netip.ParsePrefix(text)
		if a, single := netip.ParseAddr(text); single == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return t, fmt.Errorf("interfaceCIDRs: %w", err)
		}
		t.cidrs = append(t.cidrs, p.Masked())
	}
	return t, nil
}

// endpoints are what a template makes of a node: one for each interface that the pattern matches; without a pattern one for
// the interface that has the addresses inside the CIDRs; without either one for all interfaces.
func (t template) endpoints(n *api.Node) (list []*api.HostEndpoint) {
	switch {
	case t.ifaces != nil:
		for _, i := range n.Spec.Interfaces {
			if !t.ifaces.MatchString(i.Name) {
				continue
			}
			inside := t.inside(unique(i.Addresses))
			if len(t.cidrs) > 0 && len(inside) == 0 {
				continue
			}
			list = append(list, endpoint(n, t.GenerateName, i.Name, t.HostEndpointTemplate, i.Name, inside))
		}
	case len(t.cidrs) > 0:
		if inside := t.inside(addresses(n)); len(inside) > 0 {
			list = append(list, endpoint(n, t.GenerateName, "", t.HostEndpointTemplate, "", inside))
		}
	default:
		list = append(list, endpoint(n, t.GenerateName, "", t.HostEndpointTemplate, "*", addresses(n)))
	}
	return list
}

func (t template) inside(addresses []string) []string {
	if len(t.cidrs) == 0 {
		return addresses
	}
	return slices.DeleteFunc(slices.Clone(addresses), func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err != nil || !slices.ContainsFunc(t.cidrs, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

func endpoint(n *api.Node, generateName, iface string, t api.HostEndpointTemplate, interfaceName string, expected []string) *api.HostEndpoint {
	e := &api.HostEndpoint{Spec: api.HostEndpointSpec{
		Node: n.Name, InterfaceName: interfaceName, ExpectedIPs: expected, Profiles: []string{api.ProfileDefaultAllow},
	}}
	e.Name = name(n.Name, generateName, iface)
	e.Labels = map[string]string{}
	maps.Copy(e.Labels, n.Labels)
	maps.Copy(e.Labels, t.Labels)
	e.Labels[LabelCreatedBy] = CreatedBy
	e.Annotations = maps.Clone(t.Annotations)
	return e
}

const (
	suffix      = "auto-hep"
	longestName = 253
	hashLength  = 11
)

// unfit is what names of interfaces have that names of objects may not.
var unfit = regexp.MustCompile(`[^a-z0-9.-]+`)

// name is the name of an endpoint: <node>-[<generateName>-][<iface>-]auto-hep. One that is too long, or has
// letters that names cannot have, gets a hash in their place.
func name(node, generateName, iface string) string {
	parts := []string{node}
	for _, p := range []string{generateName, iface} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	whole := strings.Join(append(parts, suffix), "-")
	fit := unfit.ReplaceAllString(strings.ToLower(whole), "-")
	if fit == whole && len(whole) <= longestName {
		return whole
	}
	sum := sha256.Sum256([]byte(whole))
	tail := "-" + hex.EncodeToString(sum[:])[:hashLength] + "-" + suffix
	head := strings.TrimSuffix(fit, "-"+suffix)
	head = head[:min(len(head), longestName-len(tail))]
	return strings.TrimRight(head, "-.") + tail
}

// addresses are all addresses by which a node may be reached: those of BGP, of its tunnels, and of its interfaces.
func addresses(n *api.Node) []string {
	var list []string
	if b := n.Spec.BGP; b != nil {
		list = append(list, b.IPv4Address, b.IPv6Address, b.IPv4IPIPTunnelAddr)
	}
	list = append(list, n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr)
	if w := n.Spec.Wireguard; w != nil {
		list = append(list, w.InterfaceIPv4Address, w.InterfaceIPv6Address)
	}
	for _, a := range n.Spec.Addresses {
		if a.Type == api.AddressInternal {
			list = append(list, a.Address)
		}
	}
	for _, i := range n.Spec.Interfaces {
		list = append(list, i.Addresses...)
	}
	return unique(list)
}

// unique reads addresses, given with or without a prefix length, each once, in their order. What is no address is left out.
func unique(list []string) (out []string) {
	for _, text := range list {
		text, _, _ = strings.Cut(text, "/")
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, a.String()) {
			out = append(out, a.String())
		}
	}
	return out
}
