package link

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// gateways gives the host's side the addresses that are wanted, and takes others away: single addresses are the driver's there,
// subnets, such as that of the link-local address that the kernel makes, are not.
func (d *Driver) gateways(l netlink.Link, want desired.WorkloadLink) error {
	missing := slices.DeleteFunc([]netip.Addr{want.Gateway4, want.Gateway6}, func(a netip.Addr) bool { return !a.IsValid() })
	if has, known := d.addressed[want.Name]; known && !has && len(missing) == 0 {
		return nil
	}
	delete(d.addressed, want.Name) // until it is done
	has := len(missing) > 0
	all, err := d.list.addrs()
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, have := range all[l.Attrs().Index] {
		p := prefixOf(have.IPNet)
		if i := slices.Index(missing, p.Addr()); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if err := d.write(d.handle.AddrDel(l, &have)); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	for _, a := range missing {
		if err := d.write(d.handle.AddrAdd(l, gatewayAddress(a))); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	d.addressed[want.Name] = has
	return nil
}

// gatewayAddress is an address that the host answers to. In IPv6 it is a deprecated one, which the host does not choose as the source
// of what it sends to the pod; in IPv4 the pod's route names another.
func gatewayAddress(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is4() {
		out.Scope = unix.RT_SCOPE_LINK
	} else {
		out.Flags, out.ValidLft = unix.IFA_F_NODAD, math.MaxUint32
	}
	return out
}
