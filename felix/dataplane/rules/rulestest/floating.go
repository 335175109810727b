//go:build lab

package rulestest

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

func (k Kind) testFloating(t *testing.T) {
	const external, second, external6 = "203.0.113.5", "203.0.113.6", "fd20::5"
	w := k.NewWorld(t)
	clients := w.Listen(w.B, ":80")
	w.Listen(w.B, ":81")
	w.Outside.Run(t, "ip route add 203.0.113.0/24 via "+NodeAddr+"; ip -6 route add fd20::/64 via fd09::1")
	w.Node.Run(t, "ip route add "+external+" dev cali2; ip route add "+second+" dev cali2; ip -6 route add "+external6+" dev cali2")
	web := view.Policy{ID: "np/s/web", Ingress: []view.Rule{AllowTo(tcp, 80)}}
	list := view.PolicyList{
		ID: "web", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{web.ID}}}, Profiles: []string{"pro/all"},
	}
	d := Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under("web")}, append(OpenLists, list), web, AllowAll)
	off := *d.Settings
	leads := func(to string) desired.Floating {
		return desired.Floating{External: netip.MustParseAddr(to), Internal: netip.MustParseAddr(AddrB)}
	}
	d.Settings.Floating = []desired.Floating{leads(external), leads(second), {External: netip.MustParseAddr(external6), Internal: netip.MustParseAddr(SixB)}}
	w.Apply(d)
	from := func() string { return (<-clients).String() }

	w.Passes(w.Outside, external+":80", true, "from outside")
	assert.Equal(t, OutsideAddr, from(), "who asks stays who he is")
	w.Passes(w.Outside, second+":80", true, "another address of the same workload")
	assert.Equal(t, OutsideAddr, from())
	w.Passes(w.Outside, "["+external6+"]:80", true, "from outside in IPv6")
	assert.Equal(t, "fd09::2", from())
	w.Passes(w.A, external+":80", true, "from a workload")
	assert.Equal(t, AddrA, from())
	w.Passes(w.Node, external+":80", true, "from the host")
	from()
	w.Passes(w.Outside, external+":81", false, "policy judges what it leads to")
	w.Passes(w.B, second+":80", true, "to itself")
	assert.Equal(t, external, from(), "the first of its addresses")
	w.Passes(w.B, "["+external6+"]:80", true, "to itself in IPv6")
	assert.Equal(t, external6, from())

	w.Apply(desired.FirewallDelta{Settings: &off})
	w.Passes(w.Outside, external+":80", false, "taken away")
	w.Passes(w.Outside, AddrB+":80", true, "its own address")
}
