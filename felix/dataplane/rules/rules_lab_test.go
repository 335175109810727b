//go:build lab

package rules_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/felix/desired"
)

// list prints what any driver has in the kernel.
const list = `nft list tables | grep calico || true
	(iptables-legacy-save; ip6tables-legacy-save) | grep cali- || true
	(iptables-nft-save; ip6tables-nft-save) | grep cali- || true
	ipset list -n | grep ^cali || true`

var kind = rulestest.Kind{
	Name: "chosen", List: list,
	New: func(ns *labtest.Namespace) (rulestest.Driver, error) { return rules.New(rules.Config{In: ns.In}) },
}

// by is the settings under which a kind of driver is used.
func by(k rules.Kind) desired.Rules {
	switch k {
	case rules.IPTablesLegacy:
		return desired.Rules{NFTables: desired.Avoid, Backend: desired.LegacyBackend}
	case rules.IPTablesNFT:
		return desired.Rules{NFTables: desired.Avoid, Backend: desired.NFTBackend}
	}
	return desired.Rules{NFTables: desired.Use}
}

// only80 lets pod b be reached at port 80 by pod a's address only, in a set.
func only80() desired.FirewallDelta {
	policy := view.Policy{ID: "np/s/web", Ingress: []view.Rule{{
		Action: view.Allow, Protocol: 6, Source: view.Match{Sets: []string{"s:a"}}, Destination: view.Match{Ports: rulestest.Port(80)},
	}}}
	l := view.PolicyList{ID: "web", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy.ID}}}, Profiles: []string{"pro/all"}}
	c := rulestest.Firewall(map[string]desired.Workload{"cali1": rulestest.Under("open"), "cali2": rulestest.Under("web")},
		append(rulestest.OpenLists, l), policy, rulestest.AllowAll)
	c.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: rulestest.Members("10.0.1.1/32", "fd00:1::1/128")})
	return c
}

// moving is a firewall in which marks that one hook writes are read in later ones: only80, and a host endpoint of up0 with
// policies before connection tracking (port 84), before the destination is translated (85), and where what the host sends to
// a service leaves (87, not 88).
func moving(w *rulestest.World) desired.FirewallDelta {
	for _, p := range []string{":80", ":81"} {
		w.Listen(w.B, p)
	}
	for _, p := range []string{":84", ":85", ":86"} {
		w.Listen(w.Node, p)
	}
	for _, p := range []string{":87", ":88"} {
		w.Listen(w.Outside, p)
	}
	w.Node.Run(w.T(), "nft 'table ip services { chain out { type nat hook output priority -100; ip daddr 192.168.9.9 dnat to "+rulestest.OutsideAddr+"; }; }'")
	c := only80()
	rulestest.Protect(&c, "up0", rulestest.Endpoint{
		desired.Untracked: {Ingress: []view.Rule{rulestest.AllowTo(6, 84)}, Egress: []view.Rule{rulestest.AllowFrom(6, 84)}},
		desired.PreDNAT:   {Ingress: []view.Rule{rulestest.AllowTo(6, 85)}},
		desired.Normal:    {Ingress: []view.Rule{}, Egress: []view.Rule{rulestest.AllowTo(6, 87)}},
	})
	return c
}

// The firewall moves from each driver to each other while connections are made, allowed and forbidden: none that is
// forbidden is made, none that is allowed fails, and none that is established is cut.
func TestMovingUnderTraffic(t *testing.T) {
	w := kind.NewWorld(t)
	chosen := w.Driver.(*rules.Rules)
	c := moving(w)
	c.Settings.Rules = by(rules.NFTables)
	chosen.Whole()
	w.Apply(c)
	w.Watch()
	established, err := rulestest.Dial(w.A, rulestest.AddrB+":80", rulestest.Patience)
	require.NoError(t, err)
	defer established.Close()

	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	var leaked, allowed atomic.Int64
	// As fast as they can: a gap of a millisecond would show.
	try := func(from *labtest.Namespace, to string, want bool) {
		group.Go(func() {
			_ = from.In(func() error {
				for ctx.Err() == nil {
					d := net.Dialer{Timeout: 20 * time.Millisecond}
					if want {
						d.Timeout = rulestest.Patience
					}
					c, err := d.Dial("tcp", to)
					switch {
					case err == nil && want:
						allowed.Add(1)
					case err == nil:
						leaked.Add(1)
					case want && !assert.NoError(t, err, "an allowed connection to %s", to):
						return err
					}
					if err == nil {
						_ = c.Close()
					}
				}
				return nil
			})
		})
	}
	for range 3 {
		try(w.A, rulestest.AddrB+":81", false)
	}
	try(w.A, rulestest.AddrB+":80", true)
	try(w.Outside, rulestest.NodeAddr+":84", true)
	try(w.Outside, rulestest.NodeAddr+":85", true)
	try(w.Outside, rulestest.NodeAddr+":86", false)
	try(w.Node, "192.168.9.9:87", true)
	try(w.Node, "192.168.9.9:88", false)
	order := []rules.Kind{
		rules.IPTablesLegacy, rules.NFTables, rules.IPTablesNFT, rules.NFTables, rules.IPTablesLegacy, rules.IPTablesNFT, rules.IPTablesLegacy,
	}
	for _, to := range order {
		s := *c.Settings
		s.Rules = by(to)
		w.Apply(desired.FirewallDelta{Settings: &s})
		require.Equal(t, to, chosen.Kind())
		require.True(t, chosen.InSync())
		require.True(t, rulestest.Alive(established, rulestest.Patience), "moved to %s", to)
		onlyHas(t, w.Node, to)
	}
	stop()
	group.Wait()
	assert.Zero(t, leaked.Load(), "forbidden connections")
	assert.Positive(t, allowed.Load())
	t.Logf("%d allowed connections", allowed.Load())
	w.Node.Run(t, "iptables-legacy -w 60 -F cali-FORWARD")
	require.Eventually(t, func() bool {
		out, err := w.Node.Try("iptables-legacy-save | grep 'A cali-FORWARD'")
		return err == nil && out != ""
	}, rulestest.Patience, 10*time.Millisecond, "the driver that is in force now is watched")
	w.Passes(w.A, rulestest.AddrB+":81", false, "repaired")
}

// onlyHas checks that nothing is there of other drivers.
func onlyHas(t *testing.T, ns *labtest.Namespace, k rules.Kind) {
	t.Helper()
	for other, command := range map[rules.Kind]string{
		rules.NFTables:       "nft list tables | grep calico || true",
		rules.IPTablesLegacy: "(iptables-legacy-save; ip6tables-legacy-save) 2>/dev/null | grep cali- || true",
		rules.IPTablesNFT:    "(iptables-nft-save; ip6tables-nft-save) 2>/dev/null | grep cali- || true",
	} {
		if got := ns.Run(t, command); other == k {
			assert.NotEmpty(t, got, k)
		} else {
			assert.Empty(t, got, "in force is %s, left of %s", k, other)
		}
	}
	if sets := ns.Run(t, "ipset list -n | grep ^cali || true"); k == rules.NFTables {
		assert.Empty(t, sets)
	}
}

// What a former felix left by another driver goes, once the present one has committed.
func TestLeftByAnotherDriver(t *testing.T) {
	for _, former := range []rules.Kind{rules.NFTables, rules.IPTablesLegacy, rules.IPTablesNFT} {
		for _, now := range []rules.Kind{rules.NFTables, rules.IPTablesLegacy, rules.IPTablesNFT} {
			t.Run(string(former)+" then "+string(now), func(t *testing.T) {
				ns := labtest.Enter(t)
				for _, k := range []rules.Kind{former, now} {
					d := kind.Open(t, ns)
					c := only80()
					c.Settings.Rules = by(k)
					d.Whole()
					rulestest.Apply(t, d, c)
				}
				onlyHas(t, ns, now)
			})
		}
	}
}

// Auto does as kube-proxy does, once that was found twice.
func TestAutoDoesAsKubeProxyDoes(t *testing.T) {
	for _, c := range []struct {
		name, have string
		want       rules.Kind
	}{
		{"no kube-proxy", "true", rules.NFTables},
		{"nftables", "nft 'add table ip kube-proxy; add chain ip kube-proxy services'; iptables-legacy -t nat -N KUBE-SERVICES", rules.NFTables},
		{"iptables, nft", "iptables-nft -t nat -N KUBE-SERVICES", rules.IPTablesNFT},
		{"iptables, legacy", "iptables-legacy -t nat -N KUBE-SERVICES", rules.IPTablesLegacy},
		{"kubelet alone", "iptables-nft -t mangle -N KUBE-KUBELET-CANARY", rules.NFTables},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := labtest.Enter(t)
			ns.Run(t, c.have)
			r, err := rules.New(rules.Config{In: ns.In})
			require.NoError(t, err)
			defer r.Close()
			assert.Equal(t, c.want, r.Kind())
		})
	}
}

// A driver that cannot be used leaves the firewall where it is, and says so.
func TestADriverThatCannotBeUsed(t *testing.T) {
	ns := labtest.Enter(t)
	r := kind.Open(t, ns)
	r.Whole()
	rulestest.Apply(t, r, only80())
	t.Setenv("PATH", "/nowhere")
	s := *only80().Settings
	s.Rules = by(rules.IPTablesLegacy)
	rulestest.Apply(t, r, desired.FirewallDelta{Settings: &s})
	entries := r.Entries()
	require.NotEmpty(t, entries)
	assert.Equal(t, dataplane.Object{Kind: dataplane.KindRule, Key: "driver"}, entries[0].Object)
	assert.ErrorContains(t, entries[0].Err, "install iptables")
}
