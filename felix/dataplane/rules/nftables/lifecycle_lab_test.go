//go:build lab

package nftables_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
	"github.com/muslin-net/muslin/felix/desired"
)

// rich is a firewall with something of everything.
func rich() desired.FirewallDelta {
	web := view.Policy{ID: "np/shop/web", Ingress: []view.Rule{
		{Action: view.Allow, Protocol: 6, Source: view.Match{Sets: []string{"s:a"}}, Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}}}},
		{Action: view.Allow, Source: view.Match{Nets: nets("10.0.0.0/8", "192.168.0.0/16")}, Destination: view.Match{NamedPorts: []string{"n:http"}}},
		{Action: view.Log},
	}}
	list := view.PolicyList{ID: "shop", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/shop/web"}}}, Profiles: []string{"pro/all"}}
	spoofer := under("open")
	spoofer.AllowedSources = nets("10.99.0.0/24", "fd99::/64")
	known := under("open")
	known.Addresses = addrs("10.0.1.1", "fd00:1::1")
	d := firewall(map[string]desired.Workload{"cali1": known, "cali2": under("shop"), "cali3": spoofer, "cali4": {}},
		append(openLists, list), web, allowAll)
	d.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: members("10.0.1.1/32", "10.0.4.0/24", "10.0.4.7/32", "10.0.5.0/24", "255.255.255.255/32", "fd00:1::/64")})
	d.Sets.Put("n:http", desired.Set{Type: view.SetIPPort, Members: []view.Member{{Prefix: netip.MustParsePrefix("10.0.1.2/32"), Protocol: 6, Port: 8080}}})
	d.Sets.Put(desired.SetMasqPools, desired.Set{Type: view.SetNet, Members: members("10.0.0.0/16", "fd00::/16")})
	d.Settings.NATOutgoing = &desired.NATOutgoing{}
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	d.Settings.VXLAN6 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan-v6.calico"}
	d.Settings.IPIP = &desired.IPIPAdmission{Device: "tunl0"}
	return d
}

func open(t testing.TB) *nftables.Driver {
	d, err := nftables.New(nftables.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func apply(t testing.TB, d *nftables.Driver, c desired.FirewallDelta) {
	t.Helper()
	d.Update(c)
	require.NoError(t, d.Apply(context.Background()))
	require.True(t, d.InSync())
}

func TestRestartAdoptsWithoutWriting(t *testing.T) {
	ns := labtest.Enter(t)
	apply(t, open(t), rich())
	before := ns.Run(t, "nft -a list ruleset")
	for range 2 {
		again := open(t)
		again.Whole()
		apply(t, again, rich())
		assert.Zero(t, again.Writes())
	}
	assert.Equal(t, before, ns.Run(t, "nft -a list ruleset"))
}

func TestRestartKeepsTheUnknownUntilWhole(t *testing.T) {
	ns := labtest.Enter(t)
	apply(t, open(t), rich())
	ns.Run(t, "nft add table ip other; nft add chain ip other x")
	second := open(t)
	second.Update(bothOpen())
	require.NoError(t, second.Apply(context.Background()))
	list := ns.Run(t, "nft list ruleset")
	for _, still := range []string{"np/shop/web", "cali40s-a", `"cali3" : jump`, "raw-cali-rpf-skip-cali3"} {
		assert.Contains(t, list, still)
	}
	assert.Contains(t, ns.Run(t, "nft list map ip calico cali-to-wl-dispatch"), `"cali2" : jump filter-cali-tw-open`, "what is known is put right at once")
	second.Whole()
	require.NoError(t, second.Apply(context.Background()))
	list = ns.Run(t, "nft list ruleset")
	for _, gone := range []string{"np/shop/web", "cali40s-a", `"cali3"`, `"cali4"`, "masquerade", "notrack", "cali-ip-"} {
		assert.NotContains(t, list, gone)
	}
	assert.Contains(t, list, "table ip other", "others' tables are not ours")
}

func TestRepairsWithinASecond(t *testing.T) {
	w := newWorld(t)
	w.driver.Whole()
	w.apply(rich())
	w.watch()
	normal := func() string {
		out, err := w.node.Try("nft -s list ruleset")
		if err != nil {
			return err.Error()
		}
		return inOrder(out)
	}
	want := normal()
	for _, c := range []struct{ name, do string }{
		{"everything flushed", "nft flush ruleset"},
		{"a table deleted", "nft delete table ip6 calico"},
		{"a chain flushed", "nft flush chain ip calico filter-cali-pi-np/shop/web"},
		{"a rule deleted", "nft delete rule ip calico filter-FORWARD handle $(nft -a list chain ip calico filter-FORWARD | sed -n 's/.*established.*handle //p')"},
		{"a rule added", "nft insert rule ip calico filter-FORWARD accept"},
		{"a rule replaced under the same comment", `nft replace rule ip calico filter-cali-tw-shop handle $(nft -a list chain ip calico filter-cali-tw-shop | sed -n 's/.*end of tier.*handle //p') accept comment \"$(nft list chain ip calico filter-cali-tw-shop | sed -n 's/.*comment "\(end of tier[^"]*\)".*/\1/p')\"`},
		{"an element deleted", "nft delete element ip calico cali40s-a { 10.0.4.0/24 }"},
		{"an element added", "nft add element ip calico cali40s-a { 10.77.0.0/16 }"},
		{"a verdict deleted", `nft delete element ip calico cali-to-wl-dispatch { "cali2" : jump filter-cali-tw-shop }`},
		{"a set flushed", "nft flush set ip calico cali40n-http"},
		{"a chain and a set of others in our table", "nft add chain ip calico intruder; nft add set ip calico strange '{ type mark; }'"},
		{"a base chain deleted", "nft flush chain ip calico raw-OUTPUT; nft delete chain ip calico raw-OUTPUT"},
	} {
		w.node.Run(t, c.do)
		require.Eventually(t, func() bool { return normal() == want }, time.Second, 10*time.Millisecond, "%s: %s\nwant %s\n got %s", c.name, c.do, want, normal())
	}
}

// inOrder sorts the chains and sets of a listing: what was made anew is listed last.
func inOrder(list string) string {
	var blocks []string
	table, block := "", ""
	for line := range strings.Lines(list) {
		switch {
		case strings.HasPrefix(line, "table"):
			table = line
		case line == "\t}\n":
			blocks = append(blocks, table+block)
			block = ""
		case line != "\n" && line != "}\n":
			block += line
		}
	}
	slices.Sort(blocks)
	return strings.Join(blocks, "\n")
}

func TestABaseChainWithAnotherHookIsMadeAnew(t *testing.T) {
	ns := labtest.Enter(t)
	ns.Run(t, "nft add table ip calico; nft add chain ip calico filter-FORWARD '{ type filter hook forward priority 7; policy drop; }'")
	apply(t, open(t), rich())
	assert.Contains(t, ns.Run(t, "nft list chain ip calico filter-FORWARD"), "hook forward priority filter; policy accept")
}

func TestWhatTheKernelRefusesBlocksNothingElse(t *testing.T) {
	w := newWorld(t)
	w.listen(w.b, ":80")
	w.driver.Whole()
	d := bothOpen()
	// Two chains that call each other: the kernel allows no loops.
	for _, pair := range [][2]string{{"cali-pi-loop1", "cali-pi-loop2"}, {"cali-pi-loop2", "cali-pi-loop1"}} {
		d.Chains.Put(pair[0], desired.Chain{Name: pair[0], Rules: []desired.Rule{{Do: desired.Jump, Target: pair[1], Comment: pair[1]}}})
	}
	d.Chains.Put("cali-tw-bad", desired.Chain{Name: "cali-tw-bad", Rules: []desired.Rule{{Do: desired.Jump, Target: "cali-pi-loop1", Comment: "loop"}, {Do: desired.Allow, Comment: "allow"}}})
	bad := under("open")
	bad.Ingress = "cali-tw-bad"
	d.Workloads.Put("cali3", bad)
	w.driver.Update(d)
	err := w.driver.Apply(context.Background())
	require.Error(t, err)
	var one *dataplane.ObjectError
	require.True(t, errors.As(err, &one), "%v", err)
	assert.Contains(t, err.Error(), "cali3", "the error names the workload that stays closed")
	w.passes(w.a, addrB+":80", true, "what is right is programmed")
	assert.NotContains(t, w.node.Run(t, "nft list map ip calico cali-to-wl-dispatch"), "cali3", "and what is not is unknown, so it drops")
	assert.False(t, w.driver.InSync())

	// A chain that cannot be: callers find it, and it drops.
	d = desired.FirewallDelta{}
	d.Chains.Put("cali-pi-loop1", desired.Chain{Name: "cali-pi-loop1", Rules: []desired.Rule{{Do: desired.Jump, Target: "cali-tw-open", Comment: "loop"}}})
	d.Chains.Put("cali-pri-all", desired.Chain{Name: "cali-pri-all", Rules: []desired.Rule{{Do: desired.Jump, Target: "cali-pi-loop1", Comment: "loop"}}})
	w.driver.Update(d)
	require.ErrorContains(t, w.driver.Apply(context.Background()), "cali-pri-all")
	assert.Contains(t, w.node.Run(t, "nft list ruleset"), "refused by the kernel")
	w.passes(w.a, addrB+":80", false, "what the kernel refuses drops")
	var c desired.FirewallDelta
	for _, name := range []string{"cali-pi-loop1", "cali-pi-loop2"} {
		c.Chains.Put(name, desired.Chain{Name: name})
	}
	c.Chains.Merge(bothOpen().Chains)
	apply(t, w.driver, c)
	w.passes(w.a, addrB+":80", true, "it stayed due")
	assert.NotContains(t, w.node.Run(t, "nft list ruleset"), "refused by the kernel", "it stayed due")
}

// TestAnyOrderOfChangesEndsTheSame changes the firewall at random and then lets a fresh driver compare: it must find
// nothing to do.
func TestAnyOrderOfChangesEndsTheSame(t *testing.T) {
	ns := labtest.Enter(t)
	r := rand.New(rand.NewPCG(3, 4))
	d := open(t)
	d.Whole()
	sets := map[string]desired.Set{}
	chains := map[string]desired.Chain{}
	workloads := map[string]desired.Workload{}
	settings := desired.Settings{WorkloadPrefixes: []string{"cali"}}
	randomSet := func() desired.Set {
		s := desired.Set{Type: view.SetNet}
		for range r.IntN(30) {
			s.Members = append(s.Members, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(256))}), 24+r.IntN(9)).Masked()})
		}
		return s
	}
	ids := []string{"s:1", "s:2", "s:3", "s:4"}
	randomPolicy := func(id string) [2]desired.Chain {
		p := view.Policy{ID: id}
		for range r.IntN(4) {
			p.Ingress = append(p.Ingress, view.Rule{Action: view.Action(1 + r.IntN(4)), Protocol: 6, Source: view.Match{
				Sets: []string{ids[r.IntN(len(ids))]}, Nets: nets("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")[:1+r.IntN(3)],
			}})
		}
		return desired.PolicyChains(p, "")
	}
	for step := range 300 {
		var c desired.FirewallDelta
		for range 1 + r.IntN(6) {
			id := ids[r.IntN(len(ids))]
			list, policy := fmt.Sprint("l", r.IntN(3)), fmt.Sprint("np/x/", r.IntN(4))
			iface := fmt.Sprint("cali", r.IntN(5))
			switch r.IntN(9) {
			case 0:
				sets[id] = randomSet()
				c.Sets.Put(id, sets[id])
			case 1:
				delete(sets, id)
				c.Sets.Remove(id)
			case 2, 3:
				for _, ch := range randomPolicy(policy) {
					chains[ch.Name] = ch
					c.Chains.Put(ch.Name, ch)
				}
			case 4:
				name := desired.PolicyChain(policy, desired.Ingress)
				delete(chains, name)
				c.Chains.Remove(name)
			case 5:
				l := view.PolicyList{ID: list, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy}}}}
				for _, ch := range desired.ListChains(l) {
					chains[ch.Name] = ch
					c.Chains.Put(ch.Name, ch)
				}
			case 6:
				x := under(list)
				if r.IntN(3) == 0 {
					x.AllowedSources = nets("10.99.0.0/24")
				}
				workloads[iface] = x
				c.Workloads.Put(iface, x)
			case 7:
				delete(workloads, iface)
				c.Workloads.Remove(iface)
			case 8:
				settings.RejectDenied = r.IntN(2) == 0
				settings.NATOutgoing = nil
				if r.IntN(2) == 0 {
					settings.NATOutgoing = &desired.NATOutgoing{}
				}
				s := settings
				c.Settings = &s
			}
		}
		apply(t, d, c)
		if step%20 == 19 {
			fresh := open(t)
			fresh.Whole()
			s := settings
			whole := desired.FirewallDelta{Settings: &s}
			whole.Sets.Set, whole.Chains.Set, whole.Workloads.Set = sets, chains, workloads
			fresh.Update(whole)
			require.NoError(t, fresh.Apply(context.Background()))
			if !assert.Zero(t, fresh.Writes(), "after step %d", step) {
				t.Fatal(ns.Run(t, "nft list ruleset"))
			}
		}
	}
}

// TestMemberChangesReachTheKernel changes overlapping members in one set, where elements must give way to each other
// within one transaction.
func TestMemberChangesReachTheKernel(t *testing.T) {
	ns := labtest.Enter(t)
	d := open(t)
	apply(t, d, rich())
	change := func(add, remove []string, want, not string) {
		apply(t, d, desired.FirewallDelta{Members: map[string]desired.SetDelta{"s:a": {Added: members(add...), Removed: members(remove...)}}})
		got := ns.Run(t, "nft list set ip calico cali40s-a")
		assert.Contains(t, got, want)
		if not != "" {
			assert.NotContains(t, got, not)
		}
	}
	change([]string{"10.0.0.0/16"}, nil, "10.0.0.0/16", "10.0.4.0")
	change(nil, []string{"10.0.0.0/16"}, "10.0.4.0/24", "10.0.0.0/16")
	change(nil, []string{"10.0.4.0/24"}, "10.0.4.7", "10.0.4.0/24")
	change([]string{"10.0.6.0/24", "0.0.0.0/0"}, []string{"10.0.5.0/24"}, "0.0.0.0/0", "10.0.6.0")
	change(nil, []string{"0.0.0.0/0"}, "10.0.6.0/24", "10.0.5.0")
}

func TestLargeSets(t *testing.T) {
	ns := labtest.Enter(t)
	d := open(t)
	set := desired.Set{Type: view.SetNet}
	for i := range 50_000 {
		set.Members = append(set.Members, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32)})
	}
	var c desired.FirewallDelta
	c.Sets.Put("s:big", set)
	start := time.Now()
	apply(t, d, c)
	t.Logf("50,000 members in %s", time.Since(start))
	ns.Run(t, "nft get element ip calico cali40s-big { 10.0.0.2 }")
	again := open(t)
	start = time.Now()
	apply(t, again, c)
	t.Logf("adopted in %s", time.Since(start))
	assert.Zero(t, again.Writes())
}

// crowd is a firewall with n endpoints, each under a list of its own if own is set.
func crowd(n int, own bool) desired.FirewallDelta {
	workloads := map[string]desired.Workload{}
	lists := []view.PolicyList{listOf("shared")}
	for i := range n {
		name := "shared"
		if own {
			name = fmt.Sprint("own", i)
			lists = append(lists, listOf(name))
		}
		workloads[fmt.Sprintf("cali%05d", i)] = under(name)
	}
	return firewall(workloads, lists, allowAll, policyOf("np/s/one", 80), policyOf("np/s/two", 81))
}

func listOf(id string, more ...string) view.PolicyList {
	policies := append([]string{"np/s/one", "np/s/two"}, more...)
	return view.PolicyList{ID: id, Profiles: []string{"pro/all"}, Tiers: []view.TierPolicies{
		{Name: "default", DefaultAction: view.Deny, Ingress: policies, Egress: policies},
	}}
}

func policyOf(id string, p uint16) view.Policy {
	rule := []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: port(p)}}}
	return view.Policy{ID: id, Ingress: rule, Egress: rule}
}

func BenchmarkRuleChangedAt500Endpoints(b *testing.B) {
	labtest.Enter(b)
	d := open(b)
	d.Whole()
	apply(b, d, crowd(500, false))
	p := uint16(1000)
	for b.Loop() {
		p++
		var c desired.FirewallDelta
		for _, ch := range desired.PolicyChains(policyOf("np/s/two", p), "") {
			c.Chains.Put(ch.Name, ch)
		}
		d.Update(c)
		require.NoError(b, d.Apply(context.Background()))
	}
}

func BenchmarkNewPolicyAt500Endpoints(b *testing.B) {
	for _, own := range []bool{false, true} {
		b.Run(fmt.Sprintf("ownLists=%v", own), func(b *testing.B) {
			labtest.Enter(b)
			d := open(b)
			d.Whole()
			apply(b, d, crowd(500, own))
			n := 0
			for b.Loop() {
				n++
				id := fmt.Sprint("np/s/new", n)
				var c desired.FirewallDelta
				for _, ch := range desired.PolicyChains(policyOf(id, 90), "") {
					c.Chains.Put(ch.Name, ch)
				}
				lists := 1
				if own {
					lists = 500
				}
				for i := range lists {
					// A list's id is a hash of its content: a new policy makes a new list.
					for _, ch := range desired.ListChains(listOf(fmt.Sprint("l", i, "-", n), id)) {
						c.Chains.Put(ch.Name, ch)
					}
					for _, dir := range []desired.Direction{desired.Ingress, desired.Egress} {
						c.Chains.Remove(desired.ListChain(fmt.Sprint("l", i, "-", n-1), dir))
					}
				}
				for i := range 500 {
					c.Workloads.Put(fmt.Sprintf("cali%05d", i), under(fmt.Sprint("l", i%lists, "-", n)))
				}
				d.Update(c)
				require.NoError(b, d.Apply(context.Background()))
			}
		})
	}
}
