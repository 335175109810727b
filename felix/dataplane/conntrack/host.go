package conntrack

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/internal/dump"
)

// HostAddresses are the addresses of the namespace's own interfaces: what has one of them as its source was sent by the host
// itself, and what has one as its destination after translation is for it.
func (t *Table) HostAddresses() ([]netip.Addr, error) {
	all, err := dump.Whole(func() ([]netlink.Addr, error) { return t.route.AddrList(nil, netlink.FAMILY_ALL) })
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

// ListeningPorts are the TCP ports at which something listens in the namespace, at whichever address. The kernel tells all its
// sockets, some microsecond each.
func (t *Table) ListeningPorts() (map[uint16]struct{}, error) {
	out := map[uint16]struct{}{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := t.route.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("read the host's sockets: %w", err)
		}
		for _, s := range sockets {
			if s.State == netlink.TCP_LISTEN {
				out[s.ID.SourcePort] = struct{}{}
			}
		}
	}
	return out, nil
}
