package server

import (
	"crypto/rand"
	"net/netip"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// override lets what typha says that a pod asks for beat what the CNI call says: the call knows the network, typha the pod. What
// the network does not allow is refused, in the words of the CNI plugin, which refuses it where the runtime tells of annotations.
func override(cfg *felixv1.NetworkConfig, asked *view.AddressRequest) error {
	if cfg == nil || asked == nil {
		return nil
	}
	if why := forbids(cfg, asked); why != "" {
		return status.Error(codes.InvalidArgument, why)
	}
	if len(asked.Families) > 0 && len(cfg.GetAddresses()) == 0 {
		cfg.AssignIpv4, cfg.AssignIpv6 = slices.Contains(asked.Families, 4), slices.Contains(asked.Families, 6)
	}
	if len(asked.Unmanaged) > 0 {
		cfg.Addresses = bytesOf(asked.Unmanaged)
	}
	if len(asked.Pools4) > 0 {
		cfg.Ipv4Pools = asked.Pools4
	}
	if len(asked.Pools6) > 0 {
		cfg.Ipv6Pools = asked.Pools6
	}
	if len(asked.Fixed) > 0 {
		cfg.Fixed = bytesOf(asked.Fixed)
	}
	if len(asked.Floating) > 0 {
		cfg.Floating = bytesOf(asked.Floating)
	}
	if asked.MAC != "" {
		cfg.Mac = asked.MAC
	}
	return nil
}

// forbids says why a pod cannot have what it asks for; empty if it can.
func forbids(cfg *felixv1.NetworkConfig, asked *view.AddressRequest) string {
	switch {
	case asked.Wrong != "":
		return asked.Wrong
	case len(asked.Unmanaged) > 0 && !cfg.GetIpAddrsNoIpam():
		return "annotation cni.projectcalico.org/ipAddrsNoIpam is not allowed in this network; set feature_control.ip_addrs_no_ipam in its configuration, or take the annotation away"
	case len(asked.Floating) > 0 && !cfg.GetFloatingIps():
		return "annotation cni.projectcalico.org/floatingIPs is not allowed in this network; set feature_control.floating_ips in its configuration, or take the annotation away"
	case len(asked.Fixed) > 0 && len(cfg.GetAddresses()) > 0:
		return "annotation cni.projectcalico.org/ipAddrs needs IPAM of type calico-ipam, and this network has another; take the annotation away"
	}
	return ""
}

// wants are the requests for addresses that a configuration makes: one for each fixed address, or one for all families.
func wants(e state.Endpoint, cfg *felixv1.NetworkConfig) ([]Want, error) {
	w := Want{
		Handle: e.Handle(), Attributes: owner(e), Namespace: e.Namespace,
		IPv4: cfg.GetAssignIpv4(), IPv6: cfg.GetAssignIpv6(), Pools4: cfg.GetIpv4Pools(), Pools6: cfg.GetIpv6Pools(),
	}
	fixed, err := addressesOf(cfg.GetFixed())
	switch {
	case err != nil:
		return nil, err
	case len(fixed) == 0 && !w.IPv4 && !w.IPv6:
		return nil, status.Error(codes.InvalidArgument, "network configuration asks for neither IPv4 nor IPv6; set ipam.assign_ipv4 or ipam.assign_ipv6 to \"true\"")
	case len(fixed) == 0:
		return []Want{w}, nil
	}
	var out []Want
	for _, a := range fixed {
		w.Fixed = a
		out = append(out, w)
	}
	return out, nil
}

func addressesOf(in [][]byte) (out []netip.Addr, err error) {
	for _, b := range in {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, status.Errorf(codes.InvalidArgument, "an address of %d bytes was given", len(b))
		}
		out = append(out, a)
	}
	return out, nil
}

func prefixes(what string, in []string) (out []netip.Prefix, err error) {
	for _, text := range in {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "%s %q is not a CIDR such as 10.1.0.0/16", what, text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// macOf is the address that was asked for, or a random one: chosen here and not by the kernel, so that the endpoint is known
// whole before anything of it is made.
func macOf(asked string) (string, error) {
	if asked != "" {
		mac, err := desired.ParseMAC(asked)
		if err != nil {
			return "", status.Error(codes.InvalidArgument, err.Error())
		}
		return mac.String(), nil
	}
	var mac desired.MAC
	_, _ = rand.Read(mac[:]) // never fails
	mac[0] = mac[0]&^1 | 2   // of one interface, and of nobody's making
	return mac.String(), nil
}

// qosOf are the limits of a configuration, nil if there are none.
func qosOf(cfg *felixv1.NetworkConfig) *view.QoS {
	in, out := cfg.GetIngress(), cfg.GetEgress()
	q := view.QoS{
		IngressBandwidth: in.GetBandwidth(), IngressBurst: in.GetBurst(), IngressPeakrate: in.GetPeakrate(), IngressMinburst: in.GetMinburst(),
		IngressPacketRate: in.GetPacketRate(), IngressPacketBurst: in.GetPacketBurst(), IngressMaxConnections: in.GetMaxConnections(),
		EgressBandwidth: out.GetBandwidth(), EgressBurst: out.GetBurst(), EgressPeakrate: out.GetPeakrate(), EgressMinburst: out.GetMinburst(),
		EgressPacketRate: out.GetPacketRate(), EgressPacketBurst: out.GetPacketBurst(), EgressMaxConnections: out.GetMaxConnections(),
	}
	if q == (view.QoS{}) {
		return nil
	}
	return &q
}
