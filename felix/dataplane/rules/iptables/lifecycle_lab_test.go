//go:build lab

package iptables_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/felix/desired"
)

// listing is everything of the driver's, in no order.
func listing(t *testing.T, ns *labtest.Namespace, k rulestest.Kind) string {
	out, err := ns.Try(k.List + "; ipset save | sed 's/ initval .*//'")
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(out, "\n")
	slices.Sort(lines) // sets print their entries in no order, and iptables-nft chains in that of their making
	return strings.Join(lines, "\n")
}

// Before all is known, what an earlier felix left stays as it is.
func TestRestartKeepsTheUnknownUntilWhole(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		ns := labtest.Enter(t)
		ns.Run(t, "iptables-"+k.Name+" -A FORWARD -j ACCEPT; iptables-"+k.Name+" -N OTHER; ipset create other hash:ip")
		rulestest.Apply(t, k.Open(t, ns), rulestest.Rich())
		before := listing(t, ns, k)
		second := k.Open(t, ns)
		second.Update(rulestest.BothOpen())
		require.NoError(t, second.Apply(t.Context()))
		assert.Equal(t, before, listing(t, ns, k))
		assert.False(t, second.InSync())
		second.Whole()
		rulestest.Apply(t, second, desired.FirewallDelta{})
		after := listing(t, ns, k)
		for _, gone := range []string{"np/shop/web", "cali40s:a", "cali3", "cali4 ", "MASQUERADE", "notrack", "nets:"} {
			assert.NotContains(t, after, gone)
		}
		assert.Contains(t, ns.Run(t, "iptables-"+k.Name+" -S"), "-N OTHER")
		assert.Contains(t, after, "create other")
		assert.Contains(t, after, "-A FORWARD -j ACCEPT")
	})
}

func TestRepairs(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		w := k.NewWorld(t)
		w.Driver.Whole()
		w.Apply(rulestest.Guarded())
		w.Watch()
		want := listing(t, w.Node, k)
		type mishap struct{ name, do string }
		mishaps := []mishap{
			{"everything flushed", `EMPTY="*raw\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n"; printf "$EMPTY" | IPT-restore; printf "$EMPTY" | IP6T-restore`},
			{"the filter table of IPv6 flushed", "IP6T -F"},
			{"a host endpoint's chain flushed", "IPT -F cali-fh-eth0"},
			{"a pass of host endpoints flushed", "IP6T -t mangle -F"},
			{"a chain flushed", "IPT -F cali-pi-np/shop/web"},
			{"a rule deleted", "IPT -D cali-FORWARD 3"},
			{"a rule added", "IPT -I cali-FORWARD -j ACCEPT"},
			{"our jump deleted", "IPT -D FORWARD 1"},
			{"an accept before our jump", "IPT -I FORWARD -j cali-FORWARD"},
			{"a chain of others with our prefix", "IPT -N cali-intruder"},
			{"an entry deleted", "ipset del cali40s:a 10.0.4.0/24"},
			{"an entry added", "ipset add cali40s:a 10.77.0.0/16"},
			{"a set flushed", "ipset flush cali40n:http"},
		}
		if k.Name == string(iptables.NFT) { // xtables tells of it at the next full comparison only
			mishaps = append(mishaps, mishap{"a rule replaced under the same hash", `RULE=$(IPT -S cali-tw-shop | grep 'end of tier' | sed 's/-A cali-tw-shop //; s/-j DROP/-j ACCEPT/'); eval "IPT -R cali-tw-shop 4 $RULE"`})
		}
		for _, c := range mishaps {
			const wait = " -w 60" // the driver may not be done yet
			do := strings.NewReplacer("IP6T-restore", "ip6tables-"+k.Name+"-restore"+wait, "IPT-restore", "iptables-"+k.Name+"-restore"+wait,
				"IP6T", "ip6tables-"+k.Name+wait, "IPT", "iptables-"+k.Name+wait).Replace(c.do)
			w.Repairs(c.name, do, want, func() string { return listing(t, w.Node, k) })
		}
		w.Node.Run(t, "iptables-"+k.Name+" -w 60 -I FORWARD -j ACCEPT")
		require.Eventually(t, func() bool {
			return strings.Contains(strings.SplitAfterN(w.Node.Run(t, "iptables-"+k.Name+" -w 60 -S FORWARD"), "\n", 3)[1], "cali-FORWARD")
		}, rulestest.Patience, 10*time.Millisecond, "ours come first")
	})
}

// A rule that was replaced by one of equal size under the same hash is found by a full comparison.
func TestAFullComparisonFindsWhatCountersDoNotTell(t *testing.T) {
	k := kinds()[0]
	ns := labtest.Enter(t)
	d := k.Open(t, ns)
	d.Whole()
	rulestest.Apply(t, d, rulestest.Rich())
	d.Resync()
	rulestest.Apply(t, d, desired.FirewallDelta{}) // remembers the words of iptables-save
	want := listing(t, ns, k)
	ns.Run(t, `RULE=$(iptables-legacy -S cali-tw-shop | grep 'end of tier' | sed 's/-A cali-tw-shop //; s/-j DROP/-j ACCEPT/'); eval "iptables-legacy -R cali-tw-shop 4 $RULE"`)
	require.NotEqual(t, want, listing(t, ns, k))
	d.Resync()
	rulestest.Apply(t, d, desired.FirewallDelta{})
	assert.Equal(t, want, listing(t, ns, k))
}

func TestRulesAtTheEnd(t *testing.T) {
	ns := labtest.Enter(t)
	ns.Run(t, "iptables-legacy -A FORWARD -s 192.0.2.1 -j ACCEPT")
	for _, atEnd := range []bool{true, false, true} {
		d, err := iptables.New(iptables.Config{Variant: iptables.Legacy, AtEnd: atEnd, In: ns.In})
		require.NoError(t, err)
		d.Whole()
		rulestest.Apply(t, d, rulestest.Rich())
		rules := ns.Run(t, "iptables-legacy -S FORWARD")
		assert.Equal(t, atEnd, strings.Index(rules, "192.0.2.1") < strings.Index(rules, "-j cali-FORWARD"), rules)
		assert.Equal(t, 1, strings.Count(rules, "-j cali-FORWARD"))
		require.NoError(t, d.Close())
	}
}

// What others insist on in FORWARD does not keep allowed packets from passing.
func TestAPolicyOfDropLetsAllowedPacketsPass(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		w := k.NewWorld(t)
		w.Node.Run(t, "iptables-"+k.Name+" -P FORWARD DROP")
		w.Listen(w.B, ":80")
		w.Apply(rulestest.BothOpen())
		w.Passes(w.A, rulestest.AddrB+":80", true, "allowed by policy")
		w.Node.Run(t, "iptables-"+k.Name+" -I FORWARD 2 -p tcp --dport 80 -j DROP")
		w.Passes(w.A, rulestest.AddrB+":80", false, "others' rules are looked at, too")
	})
}

// A set that is too large is not programmed in part, and rules that name it drop.
func TestASetBeyondItsLimit(t *testing.T) {
	ns := labtest.Enter(t)
	d, err := iptables.New(iptables.Config{Variant: iptables.Legacy, SetLimit: 4, In: ns.In})
	require.NoError(t, err)
	defer d.Close()
	d.Whole()
	d.Update(rulestest.Rich()) // its set has five members of IPv4's
	require.ErrorContains(t, d.Apply(t.Context()), "no set may have more than 4")
	assert.False(t, d.InSync())
	assert.NotContains(t, ns.Run(t, "ipset list -n"), "cali40s:a")
	assert.Contains(t, ns.Run(t, "iptables-legacy -S cali-pi-np/shop/web"), "set s:a is not known")
	var c desired.FirewallDelta
	c.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: rulestest.Members("10.0.1.1/32", "fd00:1::/64")})
	rulestest.Apply(t, d, c)
	assert.Contains(t, ns.Run(t, "iptables-legacy -S cali-pi-np/shop/web"), "--match-set cali40s:a src")
	c.Sets.Put("s:a", rulestest.Rich().Sets.Set["s:a"])
	d.Update(c)
	require.Error(t, d.Apply(t.Context()))
	assert.NotContains(t, ns.Run(t, "iptables-legacy -S cali-pi-np/shop/web"), "--match-set cali40s:a src", "grown beyond it")

	for _, limit := range []int{5, 4} { // another driver takes over what is there
		d, err := iptables.New(iptables.Config{Variant: iptables.Legacy, SetLimit: limit, In: ns.In})
		require.NoError(t, err)
		defer d.Close()
		d.Whole()
		d.Update(rulestest.Rich())
		var large *dataplane.SetLimitError
		assert.Equal(t, limit < 5, errors.As(d.Apply(t.Context()), &large))
		assert.Equal(t, limit < 5, strings.Contains(ns.Run(t, "iptables-legacy -S cali-pi-np/shop/web"), "set s:a is not known"))
	}
}

// What the kernel refuses drops; the rest is programmed.
func TestWhatTheKernelRefusesBlocksNothingElse(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		w := k.NewWorld(t)
		w.Listen(w.B, ":80")
		w.Driver.Whole()
		d := rulestest.BothOpen()
		// Two chains that call each other: the kernel allows no loops.
		for _, pair := range [][2]string{{"cali-pi-loop1", "cali-pi-loop2"}, {"cali-pi-loop2", "cali-pi-loop1"}} {
			d.Chains.Put(pair[0], desired.Chain{Name: pair[0], Rules: []desired.Rule{{Do: desired.Jump, Target: pair[1], Comment: pair[1]}}})
		}
		d.Chains.Put("cali-tw-bad", desired.Chain{Name: "cali-tw-bad", Rules: []desired.Rule{{Do: desired.Jump, Target: "cali-pi-loop1", Comment: "loop"}, {Do: desired.Allow, Comment: "allow"}}})
		bad := rulestest.Under("open")
		bad.Ingress = "cali-tw-bad"
		d.Workloads.Put("cali3", bad)
		w.Driver.Update(d)
		require.Error(t, w.Driver.Apply(t.Context()))
		assert.False(t, w.Driver.InSync())
		assert.Contains(t, w.Node.Run(t, k.List), "refused by the kernel")
		w.Passes(w.B, rulestest.AddrA+":81", false, "nobody listens")
		var c desired.FirewallDelta
		for _, name := range []string{"cali-pi-loop1", "cali-pi-loop2"} {
			c.Chains.Put(name, desired.Chain{Name: name})
		}
		rulestest.Apply(t, w.Driver, c)
		w.Passes(w.A, rulestest.AddrB+":80", true, "it stayed due")
		assert.NotContains(t, w.Node.Run(t, k.List), "refused by the kernel")
	})
}

// While a table has another owner the kernel takes nothing for it: nothing is half there, the failures say what the kernel said, and the
// other family goes on.
func TestATableWithAnotherOwner(t *testing.T) {
	ns := labtest.Enter(t)
	d, err := iptables.New(iptables.Config{Variant: iptables.NFT, In: ns.In})
	require.NoError(t, err)
	defer d.Close()
	d.Whole()
	rulestest.Apply(t, d, rulestest.BothOpen())
	owner := exec.Command("nft", "-i")
	commands, err := owner.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, owner.Start())
	_, err = commands.Write([]byte("delete table ip6 filter; add table ip6 filter { flags owner; }\n"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return strings.Contains(ns.Run(t, "nft list ruleset"), "flags owner") }, time.Minute, 10*time.Millisecond)

	d.Update(rulestest.Rich())
	d.Resync()
	err = d.Apply(t.Context())
	for _, hook := range []string{"FORWARD", "INPUT"} {
		require.ErrorContains(t, err, "rule ip6 filter "+hook+": ")
	}
	assert.NotContains(t, err.Error(), "does not exist")
	assert.Contains(t, err.Error(), "Operation not permitted")
	assert.False(t, d.InSync())
	assert.NotContains(t, ns.Run(t, "ip6tables-nft-save -t filter"), "cali")
	assert.Contains(t, ns.Run(t, "iptables-nft-save -t filter"), "cali-pi-np/shop/web")

	require.NoError(t, commands.Close())
	require.NoError(t, owner.Wait())
	require.Eventually(t, func() bool { return !strings.Contains(ns.Run(t, "nft list ruleset"), "flags owner") }, time.Minute, 10*time.Millisecond)
	d.Resync()
	require.NoError(t, d.Apply(t.Context()))
	assert.Contains(t, ns.Run(t, "ip6tables-nft-save -t filter"), "cali-pi-np/shop/web")
}

func TestLargeSets(t *testing.T) {
	ns := labtest.Enter(t)
	k := kinds()[0]
	d := k.Open(t, ns)
	set := func(n int, third byte) desired.FirewallDelta {
		s := desired.Set{Type: view.SetNet}
		for i := range n {
			s.Members = append(s.Members, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{third, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32)})
		}
		var c desired.FirewallDelta
		c.Sets.Put("s:big", s)
		return c
	}
	for _, third := range []byte{10, 11} { // the second takes the place of the first as a whole
		start := time.Now()
		rulestest.Apply(t, d, set(100_000, third))
		t.Logf("100,000 members in %s", time.Since(start))
		ns.Run(t, fmt.Sprintf("ipset test cali40s:big %d.0.0.2", third))
	}
	again := k.Open(t, ns)
	again.Whole()
	start := time.Now()
	rulestest.Apply(t, again, set(100_000, 11))
	t.Logf("adopted in %s", time.Since(start))
	assert.Zero(t, again.Writes())
}

func TestRemove(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		ns := labtest.Enter(t)
		ns.Run(t, "iptables-"+k.Name+" -A FORWARD -s 192.0.2.1 -j ACCEPT")
		before := listing(t, ns, k)
		d := k.Open(t, ns)
		d.Whole()
		rulestest.Apply(t, d, rulestest.Rich())
		require.NotEqual(t, before, listing(t, ns, k))
		require.NoError(t, k.Open(t, ns).(*iptables.Driver).Remove(context.Background(), false), "also by one that never wrote")
		assert.Equal(t, before, listing(t, ns, k))
	})
}

// The lock of xtables is waited for, and named when it does not come.
func TestTheLockIsWaitedFor(t *testing.T) {
	ns := labtest.Enter(t)
	lock := t.TempDir() + "/lock"
	t.Setenv("XTABLES_LOCKFILE", lock)
	d, err := iptables.New(iptables.Config{Variant: iptables.Legacy, Lock: iptables.LockWait{Timeout: time.Second}, In: ns.In})
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, os.WriteFile(lock, nil, 0o600))
	release := hold(t, lock)
	d.Update(rulestest.BothOpen())
	require.ErrorContains(t, d.Apply(t.Context()), "lock")
	release()
	require.NoError(t, d.Apply(t.Context()))
}

// hold takes a file's lock, as programs of xtables do.
func hold(t *testing.T, path string) (release func()) {
	f, err := os.Open(path)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	return func() { _ = f.Close() }
}
