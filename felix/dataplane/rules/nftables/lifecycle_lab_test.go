//go:build lab

package nftables_test

import (
	"context"
	"errors"
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
	"github.com/muslin-net/muslin/felix/desired"
)

func TestRestartKeepsTheUnknownUntilWhole(t *testing.T) {
	ns := labtest.Enter(t)
	devices(t, ns)
	apply(t, open(t), rich())
	ns.Run(t, "nft add table ip other; nft add chain ip other x; ip link set cali3 up")
	second := open(t)
	second.Update(bothOpen())
	require.NoError(t, second.Apply(context.Background()))
	list := ns.Run(t, "nft list ruleset")
	for _, still := range []string{"np/shop/web", "cali40s-a", `"cali3" : jump`, "from-cali3", "ip saddr 10.99.0.0/24"} {
		assert.Contains(t, list, still)
	}
	assert.Contains(t, ns.Run(t, "nft list map ip calico cali-to-wl-dispatch"), `"cali2" : jump filter-cali-tw-open`, "what is known is put right at once")
	second.Whole()
	require.NoError(t, second.Apply(context.Background()))
	list = ns.Run(t, "nft list ruleset")
	for _, gone := range []string{"np/shop/web", "cali40s-a", `"cali3" :`, `"cali4" :`, "10.99.0.0/24", "masquerade", "notrack", "cali-ip-"} {
		assert.NotContains(t, list, gone)
	}
	assert.Contains(t, list, "from-cali3", "a device with a workload's name has its guard, whoever it is")
	assert.Contains(t, list, "table ip other", "others' tables are not ours")
}

func TestRepairsWithinASecond(t *testing.T) {
	w := newWorld(t)
	w.driver.Whole()
	w.apply(guarded())
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
		{"the table of IPv6 flushed", "nft flush table ip6 calico"},
		{"a host endpoint's chain flushed", "nft flush chain ip calico filter-cali-fh-eth0"},
		{"a chain flushed", "nft flush chain ip calico filter-cali-pi-np/shop/web"},
		{"a rule deleted", "nft delete rule ip calico filter-FORWARD handle $(nft -a list chain ip calico filter-FORWARD | sed -n 's/.*established.*handle //p')"},
		{"a rule added", "nft insert rule ip calico filter-FORWARD accept"},
		{"a rule replaced under the same comment", `nft replace rule ip calico filter-cali-tw-shop handle $(nft -a list chain ip calico filter-cali-tw-shop | sed -n 's/.*end of tier.*handle //p') accept comment \"$(nft list chain ip calico filter-cali-tw-shop | sed -n 's/.*comment "\(end of tier[^"]*\)".*/\1/p')\"`},
		{"an element deleted", "nft delete element ip calico cali40s-a { 10.0.4.0/24 }"},
		{"an element added", "nft add element ip calico cali40s-a { 10.77.0.0/16 }"},
		{"a verdict deleted", `nft delete element ip calico cali-to-wl-dispatch { "cali2" : jump filter-cali-tw-shop }`},
		{"a set flushed", "nft flush set ip calico cali40n-http"},
		{"a chain and a set of others in our table", "nft add chain ip calico intruder; nft add set ip calico strange '{ type mark; }'"},
		{"a guard deleted", "nft flush chain netdev calico from-cali1; nft delete chain netdev calico from-cali1"},
		{"a guard opened", "nft insert rule netdev calico from-cali1 accept"},
		{"the guards flushed", "nft delete table netdev calico"},
		{"a base chain deleted", "nft flush chain ip calico raw-OUTPUT; nft delete chain ip calico raw-OUTPUT"},
	} {
		w.Repairs(c.name, c.do, want, normal)
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
