package desired

import "net/netip"

// NeighborKey names a permanent neighbour (ARP or NDP) entry. What it says is the Ethernet address at which the address is
// reached.
type NeighborKey struct {
	Link string
	Addr netip.Addr
}

// String is "10.1.2.3 dev vxlan.calico".
func (k NeighborKey) String() string { return k.Addr.String() + " dev " + k.Link }

// FDBKey names a permanent forwarding entry of a VXLAN device ("bridge fdb … self permanent"). What it says is the tunnel end
// to which frames for MAC are sent.
type FDBKey struct {
	Link string
	MAC  MAC
}

// String is "66:12:34:56:78:9a dev vxlan.calico".
func (k FDBKey) String() string { return k.MAC.String() + " dev " + k.Link }
