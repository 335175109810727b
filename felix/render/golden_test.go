package render_test

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// scenarios are what nodes meet; what each must lead to is in testdata/<name>.txt.
func scenarios() map[string]*world {
	all := mixedModes()
	maps.Copy(all, usualScenarios())
	return all
}

func usualScenarios() map[string]*world {
	anyPool := pool("pods", "192.168.0.0/16", natted)
	web := pod("web", "192.168.1.5")
	leaving := pod("old", "192.168.1.6")
	leaving.Leaving = true
	incomplete := func(w *view.WorkloadEndpoint) { w.Incomplete = []string{"profile kns.shop is not known"} }
	before := func(w *view.WorkloadEndpoint) { w.ContainerID = "an-earlier-sandbox" }
	unknownList := func(w *view.WorkloadEndpoint) { w.PolicyList = "l2" }
	spoofing := func(w *view.WorkloadEndpoint) {
		w.AllowSpoofedPrefixes = []netip.Prefix{prefix("203.0.113.0/28")}
	}
	floats := func(to ...string) func(*view.WorkloadEndpoint) {
		return func(w *view.WorkloadEndpoint) {
			for _, a := range to {
				w.NATs = append(w.NATs, view.NAT{External: netip.MustParseAddr(a), Internal: netip.MustParseAddr("192.168.1.5")})
			}
		}
	}
	noVTEP := node("worker-3", "10.30.1.66/24", "fd00:31::66/64", 3)
	noVTEP.VXLANMAC4 = ""
	return map[string]*world{
		"nothing-known": {host: state.Host{}},
		"direct": base().add(anyPool, block("192.168.2.0/26", "worker-2", view.TunnelNone)).learn(
			path("192.168.2.0/26", "10.30.0.56"), path("192.168.3.0/26", "10.30.1.66"), // by a router
			path("203.0.113.0/24", "203.0.113.99"), path("198.51.100.0/24", "10.30.0.99"), // no way there
			path("192.0.2.0/24", "10.30.0.57", "10.30.0.56"), path("10.30.0.0/24", "10.30.0.56")), // equal cost; own subnet
		"vxlan-always": base().add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANAlways)),
			block("10.77.1.0/26", self, view.TunnelVXLAN), block("10.77.2.0/26", "worker-2", view.TunnelVXLAN),
			block("10.77.3.0/26", "worker-3", view.TunnelVXLAN)).
			learn(path("10.77.2.0/26", "10.30.0.56")), // typha's table decides, not bird
		"vxlan-cross-subnet": base().add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANCrossSubnet)),
			crossSubnet(block("10.77.2.0/26", "worker-2", view.TunnelVXLAN)),
			crossSubnet(block("10.77.3.0/26", "worker-3", view.TunnelVXLAN))),
		"cross-subnet-host-mask": base().replace(node(self, "10.30.0.206/32", "fd00:30::206/128", 1)).
			add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANCrossSubnet)),
				crossSubnet(block("10.77.2.0/26", "worker-2", view.TunnelVXLAN))),
		"dual-stack": base().add(pool("four", "10.77.0.0/16", vxlan(api.VXLANAlways)), pool("six", "fd00:77::/64", vxlan(api.VXLANAlways), natted),
			block("10.77.2.0/26", "worker-2", view.TunnelVXLAN), block("fd00:77::100/122", "worker-2", view.TunnelVXLAN),
			block("fd00:77::40/122", self, view.TunnelVXLAN)).
			wire(pod("web", "10.77.1.9", "fd00:77::41")).learn(path("2001:db8::/48", "fd00:31::66")),
		"ipv6-off": base().add(config(func(c *api.FelixConfigurationSpec) { c.IPv6Support = new(bool) }),
			pool("six", "fd00:77::/64", vxlan(api.VXLANAlways)), block("fd00:77::100/122", "worker-2", view.TunnelVXLAN)),
		"own-blocks": base().add(anyPool, block("192.168.1.0/26", self, view.TunnelNone), block("192.168.1.77/32", self, view.TunnelNone)).
			learn(path("192.168.1.0/26", "10.30.0.56")), // somebody else announces our block
		"borrowed": base().add(anyPool, pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)),
			typed(block("192.168.2.9/32", self, view.TunnelNone), view.RouteWorkload), // ours, of a block of worker-2
			typed(block("10.77.1.9/32", "worker-2", view.TunnelVXLAN), view.RouteWorkload),
			block("10.77.1.0/26", self, view.TunnelVXLAN)).wire(pod("web", "192.168.2.9")),
		"workload-wins": base().add(anyPool, pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)),
			typed(block("10.77.1.9/32", "worker-2", view.TunnelVXLAN), view.RouteWorkload)).
			learn(path("192.168.1.5/32", "10.30.0.56")).wire(web, pod("vx", "10.77.1.9"), leaving).
			learn(path("192.168.1.6/32", "10.30.0.56")),
		"two-owners": base().add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)), // while a block moves
			block("10.77.5.0/26", "worker-2", view.TunnelVXLAN), block("10.77.5.0/26", "worker-3", view.TunnelVXLAN),
			block("10.77.6.0/26", self, view.TunnelVXLAN), block("10.77.6.0/26", "worker-3", view.TunnelVXLAN)).
			wire(pod("one", "10.77.7.1"), pod("two", "10.77.7.1")),
		"tunnel-addresses": base().add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)),
			typed(block("10.77.1.1/32", self, view.TunnelVXLAN), view.RouteTunnel),
			typed(block("10.77.2.1/32", "worker-2", view.TunnelVXLAN), view.RouteTunnel),
			block("10.77.3.1/32", "worker-3", view.TunnelVXLAN)), // a block of one address is its tunnel end
		"missing-vtep": base().replace(noVTEP).add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)),
			block("10.77.2.0/26", "worker-2", view.TunnelVXLAN), block("10.77.3.0/26", "worker-3", view.TunnelVXLAN)),
		"unknown-node": base().add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)), block("10.77.9.0/26", "worker-9", view.TunnelVXLAN)),
		"disabled-pool": base().add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways), disabled, natted),
			block("10.77.2.0/26", "worker-2", view.TunnelVXLAN)),
		"mode-change": base().add(pool("pods", "10.77.0.0/16"), view.Route{ // senders flipped already, packets still arrive by VXLAN
			Dst: prefix("10.77.2.0/26"), Type: view.RouteBlock, Node: "worker-2", Send: view.TunnelNone,
			Receive: []view.Tunnel{view.TunnelNone, view.TunnelVXLAN},
		}).learn(path("10.77.2.0/26", "10.30.0.56")),
		"mode-change-early": base().add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANAlways)), view.Route{ // not all receive by VXLAN yet
			Dst: prefix("10.77.2.0/26"), Type: view.RouteBlock, Node: "worker-2", Send: view.TunnelNone,
			Receive: []view.Tunnel{view.TunnelNone, view.TunnelVXLAN},
		}).learn(path("10.77.2.0/26", "10.30.0.56"), path("10.77.9.0/26", "10.30.0.56")),
		"ipip": base().add(pool("pods", "10.77.0.0/16", ipip(api.IPIPCrossSubnet)),
			crossSubnet(block("10.77.2.0/26", "worker-2", view.TunnelIPIP)), crossSubnet(block("10.77.3.0/26", "worker-3", view.TunnelIPIP))),
		"loopback": base().nic("eth0", 1500, true, "10.30.0.9/31").nic("eth1", 1500, true, "10.30.0.11/31"). // routed to the host
															replace(node(self, "10.30.0.206/24", "fd00:30::206/64", 1)).loopback(addr("10.30.0.206"), addr("10.30.0.207")).leaves("eth0", "eth1").
															add(pool("pods", "10.77.0.0/16", ipip(api.IPIPCrossSubnet)), pool("vx", "10.79.0.0/16", vxlan(api.VXLANAlways)),
				crossSubnet(block("10.77.2.0/26", "worker-2", view.TunnelIPIP)), crossSubnet(block("10.77.3.0/26", "worker-3", view.TunnelIPIP)),
				block("10.79.2.0/26", "worker-2", view.TunnelVXLAN)),
		"ipip-uplinks": base().nic("eth1", 1500, true, "10.40.0.1/24").leaves("eth0", "eth1").way(addr("10.30.0.56"), "eth0").way(addr("10.30.1.66"), "eth1").
			add(pool("pods", "10.77.0.0/16", ipip(api.IPIPAlways)), block("10.77.3.0/26", "worker-3", view.TunnelIPIP)),
		"ipip-other-uplink": base().nic("eth1", 1500, true, "10.40.0.1/24").leaves("eth1").
			add(pool("pods", "10.77.0.0/16", ipip(api.IPIPAlways)), block("10.77.3.0/26", "worker-3", view.TunnelIPIP)),
		"vxlan-forced-on":  base().add(config(func(c *api.FelixConfigurationSpec) { c.VXLANEnabled = new(true) })),
		"vxlan-forced-off": vxlanWorld(func(c *api.FelixConfigurationSpec) { c.VXLANEnabled = new(bool) }),
		"mtu-override":     vxlanWorld(func(c *api.FelixConfigurationSpec) { c.VXLANMTU, c.VXLANMTUV6 = new(9000), new(1280) }),
		"mtu-no-match":     vxlanWorld(func(c *api.FelixConfigurationSpec) { c.MTUIfacePattern = "^nothing" }),
		"mtu-pattern":      vxlanWorld(func(c *api.FelixConfigurationSpec) { c.MTUIfacePattern = "^(eth|docker)" }),
		"mtu-uplinks": base().nic("bond0", 1420, true).leaves("bond0").nic("eth0", 9000, true, "10.30.0.206/24").
			add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANCrossSubnet), ipip(api.IPIPNever))),
		"mtu-pods-follow": base().add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways))).wire(follows(pod("web", "10.77.1.9")), pod("pinned", "10.77.1.10")),
		"mtu-smallest":    base().nic("eth1", 1480, true).nic("eth2", 1300, false).add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways))),
		"mtu-jumbo":       base().nic("eth0", 9001, true, "10.30.0.206/24").add(pool("pods", "10.77.0.0/16", ipip(api.IPIPAlways))),
		"no-parent":       base().nic("eth0", 1500, true, "10.30.0.7/24").add(pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)), block("10.77.2.0/26", "worker-2", view.TunnelVXLAN)),
		"settings": base().add(anyPool, pool("lb", "198.51.100.0/24", func(p *api.IPPool) { p.Spec.AllowedUses = []api.IPPoolUse{api.UseLoadBalancer} }),
			config(func(c *api.FelixConfigurationSpec) {
				c.NATPortRange, c.NATOutgoingAddress = &api.Port{First: 32768, Last: 65535}, "10.30.0.200"
				c.NATOutgoingExclusions, c.IptablesNATOutgoingInterfaceFilter = new("ippoolsandhostips"), "eth0"
				c.ExternalNodesCIDRList = &[]string{"10.99.0.0/16", "10.98.1.2"}
				c.DefaultEndpointToHostAction, c.IptablesFilterDenyAction, c.IPForwarding = "ACCEPT", "REJECT", "disabled"
				c.LogActionRateLimit, c.LogActionRateLimitBurst = new("20/minute"), new(7)
				c.DisableConntrackInvalidCheck, c.DeviceRouteProtocol = new(true), new(80)
				c.AllowIPIPPacketsFromWorkloads, c.AllowVXLANPacketsFromWorkloads = new(true), new(true)
			})).wire(web),
		"floating": base().add(anyPool, config(func(c *api.FelixConfigurationSpec) { c.FloatingIPs = new("Enabled") }),
			leadsHere("203.0.113.9"), leadsHere("203.0.113.5")). // but not 203.0.113.7, which another node's has
			add(policed(web, floats("203.0.113.9", "203.0.113.5", "203.0.113.7", "192.168.1.5"))...).wire(web),
		"floating-off":  base().add(anyPool, leadsHere("203.0.113.9")).add(policed(web, floats("203.0.113.9"))...).wire(web),
		"open-endpoint": base().add(anyPool).add(policed(web)...).wire(web),
		"spoofing": base().add(anyPool, config(func(c *api.FelixConfigurationSpec) { c.WorkloadSourceSpoofing = "any" })).
			add(policed(web, spoofing)...).wire(web),
		"spoofing-not-allowed":   base().add(anyPool).add(policed(web, spoofing)...).wire(web),
		"closed-unknown":         base().add(anyPool).wire(web),
		"closed-incomplete":      base().add(policed(web, incomplete)...).wire(web),
		"closed-earlier-sandbox": base().add(policed(web, before)...).wire(web),
		"closed-no-list":         base().add(policed(web, unknownList)...).wire(web),
		"closed-profile-unknown": base().add(without(policed(web), "pro/kns.shop")...).wire(web),
		"closed-policy-unknown":  base().add(without(policed(web), "np/shop/web")...).wire(web),
		"open-staged-not-known":  base().add(without(policed(web), "snp/shop/try")...).wire(web),
		"hosts":                  base().add(anyPool).add(policed(web)...).add(hosted()...).wire(web),
		"hosts-failsafe": base().add(hosted()...).add(config(func(c *api.FelixConfigurationSpec) {
			c.FailsafeInboundHostPorts = &[]api.ProtoPort{{Port: 22, Net: "10.0.0.0/8"}, {Protocol: "udp", Port: 68}}
			c.FailsafeOutboundHostPorts = &[]api.ProtoPort{}
		})),
		"hosts-incomplete": base().add(without(hosted(), "gnp/deny-dns")...),
		"hosts-excluded": base().add(hosted()...).nic("kube-ipvs0", 1500, true, "10.30.9.9/32").nic("tap7", 1500, true, "10.30.9.9/32").nic("eth9", 1500, true, "10.30.9.9/32").
			add(config(func(c *api.FelixConfigurationSpec) {
				c.InterfaceExclude, c.InterfacePrefix = "kube-ipvs0, /^tap[0-9]+/", "cali, tap"
			})),
		"hosts-before-addresses":  base().add(hosted()...).nic("eth0", 1500, false).bears("a-by-address", "eth0"),
		"hosts-no-profile":        base().add(hostsOf(view.HostEndpoint{Name: "x", Interface: "eth0", Normal: "h-normal", Incomplete: []string{"profile x is not known"}})...),
		"hosts-staged":            base().add(stagedHosts("h-prednat")...),
		"hosts-staged-alone":      base().add(stagedHosts("h-staged-early")...),
		"hosts-own-prednat":       base().add(hostsOf(view.HostEndpoint{Name: "all", Interface: "*", Normal: "h-normal", PreDNAT: "h-prednat"}, view.HostEndpoint{Name: "own", Interface: "eth0", Normal: "h-normal", Forward: "h-staged"})...),
		"closed-leaving-endpoint": base().add(policed(leaving)...).wire(leaving),
	}
}

// vxlanWorld is base with one VXLAN pool in each family, one block elsewhere, and a changed configuration.
func vxlanWorld(change func(*api.FelixConfigurationSpec)) *world {
	return base().add(config(change), pool("vx", "10.77.0.0/16", vxlan(api.VXLANAlways)), pool("v6", "fd00:77::/64", vxlan(api.VXLANAlways)),
		block("10.77.2.0/26", "worker-2", view.TunnelVXLAN))
}

func without(items []view.Item, id string) []view.Item {
	return slices.DeleteFunc(items, func(it view.Item) bool { return it.Key().ID == id })
}

func TestGolden(t *testing.T) {
	for name, w := range scenarios() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".txt")
			got := text(w.state())
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "run the test with -update and review the difference")
			require.Equal(t, string(want), got)
		})
	}
}

// text is all that a node should hold, for people.
func text(s *state.State) string {
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			slices.Sort(lines)
			fmt.Fprintf(&b, "%s\n  %s\n", title, strings.Join(lines, "\n  "))
		}
	}
	fmt.Fprintf(&b, "pod mtu %d\n", render.PodMTU(s))
	section("sysctls", lines(slices.Values(render.Sysctls(s)), func(y desired.Sysctl) string { return y.Path + "=" + y.Value }))
	section("links", lines(maps.Values(render.Links(s)), func(l desired.WorkloadLink) string {
		return fmt.Sprintf("%s mtu %d v4 %v v6 %v spoofing %v", l.Name, l.MTU, l.IPv4, l.IPv6, l.AllowSpoofing) + within(l.Netns)
	}))
	t := render.TunnelState(s)
	section("tunnels", lines(maps.Values(t.VXLAN), func(v desired.VXLAN) string {
		return fmt.Sprintf("%s id %d port %d local %s dev %s mac %s mtu %d address %s", v.Name, v.VNI, v.Port, v.Local, v.Parent, v.MAC, v.MTU, v.Address)
	}))
	section("ipip", lines(maps.Values(t.IPIP), func(v desired.IPIP) string {
		out := fmt.Sprintf("%s local %s dev %s mtu %d address %s", v.Name, v.Local, v.Parent, v.MTU, v.Address)
		if v.Uplinks != "" {
			out += " uplinks " + v.Uplinks
		}
		return out
	}))
	section("takes ipip from", lines(maps.Keys(t.Decaps), func(a netip.Addr) string {
		if out := t.Decaps[a].Out; out != 0 {
			return fmt.Sprintf("%s, to which it leaves by %d", a, out)
		}
		return a.String()
	}))
	section("neighbours", lines(maps.Keys(t.Neighbors), func(k desired.NeighborKey) string { return k.String() + " lladdr " + t.Neighbors[k].String() }))
	section("fdb", lines(maps.Keys(t.FDB), func(k desired.FDBKey) string { return k.String() + " dst " + t.FDB[k].String() }))
	routes, encaps := render.Routes(s), render.Encaps(render.Routes(s))
	section("routes", lines(maps.Values(routes), desired.Route.String))
	section("encapsulated to", lines(maps.Keys(encaps), func(p netip.Prefix) string { return p.String() + " " + encaps[p].Remote.String() }))
	section("problems", lines(slices.Values(render.Problems(s)), func(p render.Problem) string { return p.Capability + ": " + p.Message }))
	section("announced", lines(slices.Values(render.Announced(s)), netip.Prefix.String))
	fw := render.FirewallState(s)
	section("settings", settingsLines(fw.Settings))
	section("sets", lines(maps.Keys(fw.Sets), func(id string) string {
		members := lines(slices.Values(fw.Sets[id].Members), func(m view.Member) string { return m.Prefix.String() })
		return id + " {" + strings.Join(members, " ") + "}"
	}))
	section("chains", lines(maps.Keys(fw.Chains), func(name string) string {
		return fmt.Sprintf("%s, %d rules%s", name, len(fw.Chains[name].Rules), layers(fw.Chains[name].In))
	}))
	section("hosts", lines(maps.Keys(fw.Hosts), func(name string) string {
		h := fw.Hosts[name]
		out := name + " " + h.Endpoint
		for pass := desired.Untracked; pass <= desired.Normal; pass++ {
			if ways := h.Of(pass); ways != (desired.Ways{}) {
				out += fmt.Sprintf("; %s in %s out %s", pass, ways.Ingress, ways.Egress)
			}
		}
		for pass, ways := range h.Counted {
			if ways != (desired.Ways{}) {
				out += fmt.Sprintf("; %s counted in %s out %s", desired.HostPass(pass), ways.Ingress, ways.Egress)
			}
		}
		if h.ClosedBecause != "" {
			out += "; closed: " + h.ClosedBecause
		}
		return out
	}))
	section("endpoints", lines(maps.Keys(fw.Workloads), func(name string) string {
		w := fw.Workloads[name]
		if w.Closed() {
			return fmt.Sprintf("%s %s closed: %s", name, w.Endpoint, w.ClosedBecause)
		}
		return fmt.Sprintf("%s %s in %s out %s sources %v", name, w.Endpoint, w.Ingress, w.Egress, w.AllowedSources)
	}))
	return b.String()
}

func settingsLines(s desired.Settings) []string {
	out := []string{fmt.Sprintf("workloads %v to host %d reject %v accept invalid %v vxlan from pods %v ipip from pods %v",
		s.WorkloadPrefixes, s.EndpointToHost, s.RejectDenied, s.AcceptInvalid, s.AllowVXLANFromWorkloads, s.AllowIPIPFromWorkloads)}
	if l := s.LogLimit; l.Rate > 0 {
		out = append(out, fmt.Sprintf("log lines %d each %v, %d at once", l.Rate, l.Per, l.Burst))
	}
	if !s.NoIPv6 {
		out = append(out, "policy of IPv6")
	}
	if n := s.NATOutgoing; n != nil {
		out = append(out, fmt.Sprintf("nat outgoing: not to hosts %v by %q from %v %v ports %d-%d random %v", n.ExcludeHosts, n.OutInterface, n.Source4, n.Source6, n.Ports.First, n.Ports.Last, n.RandomizePorts))
	}
	for _, f := range s.Floating {
		out = append(out, fmt.Sprintf("floating %v leads to %v", f.External, f.Internal))
	}
	for _, v := range []*desired.VXLANAdmission{s.VXLAN4, s.VXLAN6} {
		if v != nil {
			out = append(out, fmt.Sprintf("vxlan admitted on %s port %d", v.Device, v.Port))
		}
	}
	if s.IPIP != nil {
		out = append(out, "ipip admitted on "+s.IPIP.Device)
	}
	return out
}

func layers(in desired.Layers) string {
	if in == desired.Filter {
		return ""
	}
	out := ", in"
	for _, l := range []struct {
		layer desired.Layers
		name  string
	}{{desired.Filter, "filter"}, {desired.Mangle, "mangle"}, {desired.Raw, "raw"}} {
		if in.Has(l.layer) {
			out += " " + l.name
		}
	}
	return out
}

func lines[T any](all func(func(T) bool), line func(T) string) []string {
	var out []string
	for v := range all {
		out = append(out, line(v))
	}
	return out
}

func within(netns string) string {
	if netns == "" {
		return ""
	}
	return " and in " + netns
}
