// Package pools makes the pools that a starting node proposes for a cluster that has none: from the environment that
// users of Calico know. It is pure.
package pools

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// Names of the default pools.
const (
	Name4 = "default-ipv4-ippool"
	Name6 = "default-ipv6-ippool"
)

// Facts are what the choice of defaults depends on.
type Facts struct {
	Env       func(name string) string
	Backend   api.Backend
	IPv4      bool           // the node takes part in IPv4
	IPv6      bool           // the node takes part in IPv6
	Addresses []netip.Prefix // of the host, which the default range must not clash with
	Random    [5]byte        // for the unique local range of the IPv6 pool (RFC 4193)
}

// Propose returns the pools, none if NO_DEFAULT_POOLS is set. What the environment asks for is judged here, so that a
// mistake names its variable.
func Propose(f Facts) ([]*api.IPPool, error) {
	switch value := strings.ToLower(f.Env("NO_DEFAULT_POOLS")); value {
	case "", "false":
	case "true":
		return nil, nil
	default:
		return nil, fmt.Errorf("environment variable NO_DEFAULT_POOLS: %q is not a truth value; use true or false", value)
	}
	var out []*api.IPPool
	if f.IPv4 {
		p, err := f.pool(Name4, "CALICO_IPV4POOL_", f.free4(), true)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	if f.IPv6 {
		p, err := f.pool(Name6, "CALICO_IPV6POOL_", f.unique6(), false)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (f Facts) pool(name, prefix string, cidr netip.Prefix, v4 bool) (*api.IPPool, error) {
	p := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	bad := func(variable, value, why string) error {
		return fmt.Errorf("environment variable %s%s: %q %s", prefix, variable, value, why)
	}
	p.Spec.CIDR = cidr.String()
	if text := f.Env(prefix + "CIDR"); text != "" {
		given, err := netip.ParsePrefix(text)
		if err != nil || given.Addr().Is4() != v4 {
			return nil, bad("CIDR", text, "is not a CIDR of this family")
		}
		p.Spec.CIDR = given.Masked().String()
	}
	if text := f.Env(prefix + "BLOCK_SIZE"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, bad("BLOCK_SIZE", text, "is not a number; use 20 to 32 for IPv4, 116 to 128 for IPv6")
		}
		p.Spec.BlockSize = n
	}
	p.Spec.NATOutgoing = v4
	for _, flag := range []struct {
		variable string
		field    *bool
	}{{"NAT_OUTGOING", &p.Spec.NATOutgoing}, {"DISABLE_BGP_EXPORT", &p.Spec.DisableBGPExport}} {
		text := f.Env(prefix + flag.variable)
		if text == "" {
			continue
		}
		value, err := strconv.ParseBool(strings.ToLower(text))
		if err != nil {
			return nil, bad(flag.variable, text, "is not a truth value; use true or false")
		}
		*flag.field = value
	}
	p.Spec.NodeSelector = f.Env(prefix + "NODE_SELECTOR")
	if err := f.mode(p, prefix, v4, bad); err != nil {
		return nil, err
	}
	p.Default()
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("default pool from environment variables %s*: %w", prefix, err)
	}
	return p, nil
}

// mode reads how the pool's packets travel. With nothing set, IPv4 goes in IP-in-IP as the classic manifest has it; where
// no BGP is spoken both families go in VXLAN, since nobody would bring routes to a bare pool.
func (f Facts) mode(p *api.IPPool, prefix string, v4 bool, bad func(variable, value, why string) error) error {
	const use = "is no mode; use Always, CrossSubnet or Never"
	ipip, vxlan := f.Env(prefix+"IPIP"), f.Env(prefix+"VXLAN")
	if ipip == "" && vxlan == "" && f.Backend == api.BackendVXLAN {
		vxlan = string(api.VXLANAlways)
	}
	switch strings.ToLower(ipip) {
	case "":
		p.Spec.IPIPMode = api.IPIPNever
		if v4 && (vxlan == "" || strings.EqualFold(vxlan, "Never") || strings.EqualFold(vxlan, "off")) {
			p.Spec.IPIPMode = api.IPIPAlways
		}
	case "always":
		p.Spec.IPIPMode = api.IPIPAlways
	case "crosssubnet", "cross-subnet":
		p.Spec.IPIPMode = api.IPIPCrossSubnet
	case "never", "off":
		p.Spec.IPIPMode = api.IPIPNever
	default:
		return bad("IPIP", ipip, use)
	}
	switch strings.ToLower(vxlan) {
	case "", "never", "off":
		p.Spec.VXLANMode = api.VXLANNever
	case "always":
		p.Spec.VXLANMode = api.VXLANAlways
	case "crosssubnet", "cross-subnet":
		p.Spec.VXLANMode = api.VXLANCrossSubnet
	default:
		return bad("VXLAN", vxlan, use)
	}
	if f.Backend == api.BackendVXLAN && p.Spec.VXLANMode != api.VXLANNever && v4 {
		p.Spec.IPIPMode = api.IPIPNever // guides to this backend say to set VXLAN, and leave the manifest's IPIP as it is
	}
	switch {
	case p.Spec.IPIPMode != api.IPIPNever && !v4:
		return bad("IPIP", ipip, "is for IPv4 only; use "+prefix+"VXLAN")
	case p.Spec.IPIPMode != api.IPIPNever && p.Spec.VXLANMode != api.VXLANNever:
		return bad("VXLAN", vxlan, fmt.Sprintf("cannot be combined with %sIPIP=%s; set one of the two to Never", prefix, ipip))
	}
	return nil
}

// free4 is 192.168.0.0/16, or the first of 172.16.0.0/12 that the host does not use.
func (f Facts) free4() netip.Prefix {
	candidates := []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
	for second := byte(16); second < 32; second++ {
		candidates = append(candidates, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, second, 0, 0}), 16))
	}
	for _, c := range candidates {
		clash := false
		for _, a := range f.Addresses {
			clash = clash || c.Overlaps(a.Masked())
		}
		if !clash {
			return c
		}
	}
	return candidates[0]
}

// unique6 is a random unique local /48 (RFC 4193 section 3.2.2).
func (f Facts) unique6() netip.Prefix {
	b := [16]byte{0xfd}
	copy(b[1:6], f.Random[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}
