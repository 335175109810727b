package render

import (
	"net/netip"

	"github.com/muslin-net/muslin/api"
)

// Modes of packets between nodes, in the words of the Tigera operator.
const (
	modeIPIP             = "IPIP"
	modeVXLAN            = "VXLAN"
	modeIPIPCrossSubnet  = "IPIPCrossSubnet"
	modeVXLANCrossSubnet = "VXLANCrossSubnet"
	modeNone             = "None"
)

// konvoy reads a ClusterConfiguration. Most of it is about other things than the network.
func konvoy(f field) (Values, error) {
	v := Defaults()
	network, err := f.at("spec", "kubernetes", "containerNetworking", "calico")
	if err != nil {
		return v, err
	}
	encapsulation, err := network.child("encapsulation")
	if err != nil {
		return v, err
	}
	if err := network.noneLike("encapsulation", "mtu"); err != nil {
		return v, err
	}
	mode, err := encapsulation.oneOf("ipip", "ipip", "vxlan")
	if err != nil {
		return v, err
	}
	if mode == "vxlan" { // as Konvoy has it: without BGP
		v = v.withoutBGP()
		v.IPv4Pool.setMode(modeVXLAN)
	}
	mtu, err := network.child("mtu")
	if err != nil {
		return v, err
	}
	if v.CNI.MTU, err = mtu.number(v.CNI.MTU, 0, maxMTU); err != nil {
		return v, err
	}
	subnet, err := f.at("spec", "kubernetes", "networking", "podSubnet")
	if err != nil || !subnet.there() {
		return v, err
	}
	cidr, err := subnet.cidr()
	if err == nil && !cidr.Addr().Is4() {
		err = subnet.wrong("%q is not a range of IPv4", cidr)
	}
	v.IPv4Pool.CIDR = cidr.String()
	return v, err
}

// maxMTU is the largest that an Ethernet device of Linux takes.
const maxMTU = 65535

// withoutBGP are the values of a cluster whose nodes speak no BGP.
func (v Values) withoutBGP() Values {
	v.Backend, v.ClusterType = api.BackendVXLAN, "k8s"
	return v
}

// setMode sets how the pool's packets travel between nodes. IP-in-IP is for IPv4 only, and the caller sees to that.
func (p *Pool) setMode(mode string) {
	if p.IPIP != "" {
		p.IPIP = api.IPIPNever
	}
	p.VXLAN = api.VXLANNever
	switch mode {
	case modeIPIP:
		p.IPIP = api.IPIPAlways
	case modeIPIPCrossSubnet:
		p.IPIP = api.IPIPCrossSubnet
	case modeVXLAN:
		p.VXLAN = api.VXLANAlways
	case modeVXLANCrossSubnet:
		p.VXLAN = api.VXLANCrossSubnet
	}
}

// cidr is the field's range of addresses.
func (f field) cidr() (netip.Prefix, error) {
	text, err := f.text("")
	if err != nil {
		return netip.Prefix{}, err
	}
	cidr, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return cidr, f.wrong("%q is not a range of addresses; write it as 192.168.0.0/16 or fd00::/48", text)
	case cidr != cidr.Masked():
		return cidr, f.wrong("%q has bits beyond its length; write %s", text, cidr.Masked())
	}
	return cidr, nil
}
