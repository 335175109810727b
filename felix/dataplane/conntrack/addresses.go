package conntrack

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// HostAddresses are the addresses of the namespace's own interfaces: what has one of them as its source was sent by the host
// itself, and what has one as its destination after translation is for it.
func (t *Table) HostAddresses() ([]netip.Addr, error) {
	all, err := t.route.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("read the host's addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}
