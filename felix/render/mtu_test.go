package render_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
)

// felix is the configuration with some settings changed, in a world of its own.
func felix(change func(*api.FelixConfigurationSpec)) *world { return base().add(config(change)) }

func TestHostMTU(t *testing.T) {
	pattern := func(p string) *world {
		return felix(func(c *api.FelixConfigurationSpec) { c.MTUIfacePattern = p })
	}
	usual := api.EffectiveFelix().MTUIfacePattern
	for name, c := range map[string]struct {
		world *world
		want  int
		of    []string
	}{
		"the interface with the address":                {base(), 1500, []string{"eth0"}},
		"whatever its name":                             {base().nic("eth0", 1500, true).nic("bond0", 8950, true, "10.30.0.206/24"), 8950, []string{"bond0"}},
		"even while it is down":                         {base().nic("eth0", 1400, false, "10.30.0.206/24"), 1400, []string{"eth0"}},
		"not those that nothing leaves by":              {base().nic("eth1", 600, true), 1500, []string{"eth0"}},
		"those that packets to nodes leave by":          {base().nic("storage0", 1400, true).leaves("storage0"), 1400, []string{"eth0", "storage0"}},
		"not one that went":                             {base().leaves("storage0"), 1500, []string{"eth0"}},
		"the smaller of two families":                   {base().nic("eth0", 1500, true, "10.30.0.206/24").nic("six", 1280, true, "fd00:30::206/64"), 1280, []string{"eth0", "six"}},
		"a pattern narrows":                             {pattern("^eth0").nic("storage0", 1400, true).leaves("storage0"), 1500, []string{"eth0"}},
		"a pattern extends":                             {pattern("^(eth|docker)"), 1400, []string{"docker0", "eth0"}},
		"a pattern takes what is up":                    {pattern("^(eth|docker)").nic("docker0", 1400, false), 1500, []string{"eth0"}},
		"the usual pattern is no choice":                {pattern(usual).nic("eth1", 600, true), 1500, []string{"eth0"}},
		"a pattern that matches nothing says nothing":   {pattern("^nothing"), 1500, []string{"eth0"}},
		"the usual names if the address is nowhere":     {base().nic("eth0", 1500, true).nic("ens5", 1300, true).nic("ens6", 1200, false), 1300, []string{"ens5", "eth0"}},
		"nothing known":                                 {&world{}, 1460, nil},
		"an interface that has no MTU tells nothing":    {&world{host: state.Host{Interfaces: map[string]state.Interface{"eth0": {Up: true}}}}, 1460, nil},
		"an address that two have counts for the first": {base().nic("aaa", 1450, true, "10.30.0.206/24", "fd00:30::206/64"), 1450, []string{"aaa"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.world.state()
			require.Equal(t, c.want, render.HostMTU(s))
			require.ElementsMatch(t, c.of, render.Uplinks(s))
		})
	}
}

func TestPodMTU(t *testing.T) {
	four := func(change ...func(*api.IPPool)) *world { return base().add(pool("four", "10.77.0.0/16", change...)) }
	both := func() *world {
		return four(vxlan(api.VXLANAlways)).add(pool("old", "10.78.0.0/16", ipip(api.IPIPAlways)))
	}
	with := func(w *world, change func(*api.FelixConfigurationSpec)) *world { return w.add(config(change)) }
	for name, c := range map[string]struct {
		world   *world
		want    int
		warning string
	}{
		"direct":                          {four(), 1500, ""},
		"ipip":                            {four(ipip(api.IPIPAlways)), 1480, ""},
		"ipip cross-subnet":               {four(ipip(api.IPIPCrossSubnet)), 1480, ""},
		"vxlan":                           {four(vxlan(api.VXLANAlways)), 1450, ""},
		"vxlan cross-subnet":              {four(vxlan(api.VXLANCrossSubnet)), 1450, ""},
		"both tunnels":                    {both(), 1450, ""},
		"vxlan v6":                        {base().add(pool("six", "fd00:77::/64", vxlan(api.VXLANAlways))), 1430, ""},
		"a disabled pool still has pods":  {four(vxlan(api.VXLANAlways), disabled), 1450, ""},
		"jumbo":                           {four(ipip(api.IPIPAlways)).nic("eth0", 9001, true, "10.30.0.206/24"), 8981, ""},
		"vxlanMTU":                        {with(four(vxlan(api.VXLANAlways)), func(c *api.FelixConfigurationSpec) { c.VXLANMTU = new(1400) }), 1400, ""},
		"vxlanMTU of a tunnel not in use": {with(four(), func(c *api.FelixConfigurationSpec) { c.VXLANMTU = new(1400) }), 1500, ""},
		"vxlanMTUV6":                      {with(base().add(pool("six", "fd00:77::/64", vxlan(api.VXLANAlways))), func(c *api.FelixConfigurationSpec) { c.VXLANMTUV6 = new(1300) }), 1300, ""},
		"ipipMTU":                         {with(four(ipip(api.IPIPAlways)), func(c *api.FelixConfigurationSpec) { c.IPIPMTU = new(1440) }), 1440, ""},
		"vxlanEnabled":                    {with(four(), func(c *api.FelixConfigurationSpec) { c.VXLANEnabled = new(true) }), 1430, ""},
		"ipipEnabled":                     {with(four(), func(c *api.FelixConfigurationSpec) { c.IPIPEnabled = new(true) }), 1480, ""},
		"more than fits into VXLAN": {
			with(four(vxlan(api.VXLANAlways)), func(c *api.FelixConfigurationSpec) { c.VXLANMTU = new(1500) }), 1450,
			"vxlanMTU is 1500, but the network between the nodes carries packets of 1500 bytes: 1450 is used; set it to 1450 or less, or to 0 for automatic",
		},
		"more than fits into IP-in-IP": {
			with(four(ipip(api.IPIPAlways)), func(c *api.FelixConfigurationSpec) { c.IPIPMTU = new(1500) }), 1480,
			"ipipMTU is 1500, but the network between the nodes carries packets of 1500 bytes: 1480 is used; set it to 1480 or less, or to 0 for automatic",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.world.state()
			require.Equal(t, c.want, render.PodMTU(s))
			if c.warning == "" {
				require.Empty(t, render.MTUWarnings(s))
				return
			}
			require.Equal(t, []string{c.warning}, render.MTUWarnings(s))
		})
	}
}

// Whatever the pools and settings, a packet of a pod fits into every tunnel, and every tunnel's packet into what is below it.
func TestWhatPodsSendFits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 7))
	some := func(low, high int) *int {
		if r.IntN(2) == 0 {
			return nil
		}
		return new(low + r.IntN(high-low))
	}
	for range 300 {
		w := base().nic("eth0", 1000+r.IntN(8001), true, "10.30.0.206/24", "fd00:30::206/64").nic("eth1", 1000+r.IntN(500), true)
		if r.IntN(3) == 0 {
			w.leaves("eth1")
		}
		four, six := pool("four", "10.77.0.0/16"), pool("six", "fd00:77::/64")
		switch r.IntN(3) {
		case 0:
			four = pool("four", "10.77.0.0/16", vxlan(api.VXLANCrossSubnet))
		case 1:
			four = pool("four", "10.77.0.0/16", ipip(api.IPIPCrossSubnet))
		}
		if r.IntN(2) == 0 {
			six = pool("six", "fd00:77::/64", vxlan(api.VXLANAlways))
		}
		w.add(four, six, config(func(c *api.FelixConfigurationSpec) {
			c.VXLANMTU, c.VXLANMTUV6, c.IPIPMTU = some(900, 9000), some(900, 9000), some(900, 9000)
			c.MTUIfacePattern = []string{c.MTUIfacePattern, "^eth", "^nothing"}[r.IntN(3)]
		})).wire(follows(pod("web", "10.77.1.9")))
		s := w.state()
		mtu := render.PodMTU(s)
		require.Equal(t, mtu, render.Links(s)["caliweb"].MTU)
		tunnels := render.TunnelState(s)
		for name, v := range tunnels.IPIP {
			require.LessOrEqual(t, mtu, v.MTU, name)
			require.LessOrEqual(t, v.MTU+20, w.host.Interfaces["eth0"].MTU, "what went into it would be lost")
		}
		for name, v := range tunnels.VXLAN {
			require.LessOrEqual(t, mtu, v.MTU, name)
			overhead := map[string]int{desired.VXLANDevice4: 50, desired.VXLANDevice6: 70}[name]
			require.LessOrEqual(t, v.MTU+overhead, w.host.Interfaces["eth0"].MTU, "the kernel would refuse it")
		}
	}
}
