package conf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/annotation"
)

// Pod is what one pod is to get, from all that a runtime says: its annotations, where the runtime hands them on, CNI_ARGS,
// "args", the capabilities' values, and what the network's configuration has for all.
type Pod struct {
	IPv4, IPv6           bool // families in which felix assigns an address
	IPv4Pools, IPv6Pools []string
	Fixed                []netip.Addr // assigned by felix instead, at most one of each family
	Unmanaged            []netip.Addr // used as they are: felix assigns none
	MAC                  string       // empty: any
	Floating             []netip.Addr // lead to the pod, at most one of each family
	AllowedSources       []netip.Prefix
	Limits               annotation.Limits
}

// Pod says what the pod of a call gets. What is closer to the pod beats what is further away: annotations, CNI_ARGS, "args",
// capabilities, the network. The error names who asks for what, and the remedy.
func (n *Network) Pod(args map[string]string) (Pod, error) {
	asked, err := annotation.Pod(n.RuntimeConfig.Annotations)
	if err != nil {
		return Pod{}, err
	}
	p := Pod{
		IPv4: n.Own() && n.IPv4(), IPv6: n.Own() && n.IPv6(), IPv4Pools: n.IPAM.IPv4Pools, IPv6Pools: n.IPAM.IPv6Pools,
		Floating: asked.Floating, AllowedSources: asked.AllowedSources, Limits: asked.Limits,
	}
	if err := n.allows(asked); err != nil {
		return Pod{}, err
	}
	if len(asked.Families) > 0 && n.Own() {
		p.IPv4, p.IPv6 = slices.Contains(asked.Families, "IPv4"), slices.Contains(asked.Families, "IPv6")
	}
	if len(asked.IPv4Pools) > 0 {
		p.IPv4Pools = asked.IPv4Pools
	}
	if len(asked.IPv6Pools) > 0 {
		p.IPv6Pools = asked.IPv6Pools
	}
	p.Unmanaged = asked.Unmanaged
	if len(p.Unmanaged) == 0 {
		if p.Fixed, err = n.fixed(asked, args); err != nil {
			return Pod{}, err
		}
	}
	if p.MAC, err = firstMAC([]source{
		{"annotation hwAddr", asked.MAC}, {"CNI_ARGS MAC", args["MAC"]}, {"args.cni.mac", n.Args.CNI.MAC}, {"runtimeConfig.mac", n.RuntimeConfig.MAC},
	}); err != nil {
		return Pod{}, err
	}
	if b := n.RuntimeConfig.Bandwidth; b != nil {
		if p.Limits.Ingress.Bandwidth == 0 {
			p.Limits.Ingress.Bandwidth, p.Limits.Ingress.Burst = b.IngressRate, b.IngressBurst
		}
		if p.Limits.Egress.Bandwidth == 0 {
			p.Limits.Egress.Bandwidth, p.Limits.Egress.Burst = b.EgressRate, b.EgressBurst
		}
	}
	return p, nil
}

// allows tells why the network does not give what annotations ask for.
func (n *Network) allows(asked annotation.Request) error {
	switch {
	case len(asked.Unmanaged) > 0 && !n.FeatureControl.IPAddrsNoIPAM:
		return fmt.Errorf("annotation cni.projectcalico.org/ipAddrsNoIpam is not allowed in network %s; set feature_control.ip_addrs_no_ipam in its configuration, or take the annotation away", n.Name)
	case len(asked.Floating) > 0 && !n.FeatureControl.FloatingIPs:
		return fmt.Errorf("annotation cni.projectcalico.org/floatingIPs is not allowed in network %s; set feature_control.floating_ips in its configuration, or take the annotation away", n.Name)
	case len(asked.Addresses) > 0 && !n.Own():
		return fmt.Errorf("annotation cni.projectcalico.org/ipAddrs needs IPAM of type %s, and network %s has %s; take the annotation away", OwnIPAM, n.Name, n.IPAM.Type)
	}
	return nil
}

// fixed are the addresses that are asked for by the source closest to the pod.
func (n *Network) fixed(asked annotation.Request, args map[string]string) ([]netip.Addr, error) {
	if len(asked.Addresses) > 0 {
		return asked.Addresses, nil
	}
	var one []string
	if ip := args["IP"]; ip != "" {
		one = []string{ip}
	}
	for _, from := range []struct {
		name string
		list []string
	}{{"CNI_ARGS IP", one}, {"args.cni.ips", n.Args.CNI.IPs}, {"runtimeConfig.ips", n.RuntimeConfig.IPs}} {
		if len(from.list) == 0 || !n.Own() { // another IPAM plugin reads them itself
			continue
		}
		var addrs []netip.Addr
		for _, text := range from.list {
			a, err := netip.ParseAddr(text)
			if p, notPrefix := netip.ParsePrefix(text); err != nil && notPrefix == nil {
				a, err = p.Addr(), nil
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %q is not an address; write it as 10.1.2.3", from.name, text)
			}
			addrs = append(addrs, a)
		}
		if !annotation.OneEach(addrs) {
			return nil, fmt.Errorf("%s: %v are not what a pod can have; give at most one IPv4 and one IPv6 address", from.name, addrs)
		}
		slices.SortFunc(addrs, netip.Addr.Compare)
		return addrs, nil
	}
	return nil, nil
}

type source struct{ name, text string }

func firstMAC(from []source) (string, error) {
	for _, s := range from {
		if s.text == "" {
			continue
		}
		mac, ok := annotation.MAC(s.text)
		if !ok {
			return "", fmt.Errorf("%s: %q is not the Ethernet address of one interface; write it as 02:00:5e:10:00:01", s.name, s.text)
		}
		return mac, nil
	}
	return "", nil
}
