package desired

import "net/netip"

// NeighborKey names a neighbour entry.
type NeighborKey struct {
	Link string
	Addr netip.Addr
}

// String is "10.1.2.3 dev vxlan.calico".
func (k NeighborKey) String() string { return k.Addr.String() + " dev " + k.Link }

// Neighbor is a permanent neighbour (ARP or NDP) entry: the address is reached at that Ethernet address.
type Neighbor struct {
	Link string
	Addr netip.Addr
	MAC  MAC
}

// Key is the entry's key.
func (n Neighbor) Key() NeighborKey { return NeighborKey{n.Link, n.Addr} }

// FDBKey names a forwarding entry of a VXLAN device.
type FDBKey struct {
	Link string
	MAC  MAC
}

// String is "66:12:34:56:78:9a dev vxlan.calico".
func (k FDBKey) String() string { return k.MAC.String() + " dev " + k.Link }

// FDB is a permanent forwarding entry of a VXLAN device ("bridge fdb … self permanent"): frames for MAC are sent to the
// tunnel end at Remote.
type FDB struct {
	Link   string
	MAC    MAC
	Remote netip.Addr
}

// Key is the entry's key.
func (f FDB) Key() FDBKey { return FDBKey{f.Link, f.MAC} }
