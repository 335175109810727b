package link

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/dump"
)

// Check compares the pair with what Wire makes, and names the first difference.
func (d *Driver) Check(_ context.Context, p Pod) error {
	ns, in, err := openPod(p.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	defer in.Close()
	outside, err := d.handle.LinkByName(p.Host)
	if err != nil {
		return fmt.Errorf("host side %s: %w", p.Host, err)
	}
	inside, err := in.LinkByName(p.Interface)
	switch {
	case err != nil:
		return fmt.Errorf("interface %s in the pod: %w", p.Interface, err)
	case !peers(inside, outside):
		return fmt.Errorf("interface %s in the pod is not the other end of %s", p.Interface, p.Host)
	case inside.Attrs().Flags&net.FlagUp == 0:
		return fmt.Errorf("interface %s in the pod is down", p.Interface)
	case outside.Attrs().Flags&net.FlagUp == 0:
		return fmt.Errorf("host side %s is down", p.Host)
	case !bytes.Equal(outside.Attrs().HardwareAddr, desired.HostMAC[:]):
		return fmt.Errorf("host side %s has address %s, not %s", p.Host, outside.Attrs().HardwareAddr, desired.HostMAC)
	case !p.MAC.IsZero() && !bytes.Equal(inside.Attrs().HardwareAddr, p.MAC[:]):
		return fmt.Errorf("interface %s in the pod has address %s, not %s", p.Interface, inside.Attrs().HardwareAddr, p.MAC)
	}
	for _, check := range []func(Pod, *netlink.Handle, netlink.Link) error{checkAddresses, checkRoutes, checkNeighbors} {
		if err := check(p, in, inside); err != nil {
			return err
		}
	}
	if err := d.within(ns, func() error { return checkSysctls(podSysctls(p), " in the pod") }); err != nil {
		return err
	}
	d.mu.Lock()
	want, told := d.links[p.Host]
	d.mu.Unlock()
	if !told {
		return nil
	}
	if err := d.checkShape(in, inside, outside, want); err != nil {
		return err
	}
	return checkSysctls(want.Sysctls(d.rpFilter), "")
}

func checkSysctls(want []desired.Sysctl, where string) error {
	for _, s := range want {
		now, err := readSysctl(s.Path)
		if s.BestEffort && (err != nil || now != s.Value) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sysctl %s%s: %w", s.Path, where, err)
		}
		if now != s.Value {
			return fmt.Errorf("sysctl %s%s is %s, not %s", s.Path, where, now, s.Value)
		}
	}
	return nil
}

func checkAddresses(p Pod, in *netlink.Handle, l netlink.Link) error {
	list, err := dump.Whole(func() ([]netlink.Addr, error) { return in.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses of %s in the pod: %w", p.Interface, err)
	}
	for _, a := range p.Addresses {
		if !slices.ContainsFunc(list, func(have netlink.Addr) bool { return prefixOf(have.IPNet) == netip.PrefixFrom(a, a.BitLen()) }) {
			return fmt.Errorf("interface %s in the pod lacks address %s", p.Interface, a)
		}
	}
	return nil
}

func checkNeighbors(p Pod, in *netlink.Handle, l netlink.Link) error {
	for _, gateway := range podGateways(p) {
		list, err := dump.Whole(func() ([]netlink.Neigh, error) { return in.NeighList(l.Attrs().Index, int(family(gateway))) })
		if err != nil {
			return fmt.Errorf("neighbours of the pod: %w", err)
		}
		if !slices.ContainsFunc(list, func(have netlink.Neigh) bool {
			return have.IP.Equal(gateway.AsSlice()) && bytes.Equal(have.HardwareAddr, desired.HostMAC[:])
		}) {
			return fmt.Errorf("the pod does not know the Ethernet address of its gateway %s", gateway)
		}
	}
	return nil
}

func checkRoutes(p Pod, in *netlink.Handle, l netlink.Link) error {
	for _, want := range podRoutes(p) {
		list, err := dump.Whole(func() ([]netlink.Route, error) { return in.RouteList(l, int(family(want.dst.Addr()))) })
		if err != nil {
			return fmt.Errorf("routes of the pod: %w", err)
		}
		if !slices.ContainsFunc(list, func(have netlink.Route) bool {
			via, _ := netip.AddrFromSlice(have.Gw)
			return prefixOf(have.Dst) == want.dst && via.Unmap() == want.via
		}) {
			return fmt.Errorf("the pod lacks the route to %s", want.dst)
		}
	}
	return nil
}

// prefixOf is the prefix of an address or a destination; the zero value if it is none.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if four := a.Unmap(); four.Is4() && len(n.Mask) == net.IPv4len {
		a = four
	}
	return netip.PrefixFrom(a, ones)
}
