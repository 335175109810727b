package render_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
)

// mixedModes are scenarios of tunnels, with what is in testdata/<name>.txt as outcome.
func mixedModes() map[string]*world {
	ipipBlocks := func(change func(*api.FelixConfigurationSpec)) *world {
		return base().add(config(change), pool("pods", "10.77.0.0/16", ipip(api.IPIPAlways), natted),
			block("10.77.1.0/26", self, view.TunnelIPIP), block("10.77.2.0/26", "worker-2", view.TunnelIPIP),
			block("10.77.3.0/26", "worker-3", view.TunnelIPIP))
	}
	nothing := func(*api.FelixConfigurationSpec) {}
	bare := node(self, "10.30.0.206/24", "fd00:30::206/64", 1)
	bare.IPIPAddr = netip.Addr{}
	changing := func(dst string, send view.Tunnel, receive ...view.Tunnel) view.Route {
		r := block(dst, "worker-3", send)
		r.Receive = receive
		return r
	}
	return map[string]*world{
		"ipip-always": ipipBlocks(nothing).learn(path("10.77.2.0/26", "10.30.0.56")), // typha's table decides, not bird
		"ipip-borrowed": ipipBlocks(nothing).add(typed(block("10.77.1.9/32", "worker-2", view.TunnelIPIP), view.RouteWorkload),
			typed(block("10.88.3.1/32", "worker-3", view.TunnelIPIP), view.RouteTunnel),
			typed(block("10.77.3.9/32", self, view.TunnelIPIP), view.RouteWorkload)).wire(pod("web", "10.77.3.9")),
		"ipip-no-address-yet": ipipBlocks(nothing).replace(bare),
		"ipip-settings": ipipBlocks(func(c *api.FelixConfigurationSpec) {
			c.IPIPMTU, c.ExternalNodesCIDRList = new(1400), &[]string{"10.99.0.0/16", "10.98.1.2"}
			c.DeviceRouteSourceAddress, c.DeviceRouteSourceAddressIPv6 = "10.30.0.206", "fd00:30::206"
			c.IPv4NormalRoutePriority, c.IPv6NormalRoutePriority = new(77), new(88)
		}).wire(pod("web", "10.77.1.9", "fd00:77::41")),
		"ipip-forced-off": ipipBlocks(func(c *api.FelixConfigurationSpec) { c.IPIPEnabled = new(bool) }).without(api.FeatureIPIP),
		"ipip-forced-on":  base().add(config(func(c *api.FelixConfigurationSpec) { c.IPIPEnabled = new(true) })),
		"ipip-lacking":    ipipBlocks(nothing).without(api.FeatureIPIP).learn(path("10.77.2.0/26", "10.30.0.56")),
		"ipip-not-on-ipv6": base().add(pool("six", "fd00:77::/64", ipip(api.IPIPAlways)),
			block("fd00:77::100/122", "worker-2", view.TunnelIPIP)),
		"lacking-all": base().without(api.FeatureIPIP, api.FeatureVXLAN).add(
			pool("i", "10.77.0.0/16", ipip(api.IPIPCrossSubnet)), pool("v", "10.78.0.0/16", vxlan(api.VXLANAlways)),
			pool("v6", "fd00:78::/64", vxlan(api.VXLANAlways)), pool("d", "10.79.0.0/16"),
			crossSubnet(block("10.77.2.0/26", "worker-2", view.TunnelIPIP)), crossSubnet(block("10.77.3.0/26", "worker-3", view.TunnelIPIP)),
			block("10.78.2.0/26", "worker-2", view.TunnelVXLAN)),
		"all-modes": base().add(
			pool("ia", "10.71.0.0/16", ipip(api.IPIPAlways)), pool("ic", "10.72.0.0/16", ipip(api.IPIPCrossSubnet), natted),
			pool("va", "10.73.0.0/16", vxlan(api.VXLANAlways)), pool("vc", "10.74.0.0/16", vxlan(api.VXLANCrossSubnet)),
			pool("d", "10.75.0.0/16"), pool("v6", "fd00:73::/64", vxlan(api.VXLANCrossSubnet), natted), pool("d6", "fd00:75::/64"),
			block("10.71.2.0/26", "worker-2", view.TunnelIPIP), block("10.71.3.0/26", "worker-3", view.TunnelIPIP),
			crossSubnet(block("10.72.2.0/26", "worker-2", view.TunnelIPIP)), crossSubnet(block("10.72.3.0/26", "worker-3", view.TunnelIPIP)),
			block("10.73.2.0/26", "worker-2", view.TunnelVXLAN), block("10.73.3.0/26", "worker-3", view.TunnelVXLAN),
			crossSubnet(block("10.74.2.0/26", "worker-2", view.TunnelVXLAN)), crossSubnet(block("10.74.3.0/26", "worker-3", view.TunnelVXLAN)),
			block("10.75.2.0/26", "worker-2", view.TunnelNone), block("10.75.3.0/26", "worker-3", view.TunnelNone),
			crossSubnet(block("fd00:73::200/122", "worker-2", view.TunnelVXLAN)), crossSubnet(block("fd00:73::300/122", "worker-3", view.TunnelVXLAN)),
			block("fd00:75::200/122", "worker-2", view.TunnelNone), block("fd00:75::300/122", "worker-3", view.TunnelNone),
		).learn(path("10.75.2.0/26", "10.30.0.56"), path("10.75.3.0/26", "10.30.1.66"), path("10.71.2.0/26", "10.30.0.56"),
			path("fd00:75::200/122", "fd00:30::56"), path("fd00:75::300/122", "fd00:31::66")).
			wire(pod("web", "10.71.1.9", "fd00:75::41")),
		"ipip-to-direct-early": base().add(pool("pods", "10.77.0.0/16"), changing("10.77.3.0/26", view.TunnelIPIP, view.TunnelNone, view.TunnelIPIP)).
			learn(path("10.77.3.0/26", "10.30.1.66")),
		"ipip-to-direct-late": base().add(pool("pods", "10.77.0.0/16"), changing("10.77.3.0/26", view.TunnelNone, view.TunnelNone, view.TunnelIPIP)).
			learn(path("10.77.3.0/26", "10.30.1.66")),
		"ipip-to-vxlan-early": base().add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANAlways)), changing("10.77.3.0/26", view.TunnelIPIP, view.TunnelIPIP, view.TunnelVXLAN)),
		"ipip-to-vxlan-late":  base().add(pool("pods", "10.77.0.0/16", vxlan(api.VXLANAlways)), changing("10.77.3.0/26", view.TunnelVXLAN, view.TunnelIPIP, view.TunnelVXLAN)),
		// The node has another address by now, on another interface of another subnet.
		"readdressed": ipipBlocks(nothing).nic("eth0", 1500, true).nic("eth1", 1400, true, "10.30.1.7/24").
			replace(node(self, "10.30.1.7/24", "fd00:30::206/64", 1)).add(pool("vc", "10.74.0.0/16", vxlan(api.VXLANCrossSubnet)),
			crossSubnet(block("10.74.2.0/26", "worker-2", view.TunnelVXLAN)), crossSubnet(block("10.74.3.0/26", "worker-3", view.TunnelVXLAN))),
	}
}

// mode is a way to route a pool.
type mode struct {
	name  string
	set   func(*api.IPPool)
	send  view.Tunnel
	cross bool
}

var modes = []mode{
	{"direct", func(*api.IPPool) {}, view.TunnelNone, false},
	{"ipip", ipip(api.IPIPAlways), view.TunnelIPIP, false},
	{"ipip cross-subnet", ipip(api.IPIPCrossSubnet), view.TunnelIPIP, true},
	{"vxlan", vxlan(api.VXLANAlways), view.TunnelVXLAN, false},
	{"vxlan cross-subnet", vxlan(api.VXLANCrossSubnet), view.TunnelVXLAN, true},
}

// receives are the ways in which packets of a mode come.
func (m mode) receives() []view.Tunnel {
	if m.cross {
		return []view.Tunnel{view.TunnelNone, m.send}
	}
	return []view.Tunnel{m.send}
}

// routed is the table of a pool that has mode m but accepts also what accepts does.
func (m mode) routed(dst, to string, accepts mode) view.Route {
	r := view.Route{Dst: prefix(dst), Type: view.RouteBlock, Node: to, Send: m.send, CrossSubnet: m.cross}
	all := slices.Concat(m.receives(), accepts.receives())
	slices.Sort(all)
	r.Receive = slices.Compact(all)
	return r
}

// devices are the tunnel devices, by kind.
func devices(s *state.State) (out []view.Tunnel) {
	t := render.TunnelState(s)
	fw := render.FirewallState(s).Settings
	if len(t.IPIP) > 0 && fw.IPIP != nil {
		out = append(out, view.TunnelIPIP)
	}
	if len(t.VXLAN) > 0 && fw.VXLAN4 != nil {
		out = append(out, view.TunnelVXLAN)
	}
	return out
}

// Each mode to each other: at each step the routes are those of what is sent, and every way that anybody may still send in
// has its device and is admitted; in the end what is not needed is gone.
func TestModeChanges(t *testing.T) {
	near, far := "10.77.2.0/26", "10.77.3.0/26"
	// way is how a packet goes to a block: the device, or none for the node's own interface.
	way := func(s *state.State, dst string) view.Tunnel {
		r, ok := render.Routes(s)[desired.RouteKey{Table: desired.TableMain, Dst: prefix(dst)}]
		require.True(t, ok, "no route to %s", dst)
		require.Len(t, r.NextHops, 1)
		tunnel := map[string]view.Tunnel{"eth0": view.TunnelNone, desired.IPIPDevice: view.TunnelIPIP, desired.VXLANDevice4: view.TunnelVXLAN}[r.NextHops[0].Link]
		require.Equal(t, tunnel == view.TunnelIPIP, render.Encaps(render.Routes(s))[prefix(dst)].Remote.IsValid())
		return tunnel
	}
	for _, from := range modes {
		for _, to := range modes {
			t.Run(fmt.Sprintf("%s to %s", from.name, to.name), func(t *testing.T) {
				w := base().learn(path(near, "10.30.0.56"), path(far, "10.30.1.66")) // bird always knows
				w.add(pool("pods", "10.77.0.0/16", from.set), from.routed(near, "worker-2", from), from.routed(far, "worker-3", from))
				s := w.state()
				for i, step := range []struct{ send, accept, pool mode }{
					{from, from, from}, {from, to, to}, {to, from, to}, {to, to, to},
				} {
					s.Apply(view.Batch{Updates: []view.Item{
						pool("pods", "10.77.0.0/16", step.pool.set),
						step.send.routed(near, "worker-2", step.accept), step.send.routed(far, "worker-3", step.accept),
					}})
					wantNear := step.send.send
					if step.send.cross {
						wantNear = view.TunnelNone
					}
					require.Equal(t, wantNear, way(s, near), "step %d, same subnet", i)
					require.Equal(t, step.send.send, way(s, far), "step %d, other subnet", i)
					var need []view.Tunnel
					for _, tunnel := range []view.Tunnel{view.TunnelIPIP, view.TunnelVXLAN} {
						if step.send.send == tunnel || step.accept.send == tunnel || step.pool.send == tunnel {
							need = append(need, tunnel)
						}
					}
					require.Equal(t, need, devices(s), "step %d", i)
				}
			})
		}
	}
}

func TestRefusal(t *testing.T) {
	s := base().without(api.FeatureIPIP).add(pool("pods", "10.77.0.0/16", ipip(api.IPIPAlways)), pool("flat", "10.78.0.0/16")).state()
	require.Equal(t, "node worker-1: kernel has no ipip; pool pods wants ipipMode Always; load module ipip, or set vxlanMode",
		render.Refusal(s, addr("10.77.1.9")))
	require.Empty(t, render.Refusal(s, addr("10.78.1.9")))
	require.Empty(t, render.Refusal(s, addr("203.0.113.1")), "an address of no pool")
	require.Equal(t, state.All, s.SetCapabilities(state.Capabilities{Has: map[string]string{api.FeatureIPIP: "tc BPF"}}))
	require.Empty(t, render.Refusal(s, addr("10.77.1.9")), "it was loaded")
	require.Zero(t, s.SetCapabilities(state.Capabilities{Has: map[string]string{api.FeatureIPIP: "kernel module"}}))
}
