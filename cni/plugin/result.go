package plugin

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/muslin-net/muslin/felix/client/cni"
)

// result has the shape of spec §6.2: host and container interface, addresses with full mask, one route for each.
func result(c call, added cni.Added) *current.Result {
	r := assigned(added.Addresses)
	r.Interfaces = []*current.Interface{
		{Name: added.HostInterface},
		{Name: c.IfName, Mac: added.MAC, Mtu: added.MTU, Sandbox: c.Netns},
	}
	for _, ip := range r.IPs {
		ip.Interface = new(1)
	}
	return r
}

func assigned(addrs []netip.Addr) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for _, a := range addrs {
		host := net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		r.IPs = append(r.IPs, &current.IPConfig{Address: host})
		r.Routes = append(r.Routes, &types.Route{Dst: host})
	}
	return r
}

// ours picks this attachment's part of a result, which plugins later in the chain may have added to.
func ours(c call, r *current.Result) (mac string, addrs []netip.Addr, err error) {
	mine := -1
	for n, i := range r.Interfaces {
		if i.Sandbox != "" && i.Name == c.IfName {
			mine, mac = n, i.Mac
		}
	}
	part := &current.Result{CNIVersion: r.CNIVersion}
	for _, ip := range r.IPs {
		if ip.Interface == nil || *ip.Interface == mine {
			part.IPs = append(part.IPs, ip)
		}
	}
	addrs, err = addressesOf(part)
	return mac, addrs, err
}

// previous is the result of the ADD that a CHECK is about.
func previous(c call) (*current.Result, error) {
	if len(c.network.PrevResult) == 0 {
		return nil, types.NewError(codeBadConfig, "prevResult is missing", "CHECK compares with the result of ADD; the runtime must pass it")
	}
	r, err := create.Create(c.network.CNIVersion, c.network.PrevResult)
	if err != nil {
		return nil, types.NewError(codeBadConfig, "prevResult cannot be read", err.Error())
	}
	return current.NewResultFromResult(r)
}

func addressesOf(r *current.Result) ([]netip.Addr, error) {
	out := make([]netip.Addr, len(r.IPs))
	for i, ip := range r.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("its result holds the address %v, which is none", ip.Address)
		}
		out[i] = a.Unmap()
	}
	return out, nil
}

// routesOf are the destinations that an IPAM plugin gives routes to. A family without any has its default route, and with
// defaults the others have it too.
func routesOf(r *current.Result, defaults bool) ([]netip.Prefix, error) {
	var out []netip.Prefix
	four, six := false, false
	for _, route := range r.Routes {
		a, ok := netip.AddrFromSlice(route.Dst.IP)
		ones, bits := route.Dst.Mask.Size()
		if !ok || bits == 0 {
			return nil, fmt.Errorf("its result holds a route to %v, which is no destination", route.Dst)
		}
		a = a.Unmap()
		four, six = four || a.Is4(), six || a.Is6()
		out = append(out, netip.PrefixFrom(a, ones).Masked())
	}
	if defaults && four {
		out = append(out, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	if defaults && six {
		out = append(out, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}
