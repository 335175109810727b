package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// Pod is a pod's interface as it is to be wired.
type Pod struct {
	Netns      string // path of the pod's network namespace
	Interface  string // in the pod
	Host       string // the other end, in our namespace
	MTU        int
	MAC        desired.MAC // of the pod's side; zero lets the kernel choose
	Addresses  []netip.Addr
	Forwarding bool // the pod may forward packets
	Queues     int  // of the pair; 0 is one
}

// Wire makes the pair and sets the pod's side up: addresses with full mask, a route to the gateway and by it everywhere
// (spec §4.1). It is idempotent. If it fails, a pair that it made is removed again. It returns the Ethernet address of the
// pod's side.
func (d *Driver) Wire(_ context.Context, p Pod) (desired.MAC, error) {
	ns, in, err := openPod(p.Netns)
	if err != nil {
		return desired.MAC{}, err
	}
	defer func() { _ = ns.Close() }()
	defer in.Close()
	made, err := d.pair(p, in)
	if err != nil {
		return desired.MAC{}, err
	}
	mac, err := setUp(p, ns, in)
	if err != nil && made {
		err = errors.Join(err, d.Unwire(p.Host))
	}
	return mac, err
}

// pair makes the veth pair unless it is there. It is made inside the pod, so that the host never sees an interface
// with a name of the pod's.
func (d *Driver) pair(p Pod, in *netlink.Handle) (made bool, err error) {
	inside, err := in.LinkByName(p.Interface)
	if ignoreMissing(err) != nil {
		return false, fmt.Errorf("look for %s in the pod: %w", p.Interface, err)
	}
	outside, errOut := d.handle.LinkByName(p.Host)
	if ignoreMissing(errOut) != nil {
		return false, fmt.Errorf("look for %s: %w", p.Host, errOut)
	}
	switch {
	case err == nil && errOut == nil && peers(inside, outside):
		return false, nil
	case err == nil:
		return false, fmt.Errorf("the pod already has an interface %s that is not the other end of %s; remove it, or use another name", p.Interface, p.Host)
	case errOut == nil: // of a pod that is no more
		if err := d.Unwire(p.Host); err != nil {
			return false, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.Interface, p.MTU
	attrs.NumTxQueues, attrs.NumRxQueues = max(1, p.Queues), max(1, p.Queues)
	if !p.MAC.IsZero() {
		attrs.HardwareAddr = p.MAC[:]
	}
	err = in.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: p.Host, PeerNamespace: netlink.NsFd(int(d.host)), PeerHardwareAddr: desired.HostMAC[:], PeerMTU: uint32(p.MTU),
	})
	if err != nil {
		return false, fmt.Errorf("create veth pair %s and %s: %w", p.Interface, p.Host, err)
	}
	return true, nil
}

// peers tells whether two links, each in its namespace, are the ends of one veth pair.
func peers(a, b netlink.Link) bool {
	return a.Type() == "veth" && b.Type() == "veth" && a.Attrs().ParentIndex == b.Attrs().Index && b.Attrs().ParentIndex == a.Attrs().Index
}

// setUp configures the pod's side.
func setUp(p Pod, ns netns.NsHandle, in *netlink.Handle) (mac desired.MAC, err error) {
	v6 := slices.ContainsFunc(p.Addresses, netip.Addr.Is6)
	if err := within(ns, func() error { return podSysctls(p, v6) }); err != nil {
		return mac, err
	}
	l, err := in.LinkByName(p.Interface)
	if err != nil {
		return mac, fmt.Errorf("interface %s in the pod: %w", p.Interface, err)
	}
	if err := in.LinkSetUp(l); err != nil {
		return mac, fmt.Errorf("set %s up: %w", p.Interface, err)
	}
	for _, a := range p.Addresses {
		if err := in.AddrAdd(l, podAddress(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			return mac, fmt.Errorf("add address %s to %s: %w", a, p.Interface, err)
		}
	}
	for _, n := range podNeighbors(p, l.Attrs().Index) {
		if err := in.NeighSet(&n); err != nil {
			return mac, fmt.Errorf("add neighbour %v in the pod: %w", n, err)
		}
	}
	for _, r := range podRoutes(p, l.Attrs().Index) {
		if err := in.RouteReplace(&r); err != nil {
			return mac, fmt.Errorf("add route %v in the pod: %w", r, err)
		}
	}
	if l, err = in.LinkByName(p.Interface); err != nil {
		return mac, err
	}
	copy(mac[:], l.Attrs().HardwareAddr)
	return mac, nil
}

// podSysctls are set in the pod's namespace. Duplicate detection is off: the address is the pod's own by IPAM, and
// waiting for it would delay the pod by a second.
func podSysctls(p Pod, v6 bool) error {
	forwarding := "0"
	if p.Forwarding {
		forwarding = "1"
	}
	set := []desired.Sysctl{{Path: "net/ipv4/ip_forward", Value: forwarding}}
	if v6 {
		set = append(set,
			desired.Sysctl{Path: "net/ipv6/conf/all/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/default/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/lo/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/" + p.Interface + "/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/" + p.Interface + "/accept_dad", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: forwarding})
	}
	for _, s := range set {
		now, err := readSysctl(s.Path)
		if err == nil && now != s.Value {
			err = writeSysctl(s.Path, s.Value)
		}
		if err != nil {
			return fmt.Errorf("sysctl %s=%s in the pod: %w", s.Path, s.Value, err)
		}
	}
	return nil
}

func podAddress(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

func podRoutes(p Pod, index int) []netlink.Route {
	var out []netlink.Route
	if slices.ContainsFunc(p.Addresses, netip.Addr.Is4) {
		gateway := net.IP(desired.Gateway4.AsSlice())
		out = append(out,
			netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}},
			netlink.Route{LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: gateway})
	}
	if slices.ContainsFunc(p.Addresses, netip.Addr.Is6) {
		out = append(out, netlink.Route{
			LinkIndex: index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Gw: desired.HostLinkLocal.AsSlice(),
		})
	}
	return out
}

// podNeighbors tell the pod the gateway's address. Without them the host's proxy ARP would have to answer, which it does
// only while it has a default route; and the first packet would wait for the answer.
func podNeighbors(p Pod, index int) []netlink.Neigh {
	var out []netlink.Neigh
	for _, gateway := range []netip.Addr{desired.Gateway4, desired.HostLinkLocal} {
		if !slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return a.Is4() == gateway.Is4() }) {
			continue
		}
		family := netlink.FAMILY_V4
		if gateway.Is6() {
			family = netlink.FAMILY_V6
		}
		out = append(out, netlink.Neigh{
			LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: desired.HostMAC[:],
		})
	}
	return out
}

// Unwire removes the pair by its host side; one that is not there is no error.
func (d *Driver) Unwire(host string) error {
	l, err := d.handle.LinkByName(host)
	if err == nil {
		err = d.handle.LinkDel(l)
	}
	if err = ignoreMissing(err); err != nil {
		return fmt.Errorf("remove %s: %w", host, err)
	}
	return nil
}

// Exists tells whether the host side of a pair is there.
func (d *Driver) Exists(host string) (bool, error) {
	_, err := d.handle.LinkByName(host)
	if ignoreMissing(err) != nil {
		return false, fmt.Errorf("look for %s: %w", host, err)
	}
	return err == nil, nil
}

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
	if err := checkAddresses(p, in, inside); err != nil {
		return err
	}
	return checkRoutes(p, in, inside)
}

func checkAddresses(p Pod, in *netlink.Handle, l netlink.Link) error {
	list, err := in.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s in the pod: %w", p.Interface, err)
	}
	for _, a := range p.Addresses {
		if !slices.ContainsFunc(list, func(have netlink.Addr) bool { return have.Equal(*podAddress(a)) }) {
			return fmt.Errorf("interface %s in the pod lacks address %s", p.Interface, a)
		}
	}
	return nil
}

func checkRoutes(p Pod, in *netlink.Handle, l netlink.Link) error {
	for _, want := range podRoutes(p, l.Attrs().Index) {
		family := netlink.FAMILY_V4
		if want.Dst.IP.To4() == nil {
			family = netlink.FAMILY_V6
		}
		list, err := in.RouteList(l, family)
		if err != nil {
			return fmt.Errorf("routes of the pod: %w", err)
		}
		if !slices.ContainsFunc(list, func(have netlink.Route) bool {
			return have.Dst != nil && have.Dst.String() == want.Dst.String() && have.Gw.Equal(want.Gw)
		}) {
			return fmt.Errorf("the pod lacks the route to %s", want.Dst)
		}
	}
	return nil
}

// openPod opens a pod's namespace. The error tells a namespace that is gone from one that cannot be opened.
func openPod(path string) (netns.NsHandle, *netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return ns, nil, fmt.Errorf("network namespace %s of the pod: %w", path, err)
	}
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return ns, nil, fmt.Errorf("network namespace %s of the pod: %w", path, err)
	}
	return ns, in, nil
}

// within runs f on a thread inside a namespace. The thread is not given back: the runtime ends it with the goroutine. (All but
// the process's first one, which would stay in the namespace for good; felix's main keeps that one out of this.)
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter the pod's network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
