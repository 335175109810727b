package oracle

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// thing is whatever selectors select: an endpoint or a network set.
type thing struct {
	key      api.Key
	labels   map[string]string // its own and those of its profiles
	nets     []netip.Prefix
	ports    []namedPort
	profiles []string
	endpoint bool

	node, iface string // of a host endpoint
}

type namedPort struct {
	name string
	Port
}

// has tells whether an address belongs to it.
func (t *thing) has(a netip.Addr) bool {
	return slices.ContainsFunc(t.nets, func(n netip.Prefix) bool { return n.Contains(a) })
}

func (t *thing) port(name string, p Port) bool { return slices.Contains(t.ports, namedPort{name, p}) }

// things are all that have labels in a world.
func things(objects []api.Object) (all []*thing) {
	profiles := map[string]*api.Profile{}
	for _, o := range objects {
		if p, ok := o.(*api.Profile); ok {
			profiles[p.Name] = p
		}
	}
	// labelled adds the labels: those that say what it is win over its own, and those over its profiles', the first first.
	labelled := func(t *thing, own map[string]string, what map[string]string, parents []string) {
		t.labels = map[string]string{}
		for _, name := range slices.Backward(parents) {
			if p := profiles[name]; p != nil && name != api.ProfileDefaultAllow {
				maps.Copy(t.labels, p.Spec.LabelsToApply)
			}
		}
		for k, v := range own {
			// Who labels a pod does not choose the labels of its namespace or service account (spec §1.10).
			forged := what[labelNamespace] != "" && (strings.HasPrefix(k, ofNamespace) || strings.HasPrefix(k, ofServiceAccount))
			if !forged {
				t.labels[k] = v
			}
		}
		for k, v := range what {
			if v != "" {
				t.labels[k] = v
			}
		}
		all = append(all, t)
	}
	for _, o := range objects {
		t := &thing{key: api.KeyOf(o)}
		switch o := o.(type) {
		case *api.WorkloadEndpoint:
			t.endpoint, t.nets, t.profiles = true, nets(o.Spec.IPNetworks), o.Spec.Profiles
			for _, p := range o.Spec.Ports {
				t.ports = append(t.ports, namedPort{p.Name, Port{protocolNumber(p.Protocol), p.Port}})
			}
			labelled(t, o.Labels, map[string]string{
				labelNamespace: o.Namespace, labelOrchestrator: o.Spec.Orchestrator, labelServiceAccount: o.Spec.ServiceAccountName,
			}, o.Spec.Profiles)
		case *api.HostEndpoint:
			t.endpoint, t.nets, t.profiles = true, nets(o.Spec.ExpectedIPs), o.Spec.Profiles
			t.node, t.iface = o.Spec.Node, o.Spec.InterfaceName
			for _, p := range o.Spec.Ports {
				t.ports = append(t.ports, namedPort{p.Name, Port{protocolNumber(p.Protocol), p.Port}})
			}
			labelled(t, o.Labels, nil, o.Spec.Profiles)
		case *api.NetworkSet:
			t.nets = nets(o.Spec.Nets)
			labelled(t, o.Labels, map[string]string{labelNamespace: o.Namespace}, []string{"kns." + o.Namespace})
		case *api.GlobalNetworkSet:
			t.nets = nets(o.Spec.Nets)
			labelled(t, o.Labels, nil, nil)
		}
	}
	return all
}

// nets reads networks and single addresses.
func nets(texts []string) (out []netip.Prefix) {
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		} else if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

func protocolNumber(p api.Protocol) uint8 {
	n, _ := p.Number()
	return n
}
