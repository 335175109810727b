package desired

import (
	"fmt"
	"net/netip"
)

// Names and numbers of the tunnel devices (spec §4.3).
const (
	VXLANDevice4 = "vxlan.calico"
	VXLANDevice6 = "vxlan-v6.calico"
	IPIPDevice   = "tunl0"

	// Loopback is where a node may have its address that is reached by several uplinks.
	Loopback = "lo"

	// IPVSDevice is where kube-proxy puts the addresses of services in its mode IPVS.
	IPVSDevice = "kube-ipvs0"

	DefaultVXLANVNI  = 4096
	DefaultVXLANPort = 4789
)

// VXLAN is a VXLAN device. Learning is always off: felix writes the forwarding entries. A device of that name with
// another VNI, port, local address, parent or MAC is replaced, since the kernel cannot change these in place.
type VXLAN struct {
	Name    string
	VNI     int
	Port    uint16     // UDP destination
	Local   netip.Addr // outer source: the node's address
	Parent  string     // device that bears Local
	MAC     MAC
	MTU     int
	Address netip.Addr // the only address on the device, as /32 or /128; invalid: none is known yet
	Offload Offload
}

// Offload says whether a device may leave the checksums of what it sends to the device below. Some kernels get them wrong
// then: pings pass, TCP stalls.
type Offload uint8

// The choices.
const (
	OffloadAuto Offload = iota // as the driver finds right by sending a packet
	OffloadOn
	OffloadOff
)

// IPIP is the IP-in-IP device, tunl0. Blocks of other nodes are routed through it by the other node's address, which is
// on the link by decree.
type IPIP struct {
	Name    string
	Local   netip.Addr // outer source: the node's address
	Parent  string     // device that bears Local; it may be the loopback
	Uplinks string     // devices by which packets to other nodes leave, by names with spaces between; empty: not known
	MTU     int
	Address netip.Addr // the only address on the device, as /32; invalid: none is known yet
}

// Encap says which node the packets to a destination are for. The kernel's tunl0 learns it from the next hop of the
// route; the BPF program has no sight of that, and looks it up by the longest prefix. Key is the destination.
type Encap struct {
	Remote netip.Addr // outer destination: the other node's address
}

// Decap is a node, by its address, whose IP-in-IP packets are taken.
type Decap struct {
	// Out is the index of the interface by which packets to the node leave: the BPF program has no sight of routes to nodes, either.
	// 0: of the device's parent.
	Out int
}

// String is for people.
func (d Decap) String() string {
	if d.Out == 0 {
		return "accept"
	}
	return fmt.Sprintf("accept; send by interface %d", d.Out)
}
