package render

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/state"
)

// Overheads that tunnels add to a packet, in bytes (spec §4.4). A cross-subnet tunnel costs as much: the same pod talks
// to nodes of both kinds.
const (
	overheadIPIP   = 20
	overheadVXLAN4 = 50
	overheadVXLAN6 = 70
)

// fallbackMTU is taken while nothing is known of the network between the nodes (spec §4.4).
const fallbackMTU = 1460

// usualUplinks is what MTUIfacePattern holds if nobody has set it.
var usualUplinks = regexp.MustCompile(api.EffectiveFelix().MTUIfacePattern)

// Uplinks are the interfaces whose MTU counts, in the order of their names. Whoever sets MTUIfacePattern chooses them: those
// that are up and match. Otherwise they are those really used: the ones that bear the node's addresses, and the ones by
// which packets to other nodes leave, whatever their names. While neither is known, the usual names must do.
func Uplinks(s *state.State) []string {
	all := slices.Sorted(maps.Keys(s.Host.Interfaces))
	pick := func(keep func(string, state.Interface) bool) []string {
		return slices.DeleteFunc(slices.Clone(all), func(name string) bool {
			i := s.Host.Interfaces[name]
			return i.MTU <= 0 || !keep(name, i)
		})
	}
	var chosen []string
	if pattern := s.Config.Spec.MTUIfacePattern; pattern != "" && pattern != usualUplinks.String() {
		if chooses, err := regexp.Compile(pattern); err == nil {
			chosen = pick(func(name string, i state.Interface) bool { return i.Up && chooses.MatchString(name) })
		}
	}
	if len(chosen) > 0 {
		return chosen
	}
	self := s.Nodes[s.Node]
	bears := []string{bearer(s.Host.Interfaces, self.IPv4.Addr()), bearer(s.Host.Interfaces, self.IPv6.Addr())}
	chosen = pick(func(name string, _ state.Interface) bool {
		return slices.Contains(bears, name) || slices.Contains(s.Host.Uplinks, name)
	})
	if len(chosen) == 0 {
		chosen = pick(func(name string, i state.Interface) bool { return i.Up && usualUplinks.MatchString(name) })
	}
	return chosen
}

// HostMTU is the smallest MTU of the interfaces that carry traffic to other nodes (spec §4.4).
func HostMTU(s *state.State) int {
	smallest := 0
	for _, name := range Uplinks(s) {
		if mtu := s.Host.Interfaces[name].MTU; smallest == 0 || mtu < smallest {
			smallest = mtu
		}
	}
	return cmp.Or(smallest, fallbackMTU)
}

// deviceMTU is the MTU of a tunnel's device: what the user says, or what fits, and no more than fits into the interface below.
// The kernel would refuse to give more to a VXLAN device, and leave that as it is; and what went into tunl0 would be lost.
func (f family) deviceMTU(s *state.State, asked, overhead, host int) int {
	below := cmp.Or(s.Host.Interfaces[f.parent].MTU, host)
	return min(cmp.Or(asked, host-overhead), below-overhead)
}

// PodMTU is the MTU of pods' interfaces: what fits through every tunnel in use.
func PodMTU(s *state.State) int {
	mtu := HostMTU(s)
	for _, f := range families(s) {
		if f.vxlan {
			mtu = min(mtu, f.mtu)
		}
		if f.ipip {
			mtu = min(mtu, f.ipipMTU)
		}
	}
	return mtu
}

// Peers are the addresses of the other nodes, sorted.
func Peers(s *state.State) []netip.Addr {
	var out []netip.Addr
	for name, n := range s.Nodes {
		for _, a := range []netip.Addr{n.IPv4.Addr(), n.IPv6.Addr()} {
			if name != s.Node && a.IsValid() {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// MTUWarnings name the settings that ask for more than the network between the nodes carries.
func MTUWarnings(s *state.State) []string {
	var out []string
	host := HostMTU(s)
	warn := func(setting string, asked, most, used int) {
		if asked > most {
			out = append(out, fmt.Sprintf("%s is %d, but the network between the nodes carries packets of %d bytes: %d is used; set it to %d or less, or to 0 for automatic",
				setting, asked, host, used, most))
		}
	}
	for _, f := range families(s) {
		setting := "vxlanMTU"
		if f.v6 {
			setting = "vxlanMTUV6"
		}
		if f.vxlan {
			warn(setting, f.asked, host-f.overhead, f.mtu)
		}
		if f.ipip {
			warn("ipipMTU", value(s.Config.Spec.IPIPMTU, 0), host-overheadIPIP, f.ipipMTU)
		}
	}
	return out
}
