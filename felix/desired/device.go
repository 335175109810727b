package desired

import "net/netip"

// Names and numbers of the tunnel devices (spec §4.3).
const (
	VXLANDevice4 = "vxlan.calico"
	VXLANDevice6 = "vxlan-v6.calico"
	IPIPDevice   = "tunl0"

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
}

// IPIP is the IP-in-IP device of the kernel module (tunl0), which is neither created nor deleted but configured.
type IPIP struct {
	Name    string
	MTU     int
	Address netip.Addr // the only address on the device, as /32; invalid: none is known yet
}
